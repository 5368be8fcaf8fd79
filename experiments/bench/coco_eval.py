"""Times COCO's evaluation against pycocotools called directly, in turn.

    python experiments/bench/coco_eval.py

Both start from the same arrays: 5,000 pictures, 80 classes, about 7 objects and 20 detections a
picture, as on COCO's validation set, made here. Each side is timed from the arrays to the 12
numbers, its own conversion included; the largest difference between their numbers is printed, and
must be below 1e-6.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from classifier import is_disturbed, spread
from rich.console import Console
from rich.table import Table

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.metrics import coco_scores


@dataclass(frozen=True)
class Config:
    pictures: int = 5000
    classes: int = 80
    objects: int = 7
    """A picture, on average."""
    detections: int = 20
    """A picture, on average."""
    repeats: int = 3
    """Times that each side is run."""
    seed: int = 0
    json: Path | None = None
    """Write the raw numbers to this file."""


def make_pictures(config: Config) -> tuple[list[dict], list[dict]]:
    """Returns (predictions, targets): most detections lie near an object, with noise."""
    rng = np.random.default_rng(config.seed)
    predictions, targets = [], []
    for _ in range(config.pictures):
        m, n = rng.poisson(config.objects), rng.poisson(config.detections)
        size = np.exp(rng.uniform(np.log(10), np.log(300), (m, 2)))
        low = rng.uniform(0, 1, (m, 2)) * (500 - size)
        boxes = np.concatenate([low, low + size], axis=1)
        labels = rng.integers(config.classes, size=m)
        low = rng.uniform(0, 400, (n, 2))
        found = np.concatenate([low, low + rng.uniform(10, 200, (n, 2))], axis=1)
        found_labels = rng.integers(config.classes, size=n)
        if m:
            near, of = rng.random(n) < 0.8, rng.integers(m, size=n)
            sides = np.tile(boxes[of, 2:] - boxes[of, :2], 2)
            moved = boxes[of] + sides * rng.normal(0, 0.08, (n, 4))
            found = np.where(near[:, None], moved, found)
            right = near & (rng.random(n) < 0.85)
            found_labels = np.where(right, labels[of], found_labels)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        scores = rng.random(n)
        predictions.append({"boxes": found, "scores": scores, "labels": found_labels})
        targets.append({"boxes": boxes, "labels": labels, "difficult": rng.random(m) < 0.02})
    return predictions, targets


def pycocotools_numbers(
    predictions: list[dict], targets: list[dict], class_names: list[str]
) -> np.ndarray:
    """pycocotools' 12 numbers, in its order."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results, annotations = [], []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True), start=1):
        boxes = prediction["boxes"]
        corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        columns = (prediction["scores"].tolist(), prediction["labels"].tolist())
        rows = zip(corners, *columns, strict=True)
        results += [
            {"image_id": i, "category_id": label + 1, "bbox": box, "score": score}
            for box, score, label in rows
        ]
        boxes = target["boxes"]
        corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        crowds = target["difficult"].astype(int).tolist()
        for box, label, crowd in zip(corners, target["labels"].tolist(), crowds, strict=True):
            row = {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1}
            annotations.append(row | {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(len(targets))],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def main(config: Config) -> dict[str, Any]:
    numbers = (config.pictures, config.classes, config.objects, config.detections, config.repeats)
    if min(numbers) < 1:
        raise UserError("--pictures, --classes, --objects, --detections and --repeats: at least 1")
    predictions, targets = make_pictures(config)
    class_names = [f"class {k}" for k in range(config.classes)]
    sides = {
        "jaxvision": lambda: np.array(
            list(coco_scores(predictions, targets, class_names)["bbox"].summary.values())
        ),
        "pycocotools": lambda: pycocotools_numbers(predictions, targets, class_names),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, np.ndarray] = {}
    for _ in range(config.repeats):
        for name, run in sides.items():
            since = time.perf_counter()
            found[name] = np.nan_to_num(run(), nan=-1.0)
            seconds[name].append(time.perf_counter() - since)
    difference = float(np.abs(found["jaxvision"] - found["pycocotools"]).max())
    pairs = zip(seconds["jaxvision"], seconds["pycocotools"], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "detections": sum(len(each["labels"]) for each in predictions),
        "objects": sum(len(each["labels"]) for each in targets),
    }
    for package in ("faster-coco-eval", "pycocotools"):
        facts[package] = importlib.metadata.version(package)
    console = Console(width=120)
    console.print(
        f"{facts}\nlargest difference of the 12 numbers: {difference:.1e}", highlight=False
    )
    table = Table(title="COCO box evaluation, seconds: median (lowest to highest)")
    for heading in ("pictures", "jaxvision", "pycocotools", "jaxvision / pycocotools"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{config.pictures:,}",
        spread(seconds["jaxvision"], ".2f"),
        spread(seconds["pycocotools"], ".2f"),
        spread(ratios, ".3f"),
    )
    console.print(table)
    if is_disturbed([{"seconds_per_step": seconds}]):
        console.print("NOT A FAIR COMPARISON: other programs were using this machine")
    answer = {
        "environment": facts,
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "numbers": {name: values.tolist() for name, values in found.items()},
        "difference": difference,
        "seconds": seconds,
    }
    if config.json is not None:
        config.json.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    if difference > 1e-6:
        raise UserError(f"the two disagree by {difference:.1e}, expected less than 1e-6")
    return answer


if __name__ == "__main__":
    import tyro

    with exit_on_user_error():
        main(tyro.cli(Config, description=__doc__))
