"""R-CNN, Fast R-CNN and Faster R-CNN side by side: how long each step takes, and how good it is.

    python experiments/rcnn_family.py --rcnn runs/rcnn/a --fast runs/rcnn/b --faster runs/rcnn/c
    python experiments/rcnn_family.py --training.epochs 3      # trains those that are not given

The course tells one story in three steps. R-CNN runs a network on a crop of each of 2,000 proposals
(about 50 s a picture), Fast R-CNN runs it once and pools features for each of them (about 2 s, most
of it Selective Search), Faster R-CNN lets the network propose (0.2 s); and accuracy rises, from
66.0 over 66.9 to 69.9 mAP on VOC 2007 with VGG-16. Here the three are those of
experiments/rcnn.py, on one backbone and on the same pictures, and the clock is this machine's.

The page, report.html, has both tables, and for one picture what every step sees: proposals, the
proposal network's maps, features of regions, boxes before and after regression and suppression.
result.json has the figures.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rcnn as detectors
import tyro
from detection import Thresholds, mean_precisions, read_predictions
from detection_data import load_splits
from findings import Finding
from rcnn_data import PictureFlags, Pictures
from rcnn_looks import sections_of
from rcnn_steps import NAMES, STEPS, Steps

from jaxvision.data import DetectionDataset
from jaxvision.data.selective_search import selective_search
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.models.selection import selection_of
from jaxvision.report import write_page
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.train.run import Run, enable_compilation_cache, read_config, write_json

PUBLISHED = {"rcnn": ("50 s", "66.0"), "fast": ("2 s", "66.9"), "faster": ("0.2 s", "69.9")}
"""The course's: time a picture, and mAP on VOC 2007's test set, trained on its trainval set."""


@dataclass(frozen=True)
class Config:
    rcnn: Path | None = None
    """The folder of a finished run of experiments/rcnn.py --model rcnn; others likewise. One that
    is not given is trained, in the folder of this run."""
    fast: Path | None = None
    faster: Path | None = None
    training: detectors.Config = field(default_factory=detectors.Config)
    """How those are trained that are not given."""
    timed: int = 20
    """Test pictures that are timed, one at a time."""
    repeats: int = 3
    """Times that each of them is timed; the median counts."""
    num_proposals: int | None = None
    """Boxes of Selective Search that R-CNN and Fast R-CNN look at when they are timed and drawn, by
    default as many as the R-CNN was trained with."""
    picture: int | None = None
    """The test picture that is drawn, by default the first one with two objects or more."""
    drawn: int = 6
    """Regions of it that are drawn."""
    score_threshold: float = 0.05
    """Of what is drawn and timed; the figures of accuracy are the runs' own."""
    source: Path | None = None
    """The folder with the data set's files, where it is not the runs'."""
    data_dir: Path | None = None
    """Where prepared data sets are kept, where it is not the runs'."""
    run_dir: Path | None = None
    """The run folder, by default runs/rcnn_family/<time>."""
    resume: bool = False
    """Go on with the run in --run-dir, or with the newest one."""


def main(config: Config) -> dict[str, Any]:
    check(config)
    with Run("rcnn_family", config, run_dir=config.run_dir, resume=config.resume) as run:
        run.write_config()
        runs = {name: trained(config, name, run.path) for name in NAMES}
        flags = flags_of(config, runs)
        test = load_splits(flags)["test"]
        found = {name: read_predictions(path, test) for name, path in runs.items()}
        pictures = Pictures(flags, Thresholds(), with_proposals=True)
        steps = {name: taken_apart(config, path) for name, path in runs.items()}
        accuracy = accuracy_of(found, test, {n: read_config(path) for n, path in runs.items()})
        speed = speed_of(config, steps, pictures, test)
        for finding in (speed, accuracy):
            finding.print()
        result = {
            "device": str(jax.devices()[0].device_kind),
            "backbone": read_config(runs["rcnn"])["backbone"],
            "runs": {name: str(path) for name, path in runs.items()},
            "milliseconds": speed.numbers,
            "accuracy": accuracy.numbers,
        }
        write_json(run.path / "result.json", result)
        index = picture_to_draw(config, test)
        batch = next_batch(pictures, test.subset(np.array([index])))
        looks = sections_of(steps, batch, test.class_names, most=config.drawn)
        sections = [speed.section(), accuracy.section(), *looks]
        title = f"R-CNN, Fast R-CNN and Faster R-CNN on {test.name}"
        print(f"report: {write_page(run.path / 'report.html', title, sections)}")
        return result


def check(config: Config) -> None:
    """Refuses what cannot be, before any work."""
    for name in ("timed", "repeats", "num_proposals", "drawn"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"expected --{name.replace('_', '-')} of at least 1, got {value}")
    check_alike({name: config_of(config, name) for name in NAMES})


def config_of(config: Config, name: str) -> dict[str, Any]:
    """Returns the config of the given run, or the one that will be trained with."""
    given = getattr(config, name)
    if given is None:
        return vars(replace(config.training, model=name))
    stored = read_config(given)
    if stored.get("model") != name:
        raise UserError(
            f"{given}: expected a run of {NAMES[name]}, got one of {stored.get('model')}"
        )
    return stored


def check_alike(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses runs of other pictures or another backbone; in what a detector has of its own, such
    as augmentation, they may differ."""
    same = ("backbone", "data", "picture_size", "size", "shortest", "longest", "width", "stem")
    for key in same:
        values = {name: each.get(key) for name, each in configs.items()}
        if len({str(value) for value in values.values()}) > 1:
            listed = ", ".join(f"{NAMES[name]} has {value}" for name, value in values.items())
            raise UserError(f"expected runs with the same --{key.replace('_', '-')}: {listed}")


def trained(config: Config, name: str, folder: Path) -> Path:
    """Returns the folder of a finished run: the given one, or one that is trained here."""
    given = getattr(config, name)
    if given is not None:
        return given
    path = folder / name
    print(f"{NAMES[name]}: {path}")
    if not (path / "result.json").exists():
        resume = (path / "config.json").exists()
        detectors.main(replace(config.training, model=name, run_dir=path, resume=resume))
    return path


def flags_of(config: Config, runs: Mapping[str, Path]) -> PictureFlags:
    """Returns the flags of pictures that all runs share."""
    stored = {name: read_config(path) for name, path in runs.items()}
    check_alike(stored)  # those that were trained here earlier too
    first = stored["rcnn"]
    flags = {f.name: first[f.name] for f in fields(PictureFlags) if f.name in first}
    for name in ("source", "data_dir"):
        given = getattr(config, name) or flags.get(name)
        flags[name] = None if given is None else Path(given)
    if config.num_proposals is not None:
        flags["num_proposals"] = config.num_proposals
    flags = {name: tuple(v) if isinstance(v, list) else v for name, v in flags.items()}
    return PictureFlags(**flags)


def taken_apart(config: Config, run: Path) -> Steps:
    model, variables, meta = load_checkpoint(run, "best")
    stored = read_config(run)
    thresholds = {name: stored[name] for name in ("iou_threshold", "max_detections")}
    selection = selection_of(model, score_threshold=config.score_threshold, **thresholds)
    return Steps(model, variables, meta, selection)


def next_batch(pictures: Pictures, dataset: DetectionDataset) -> dict[str, np.ndarray]:
    """Returns a data set of one picture as a batch, with its proposals."""
    return pictures.batches(dataset, 1, train=False)(0)


def speed_of(
    config: Config, steps: Mapping[str, Steps], pictures: Pictures, test: DetectionDataset
) -> Finding:
    """The first table: the time of each step, medians over pictures."""
    mode = pictures.config.search
    some = test.subset(np.arange(min(config.timed, len(test))))
    batches = pictures.batches(some, 1, train=False)
    made = [batches(i) for i in range(batches.steps_per_epoch)]
    times: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for each in steps.values():
        for batch in {batch["image"].shape: batch for batch in made}.values():
            each.milliseconds(batch)  # compiles
    # Each detector looks at all pictures before the next one does, as one that is used would: the
    # search or another network pushes out of the processor's caches what it left there.
    searches = []
    for image in (some.image(i) for _ in range(config.repeats) for i in range(len(some))):
        since = time.perf_counter()
        selective_search(image, mode=mode)
        searches.append(1000 * (time.perf_counter() - since))
    for _ in range(config.repeats):
        for name, each in steps.items():
            times[name] += [each.milliseconds(batch) for batch in made]
    medians = {}
    for name, of_name in times.items():
        clocks = {step: [each[step] for each in of_name if step in each] for step in STEPS}
        clocks["proposals"] = clocks["proposals"] or searches
        medians[name] = {step: float(np.median(clock)) for step, clock in clocks.items()}
    for each in medians.values():
        each["total"] = sum(each[step] for step in STEPS)
        each["without proposals"] = each["total"] - each["proposals"]
    finding = Finding(
        "Time a picture",
        (
            "Milliseconds for one picture at a time, warm, each step waited for. R-CNN and Fast "
            f"R-CNN look at the first {pictures.config.num_proposals:,} boxes of Selective Search "
            f"({mode}), which runs on the host with one thread; Faster R-CNN's own come from its "
            "proposal network. The network is what runs before regions are classified: of R-CNN "
            "on a crop of each region, of the others once a picture.",
        ),
        numbers=medians,
    )
    base = medians["rcnn"]
    rows = []
    for name, each in medians.items():
        columns = [f"{each[step]:,.1f}" for step in STEPS]
        for key in ("total", "without proposals"):
            columns += [f"{each[key]:,.1f}", f"{base[key] / each[key]:.1f}"]
        rows.append((NAMES[name], *columns, PUBLISHED[name][0]))
    finding.table(
        f"Medians over {len(some):,} pictures of {test.name}, on {jax.devices()[0].device_kind}.",
        (
            *("detector", *STEPS, "total", "R-CNN / this", "without proposals", "R-CNN / this"),
            "in the course",
        ),
        rows,
    )
    return finding


def accuracy_of(
    found: Mapping[str, Any],
    test: DetectionDataset,
    configs: Mapping[str, Mapping[str, Any]],
) -> Finding:
    """The second table: mean average precision on the test set."""
    finding = Finding(
        "Accuracy",
        (
            "Mean average precision at an IoU of 0.5, by the area under the curve and by VOC "
            "2007's 11 points. The course's are of VOC 2007 with VGG-16.",
        ),
    )
    rows = []
    for name, each in found.items():
        scores = mean_precisions(each, test.objects, len(test.class_names))
        finding.numbers[name] = scores
        config = configs[name]
        epochs = f"{config['epochs']} of {config.get('train_pictures', 0):,} pictures"
        values = (f"{100 * scores[key]:.1f}" for key in ("mAP50", "mAP50_voc07"))
        rows.append((NAMES[name], *values, epochs, config["seed"], PUBLISHED[name][1]))
    finding.table(
        f"All {len(test):,} test pictures of {test.name}.",
        ("detector", "mAP", "mAP, 11 points", "epochs", "seed", "in the course"),
        rows,
    )
    return finding


def picture_to_draw(config: Config, test: DetectionDataset) -> int:
    if config.picture is not None:
        if not 0 <= config.picture < len(test):
            raise UserError(f"expected --picture from 0 to {len(test) - 1}, got {config.picture}")
        return config.picture
    several = [i for i, objects in enumerate(test.objects) if len(objects) > 1]
    return several[0] if several else 0


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
