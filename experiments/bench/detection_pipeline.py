"""Times augmentation for detection against torchvision's transforms v2 and a DataLoader, in turn.

    python experiments/bench/detection_pipeline.py --torch-python .venv-parity/bin/python

Both read the same pictures with boxes from memory, mirror half of them, resize them by a random
factor from 0.5 to 1.5, cut or pad to the size they had, change brightness, contrast and saturation,
leave out boxes that are hardly there, and make batches of bytes, with as many workers: threads on
our side, processes on PyTorch's, none at 0. Both resize without antialias. Ours pads boxes to fixed
shapes; PyTorch's gives lists. Nothing uses the batches. The pictures are made here: smooth colours,
noise and rectangles, 1 to 8 objects each.

What is not augmented is timed too, as `plain`: batches gathered from memory. The sides take turns,
block by block, as in `pipeline.py`; what counts is the ratio of neighbouring blocks.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from classifier import spread
from loader_turns import (
    LoaderSide,
    Side,
    check,
    conclude,
    make_console,
    open_torch,
    ratios_of,
    time_blocks,
    torch_side,
    versions_of,
)
from rich.table import Table
from torch_loop import TorchProcess

from jaxvision.data import DetectionBatches, color_jitter, compose
from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.detection_transforms import random_flip, scale_jitter
from jaxvision.errors import UserError, exit_on_user_error

WORK = ("augmented", "plain")
SCALE, COLOR = (0.5, 1.5), 0.4
"""The range of the scale, and how far brightness, contrast and saturation change."""


@dataclass(frozen=True)
class Config:
    workers: tuple[int, ...] = (0, 2)
    batch_size: int = 32
    pictures: int = 1000
    size: int = 128
    """Height and width of the pictures."""
    repeats: int = 5
    """Blocks of each side."""
    seconds: float = 3.0
    """About how long a block takes."""
    batches: int | None = None
    """Batches in a block of either side, instead of --seconds."""
    torch_python: Path | None = None
    """A Python that has PyTorch and torchvision; by default this one, or else .venv-parity's."""
    json: Path | None = None
    """Write the raw numbers to this file."""


def make_scenes(number: int, size: int) -> DetectionDataset:
    """Pictures with 1 to 8 rectangles on smooth colours with noise."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    images, objects = np.empty((number, size, size, 3), np.uint8), []
    for i in range(number):
        rng = np.random.default_rng(i)
        slopes, base = rng.uniform(-0.6, 0.6, (2, 3)), rng.uniform(60, 190, 3)
        image = base + x[..., None] * slopes[0] + y[..., None] * slopes[1]
        image += rng.normal(0, 6, (size, size, 1))
        boxes = []
        for _ in range(int(rng.integers(1, 9))):
            w, h = (int(n) for n in rng.integers(max(2, size // 6), max(3, size // 2), 2))
            left, top = int(rng.integers(size - w)), int(rng.integers(size - h))
            image[top : top + h, left : left + w] = rng.uniform(0, 255, 3)
            boxes.append((float(left), float(top), float(left + w), float(top + h)))
        images[i] = np.clip(image, 0, 255)
        objects.append(Objects.of(boxes, rng.integers(0, 10, len(boxes)).tolist()))
    return DetectionDataset(
        images=images,
        names=tuple(f"scene {i}" for i in range(number)),
        image_ids=np.arange(number),
        objects=tuple(objects),
        class_names=tuple("0123456789"),
        name="scenes",
        split="train",
        source="made by the benchmark",
    )


def write_scenes(path: Path, scenes: DetectionDataset) -> None:
    """Writes pictures and objects, one after another, for the other process."""
    np.savez(
        path,
        images=scenes.images,
        boxes=np.concatenate([objects.boxes for objects in scenes.objects]),
        labels=np.concatenate([objects.labels for objects in scenes.objects]),
        counts=np.array([len(objects) for objects in scenes.objects]),
    )


def make_sides(
    config: Config, workers: int, work: str, scenes: DetectionDataset, torch: TorchProcess | None
) -> dict[str, Side]:
    transform = None
    if work == "augmented":
        transform = compose(
            random_flip(0.5),
            scale_jitter(scenes.images.shape[1:3], SCALE),
            color_jitter(COLOR, COLOR, COLOR),
        )
    batches = DetectionBatches(scenes, config.batch_size, transform=transform)
    sides: dict[str, Side] = {"jaxvision": LoaderSide(batches, workers)}
    if torch is not None:
        shape = [config.batch_size, 3, config.size, config.size]
        request = {"work": work, "workers": workers, "batch_size": config.batch_size}
        sides["pytorch"] = torch_side(torch, shape, **request)
    return sides


def table_of(results: list[dict[str, Any]], size: int) -> Table:
    table = Table(title=f"Pictures a second, {size} x {size}, with boxes: median (range of blocks)")
    for heading in ("", "workers", "jaxvision", "PyTorch", "jaxvision / PyTorch"):
        table.add_column(heading, justify="right" if heading else "left")
    for result in results:
        seconds = result["seconds_per_step"]
        cells = [spread([1 / s for s in seconds["jaxvision"]], ",.0f"), "not installed", ""]
        if "pytorch" in seconds:
            cells[1] = spread([1 / s for s in seconds["pytorch"]], ",.0f")
            cells[2] = spread(ratios_of(result, "pytorch"), ".2f")
        table.add_row(result["work"], str(result["workers"]), *cells)
    return table


def main(config: Config) -> dict[str, Any]:
    check(config)
    if config.size < 16:
        raise UserError(f"--size must be at least 16, got {config.size}")
    console = make_console(120)
    scenes = make_scenes(config.pictures, config.size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenes.npz"
        write_scenes(path, scenes)
        with open_torch(config.torch_python, "torch_detection_pipeline.py", path) as torch:
            facts = {
                "date": time.strftime("%Y-%m-%d %H:%M"),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
                "pytorch": torch and torch.facts,
            }
            console.print(
                f"{facts['date']}, {facts['cores']} cores, load {facts['load']:.1f} before; "
                f"{config.pictures} pictures in memory\nPyTorch: {versions_of(torch)}",
                highlight=False,
            )
            results = [
                {
                    "work": work,
                    **time_blocks(config, n, make_sides(config, n, work, scenes, torch)),
                }
                for work in WORK
                for n in config.workers
            ]
    console.print(table_of(results, config.size))
    return conclude(console, config, facts, results)


if __name__ == "__main__":
    import tyro  # here, so that the functions above can be had without it

    with exit_on_user_error():
        try:
            main(tyro.cli(Config, description=__doc__))
        except ChildProcessError as error:  # whose own words stand above
            raise UserError(str(error)) from error
