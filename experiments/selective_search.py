"""Selective Search: how well its boxes cover the objects, how long it takes, how it groups.

    python experiments/selective_search.py                  # some minutes
    python experiments/selective_search.py --size 224
    python experiments/selective_search.py --data voc2007 --source VOC_ARCHIVES
    python experiments/selective_search.py --quick          # the figures mean nothing

On the first 200 test scenes of 128 x 128 (full Fashion-MNIST, 920 garments; nothing is drawn at
random but the order of the boxes, with seed 0), recall at an IoU of 0.5 and MABO:
- fast mode 97.4 % and 0.870 with at most 300 boxes, 99.3 % and 0.910 with at most 1,000 (924 on
  average); single mode 95.7 % and 0.831 with 137; quality mode 99.9 % and 0.942 with 2,883.
- OpenCV's fast mode as it comes has 175 boxes, 95.8 % and 0.849: its scales are those of larger
  pictures, and so its first 100 boxes cover more than ours (93.8 and 80.5 %). With our settings it
  gets as far as ours with all boxes, but 91.6 % and 0.778 with 300, because it ranks small regions
  first.
- Processor time a picture: 13 ms (single), 49 ms (fast) and 204 ms (quality), which is 1.2, 0.83
  and 0.94 of OpenCV's with the same settings.
"""

import json
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from findings import Finding
from selective_search_drawing import draw_best, draw_level, grouping_figure, levels_to_draw
from selective_search_methods import (
    as_it_comes,
    each_alone,
    sides_of,
    time_in_turn,
    with_our_settings,
)

from jaxvision.data.detection import DetectionDataset
from jaxvision.data.detection_sources import load_detection
from jaxvision.data.grouping import Hierarchy
from jaxvision.data.parallel import map_in_processes
from jaxvision.data.proposals import load_proposals
from jaxvision.data.selective_search import (
    MODES,
    Strategy,
    region_hierarchies,
    selective_search,
    strategies_of,
)
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.metrics.proposals import ProposalScores, proposal_scores
from jaxvision.report import write_page
from jaxvision.report.detection_plots import mabo_by_proposals, recall_by_proposals
from jaxvision.train.run import Run

COUNTS = (10, 30, 100, 300, 1000, 3000)
ENOUGH = 1000
"""Boxes a picture by which the methods are compared."""


@dataclass(frozen=True)
class Config:
    data: Literal["garment_scenes", "voc2007"] = "garment_scenes"
    split: str = "test"
    size: Literal[128, 224] = 128
    """Of garment_scenes, in pixels."""
    pictures: int = 200
    """The first so many of the split."""
    modes: tuple[Literal["single", "fast", "quality"], ...] = ("single", "fast", "quality")
    timed: int = 20
    """Pictures that are timed, as many as fit into a second of quality mode for that one."""
    repeats: int = 3
    """Times that each of them is timed; the quickest counts."""
    drawn: int = 4
    """Pictures whose grouping is drawn."""
    workers: int = 2
    """Processes that search."""
    garments: Literal["auto", "full", "embedded"] = "auto"
    """Which Fashion-MNIST the scenes are drawn from: the full one, or the subset in the package."""
    source: Path | None = None
    """The folder of the data set's files."""
    data_dir: Path | None = None
    """Where prepared data sets and proposals are kept."""
    run_dir: Path | None = None
    """The run folder, by default runs/selective_search/<time>."""
    quick: bool = False
    """Everything tiny, to see that it runs."""


QUICK: dict[str, Any] = {"pictures": 4, "timed": 1, "repeats": 1, "drawn": 1, "workers": 1}


def main(config: Config) -> dict[str, object]:
    if config.quick:
        config = replace(config, **QUICK)
    _check(config)
    since = time.perf_counter()
    with Run("selective_search", config, run_dir=config.run_dir) as run:
        dataset = load_pictures(config)
        run.write_config(data_source=dataset.source, objects=sum(map(len, dataset.objects)))
        print(f"run folder: {run.path}\n")
        findings = []
        for make in (coverage, strategies, timing, repeatability, grouping):
            findings.append(make(config, dataset))
            findings[-1].print()
        results = {finding.title: finding.numbers for finding in findings}
        try:
            (run.path / "results.json").write_text(json.dumps(results, indent=1))
        except OSError as error:
            raise UserError(f"cannot write to {run.path}: {error.strerror}") from error
        sections = [finding.section() for finding in findings]
        report = write_page(run.path / "report.html", "Selective Search", sections)
        print(f"report: {report}")
    print(f"{time.perf_counter() - since:.0f} s")
    return results


def load_pictures(config: Config) -> DetectionDataset:
    """The first pictures of the chosen split."""
    options: dict[str, Any] = {"source": config.source, "data_dir": config.data_dir}
    if config.data == "garment_scenes":
        counts = dict.fromkeys(("train", "val", "test"), 1) | {config.split: config.pictures}
        options |= {"size": config.size, "counts": counts, "data": config.garments}
        options["processes"] = config.workers
    splits = load_detection(config.data, **options)
    if config.split not in splits:
        raise UserError(f"expected a --split of {', '.join(splits)}, got {config.split!r}")
    dataset = splits[config.split]
    return dataset.subset(np.arange(min(config.pictures, len(dataset))))


def coverage(config: Config, dataset: DetectionDataset) -> Finding:
    """Recall and MABO against the number of boxes, ours and OpenCV's."""
    finding = Finding(
        "1. How well the boxes cover the objects",
        (
            "Recall is the share of objects that a box overlaps by an IoU of at least 0.5 or 0.7; "
            "MABO is the mean over the classes of the objects' average best overlap. Each counts "
            "the first so many boxes of each picture, in the order that the method ranks them.",
            "OpenCV ranks small regions first, where the paper puts large ones first. As it comes, "
            "its scales are those of larger pictures; with our settings it groups the same "
            "starting regions by the same similarities.",
        ),
    )
    scores: dict[str, ProposalScores] = {}
    for mode in config.modes:
        found = load_proposals(dataset, mode=mode, data_dir=config.data_dir, workers=config.workers)
        scores[mode] = _score([found[i] for i in range(len(found))], dataset)
    for name, search in (("OpenCV", as_it_comes), ("OpenCV, our settings", with_our_settings)):
        images = (dataset.image(i) for i in range(len(dataset)))
        boxes = map_in_processes(partial(search, mode="fast"), images, processes=config.workers)
        scores[f"{name}, fast"] = _score(list(boxes), dataset)
    rows = []
    for name, score in scores.items():
        for i, count in enumerate(COUNTS):
            if i and score.mean_boxes[i] == score.mean_boxes[i - 1]:
                break  # no picture has so many
            rows.append((name, f"{count:,}", f"{score.mean_boxes[i]:,.0f}", *_cells(score, i)))
    objects = int(next(iter(scores.values())).num_objects.sum())
    finding.table(
        f"{len(dataset):,} pictures with {objects:,} objects: {dataset.name}, {dataset.split}.",
        ("method", "at most", "boxes", "recall, IoU 0.5", "recall, IoU 0.7", "MABO"),
        rows,
    )
    finding.charts = [
        (recall_by_proposals(scores, 0.5), "Recall at an IoU of 0.5 by boxes a picture."),
        (recall_by_proposals(scores, 0.7), "Recall at an IoU of 0.7."),
        (mabo_by_proposals(scores), "Mean average best overlap."),
    ]
    finding.numbers = {name: _numbers(score) for name, score in scores.items()}
    return finding


def strategies(config: Config, dataset: DetectionDataset) -> Finding:
    """What each similarity and colour space finds alone, as in the paper's tables 2 to 4."""
    finding = Finding(
        "2. What single strategies find",
        (
            "One grouping a picture each: no kind of similarity, colour or scale finds all "
            "objects, but they miss different ones, which is why the modes join several.",
        ),
    )
    alone = {
        "colour (C)": Strategy("HSV", 100, "C"),
        "texture (T)": Strategy("HSV", 100, "T"),
        "size (S)": Strategy("HSV", 100, "S"),
        "fill (F)": Strategy("HSV", 100, "F"),
        "all four": Strategy("HSV", 100, "CTSF"),
        "all four, k = 50": Strategy("HSV", 50, "CTSF"),
        "all four, Lab": Strategy("Lab", 100, "CTSF"),
        "all four, intensity": Strategy("I", 100, "CTSF"),
    }
    search = partial(each_alone, strategies=list(alone.values()))
    images = (dataset.image(i) for i in range(len(dataset)))
    found = list(map_in_processes(search, images, processes=config.workers))
    rows = []
    for j, (name, strategy) in enumerate(alone.items()):
        score = _score([boxes[j] for boxes in found], dataset)
        cells = (f"{score.mean_boxes[-1]:,.0f}", *_cells(score, -1))
        rows.append((name, strategy.color_space, strategy.k, *cells))
        finding.numbers[name] = _numbers(score)
    finding.table(
        "All boxes of one grouping.",
        ("similarity", "colours", "k", "boxes", "recall, IoU 0.5", "recall, IoU 0.7", "MABO"),
        rows,
    )
    return finding


def timing(config: Config, dataset: DetectionDataset) -> Finding:
    """Seconds a picture, ours against OpenCV's, in turn."""
    finding = Finding(
        "3. Time a picture",
        ("Processor time with one thread. On each picture the three take turns.",),
    )
    rows = []
    for mode in config.modes:
        number = max(1, config.timed // 5) if mode == "quality" else config.timed
        images = [dataset.image(i) for i in range(min(number, len(dataset)))]
        seconds = time_in_turn(sides_of(mode), images, config.repeats)
        ours = seconds["jaxvision"]
        for name, each in seconds.items():
            ratio = f"{np.median(ours / each):.2f}"
            rows.append((mode, name, f"{1000 * np.median(each):.1f}", ratio))
        finding.numbers[mode] = {name: float(np.median(each)) for name, each in seconds.items()}
    h, w = dataset.image(0).shape[:2]
    finding.table(
        f"Medians over pictures; the first has {w} x {h} pixels.",
        ("mode", "side", "ms a picture", "jaxvision's time / this"),
        rows,
    )
    return finding


def repeatability(config: Config, dataset: DetectionDataset) -> Finding:
    """Whether the same picture gives the same boxes in the same order."""
    import cv2

    finding = Finding(
        "4. The same again?",
        (
            "Each picture is searched twice. OpenCV draws its random numbers from the C library's "
            "rand, which cv2.setRNGSeed does not reach (srand does, through ctypes).",
        ),
    )
    images = [dataset.image(i) for i in range(min(config.timed, len(dataset)))]
    same = sum(np.array_equal(selective_search(image), selective_search(image)) for image in images)
    finding.check("the same boxes in the same order", same == len(images))

    def seeded(image: np.ndarray) -> np.ndarray:
        cv2.setRNGSeed(0)
        return as_it_comes(image, "fast")

    same = sum(np.array_equal(seeded(image), seeded(image)) for image in images)
    finding.table(
        "Pictures with the same boxes in the same order both times.",
        ("method", "same", "pictures"),
        [("jaxvision", len(images), len(images)), ("OpenCV, seeded", same, len(images))],
    )
    finding.numbers = {"jaxvision": len(images), "OpenCV": same, "pictures": len(images)}
    return finding


def grouping(config: Config, dataset: DetectionDataset) -> Finding:
    """The hierarchy of some pictures, drawn level by level."""
    finding = Finding(
        "5. The grouping, level by level",
        (
            "The hierarchy of single mode (HSV, k = 100, all similarities): the starting regions, "
            "and what is left after so many unions, with their boxes. Regions that soon become one "
            f"have similar colours. On the left, of the first {ENOUGH:,} boxes of fast mode, the "
            "one that covers each object best.",
        ),
    )
    some = [i for i in range(len(dataset)) if len(dataset.objects[i])][: config.drawn]
    rows = []
    for i in some:
        image = dataset.image(i)
        (hierarchy,) = region_hierarchies(image, strategies_of("single"))
        boxes = selective_search(image, max_boxes=ENOUGH)
        row = [("best boxes", draw_best(image, dataset.objects[i].boxes, boxes))]
        for count in levels_to_draw(hierarchy):
            row.append((f"{count} regions", draw_level(hierarchy, count)))
        rows.append(row)
        finding.numbers[dataset.names[i]] = {"regions": _count(hierarchy), "boxes": len(boxes)}
    if rows:
        words = f"{len(rows)} pictures of {dataset.name}."
        finding.charts.append((grouping_figure(rows), words))
    return finding


def _count(hierarchy: Hierarchy) -> int:
    return len(hierarchy.merges) + 1


def _score(boxes: list[np.ndarray], dataset: DetectionDataset) -> ProposalScores:
    classes = len(dataset.class_names)
    return proposal_scores(boxes, dataset.objects, classes, counts=COUNTS)


def _cells(score: ProposalScores, i: int) -> tuple[str, str, str]:
    recall = (f"{100 * score.recall[i, j]:.1f} %" for j in range(2))
    return (*recall, f"{score.mabo[i]:.3f}")


def _numbers(score: ProposalScores) -> dict[str, dict[str, float]]:
    return {
        str(count): {
            "boxes": float(score.mean_boxes[i]),
            "recall_50": float(score.recall[i, 0]),
            "recall_70": float(score.recall[i, 1]),
            "mabo": float(score.mabo[i]),
        }
        for i, count in enumerate(score.counts)
    }


def _check(config: Config) -> None:
    """Refuses what cannot be done, before any work."""
    for name in ("pictures", "timed", "repeats", "workers"):
        if getattr(config, name) < 1:
            raise UserError(f"expected --{name} of at least 1, got {getattr(config, name)}")
    if not config.modes:
        raise UserError(f"expected at least one of --modes {' '.join(MODES)}")


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(Config, description=__doc__))
