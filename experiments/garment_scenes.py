"""Draws garment_scenes where they are missing, counts what is in them, and writes a preview sheet.

    python experiments/garment_scenes.py --size 128

The sheet (runs/garment_scenes/128.png) has the first scenes of a split, and below each the same
with its garments' boxes, names and masks. The counts, of the full Fashion-MNIST at 128, should be:
4.35 garments a train scene, 3.1 % of the scenes empty, each class 9.7 to 10.5 % of the garments.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from jaxvision.data import DetectionDataset, load_detection
from jaxvision.data.sources import DataChoice
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.report.overlay import draw_objects, enlarge, picture_scale

GAP = 6


@dataclass(frozen=True)
class Config:
    size: Literal[128, 224] = 128
    garments: tuple[int, int] = (1, 8)
    """Fewest and most garments of a scene; 1 1 gives those for localisation."""
    train: int = 20_000
    """Scenes of the train split; it is the first ones of more."""
    val: int = 1_000
    test: int = 2_000
    data: DataChoice = "auto"
    """Which Fashion-MNIST the garments are from."""
    data_dir: Path | None = None
    processes: int | None = None
    """That draw; by default one a core."""
    split: Literal["train", "val", "test"] = "train"
    """Of the preview."""
    preview: int = 12
    """Scenes on the sheet."""
    columns: int = 6
    sheet: Path | None = None
    """Where to write it, instead of runs/garment_scenes/<size>.png."""


def preview_sheet(dataset: DetectionDataset, number: int, columns: int) -> np.ndarray:
    """The first scenes in rows, each above itself with boxes, names and masks: uint8 [h, w, 3]."""
    cells = []
    for index in range(min(number, len(dataset))):
        example = dataset.example(index, masks=True)
        scale = picture_scale(example["image"].shape[:2], shortest=256)
        names = {"class_names": dataset.class_names, "masks": example["masks"], "scale": scale}
        drawn = draw_objects(example["image"], example["boxes"], example["labels"], **names)
        cell = np.concatenate([enlarge(example["image"], scale), drawn])
        cells.append(np.pad(cell, ((0, GAP), (0, GAP), (0, 0)), constant_values=255))
    columns = min(columns, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows)[:-GAP, :-GAP]


def counts_of(dataset: DetectionDataset) -> dict[str, float]:
    """What is in a split: how many scenes and garments, how large, how many of each class."""
    numbers = np.array([len(objects) for objects in dataset.objects])
    boxes = np.concatenate([objects.boxes for objects in dataset.objects])
    labels = np.concatenate([objects.labels for objects in dataset.objects])
    longest = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0)
    shares = np.bincount(labels, minlength=len(dataset.class_names)) / max(len(labels), 1)
    low, middle, high = np.percentile(longest, (5, 50, 95)) if len(longest) else (0, 0, 0)
    return {
        "scenes": len(dataset),
        "garments": int(numbers.sum()),
        "garments a scene": float(numbers.mean()),
        "most in a scene": int(numbers.max()),
        "empty scenes, %": 100 * float((numbers == 0).mean()),
        "longest side, 5 % below": float(low),
        "longest side, median": float(middle),
        "longest side, 5 % above": float(high),
        **{f"{name}, %": 100 * float(shares[k]) for k, name in enumerate(dataset.class_names)},
    }


def main(config: Config) -> dict[str, dict[str, float]]:
    if config.preview < 1 or config.columns < 1:
        raise UserError("--preview and --columns must be at least 1")
    splits = load_detection(
        "garment_scenes",
        size=config.size,
        garments=config.garments,
        counts={"train": config.train, "val": config.val, "test": config.test},
        data=config.data,
        data_dir=config.data_dir,
        processes=config.processes,
    )
    counts = {split: counts_of(dataset) for split, dataset in splits.items()}
    table = Table(title=f"garment_scenes, {config.size} x {config.size}")
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    for name, value in counts["train"].items():
        form = ",d" if isinstance(value, int) else ".1f"
        table.add_row(name, *(format(counts[split][name], form) for split in splits))
    Console().print(table)
    sheet = config.sheet or Path("runs") / "garment_scenes" / f"{config.size}.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    preview = preview_sheet(splits[config.split], config.preview, config.columns)
    Image.fromarray(preview).save(sheet)
    print(f"the first scenes of {config.split}: {sheet}")
    return counts


if __name__ == "__main__":
    import tyro  # here, so that the functions above can be had without it

    with exit_on_user_error():
        main(tyro.cli(Config, description=__doc__))
