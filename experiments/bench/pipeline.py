"""Times decoding and augmenting against torchvision's ImageFolder and DataLoader, in turn.

    python experiments/bench/pipeline.py --torch-python .venv-parity/bin/python

Both read the same JPEG files, cut a random box out, resize it to 224 x 224, mirror half of them and
make batches, with as many workers: threads on our side, processes on PyTorch's, none at 0. Nothing
uses the batches. The files are made here: gradients, noise, edges and text, so that they compress
as photographs do.

Our batches are bytes, which the device turns into floats. So PyTorch's side is timed twice: with
ToTensor and Normalize on the host, as its references do, and with bytes too. The sides take turns,
block by block; each block starts with batches that are not counted, more than a loader that waits
has ready. What counts is the ratio of neighbouring blocks.
"""

import importlib.metadata
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
from PIL import Image, ImageDraw
from rich.table import Table
from torch_loop import TorchProcess

from jaxvision.data import Batches, FileDataset, classification_train, load_image_folder
from jaxvision.errors import UserError, exit_on_user_error

OUTPUTS = ("float", "bytes")
"""What PyTorch's side makes: normalised float32, or bytes as ours."""


@dataclass(frozen=True)
class Config:
    workers: tuple[int, ...] = (0, 2)
    batch_size: int = 64
    pictures: int = 400
    """JPEG files, of 500 x 375 pixels."""
    repeats: int = 5
    """Blocks of each side."""
    seconds: float = 5.0
    """About how long a block takes."""
    batches: int | None = None
    """Batches in a block of either side, instead of --seconds."""
    torch_python: Path | None = None
    """A Python that has PyTorch and torchvision; by default this one, or else .venv-parity's."""
    json: Path | None = None
    """Write the raw numbers to this file."""


def write_pictures(root: Path, number: int, *, height: int = 375, width: int = 500) -> int:
    """Writes `number` JPEGs in two classes under train, one more under val; returns their bytes."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    size = 0
    for i in range(number + 1):
        rng = np.random.default_rng(i)
        planes = []
        for _ in range(3):
            slope, (a, b) = rng.uniform(-0.3, 0.3, 2), rng.uniform(8, 60, 2)
            planes.append(slope[0] * x + slope[1] * y + 40 * np.sin(x / a) * np.cos(y / b))
        noise = rng.normal(0, 6, (height, width, 1)) + rng.normal(0, 2, (height, width, 3))
        image = Image.fromarray(
            np.clip(np.stack(planes, -1) + 128 + noise, 0, 255).astype(np.uint8)
        )
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            place = tuple(rng.integers(0, (width, height)).tolist())
            colour = tuple(rng.integers(0, 256, 3).tolist())
            draw.text(place, f"picture {i} of {number}", fill=colour)
            draw.ellipse([place, (place[0] + 60, place[1] + 40)], outline=colour, width=3)
        folder = root / ("val" if i == number else "train") / ("ants", "bees")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.jpg", quality=90)
        size += (folder / f"{i}.jpg").stat().st_size
    return size


def make_sides(
    config: Config, workers: int, dataset: FileDataset, torch: TorchProcess | None
) -> dict[str, Side]:
    batch_size = config.batch_size
    batches = Batches(dataset, batch_size=batch_size, transform=classification_train(224))
    sides: dict[str, Side] = {"jaxvision": LoaderSide(batches, workers)}
    if torch is not None:
        for output in OUTPUTS:
            request = {"output": output, "workers": workers, "batch_size": batch_size}
            sides[f"pytorch, {output}"] = torch_side(torch, [batch_size, 3, 224, 224], **request)
    return sides


def table_of(results: list[dict[str, Any]]) -> Table:
    table = Table(title="Pictures a second, JPEG 500 x 375 to 224 x 224: median (range of blocks)")
    headings = ("workers", "jaxvision", *(f"PyTorch, {output}" for output in OUTPUTS))
    for heading in (*headings, *(f"jaxvision / PyTorch, {output}" for output in OUTPUTS)):
        table.add_column(heading, justify="right")
    for result in results:
        seconds = result["seconds_per_step"]
        cells = [spread([1 / s for s in seconds["jaxvision"]], ",.0f")]
        for output in OUTPUTS:
            blocks = seconds.get(f"pytorch, {output}")
            cells.append(spread([1 / s for s in blocks], ",.0f") if blocks else "not installed")
        for output in OUTPUTS:
            ratios = ratios_of(result, f"pytorch, {output}")
            cells.append(spread(ratios, ".2f") if ratios else "")
        table.add_row(str(result["workers"]), *cells)
    return table


def main(config: Config) -> dict[str, Any]:
    check(config)
    console = make_console(140)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = write_pictures(root, config.pictures)
        dataset = load_image_folder(root, announce=lambda line: None)["train"]
        with open_torch(config.torch_python, "torch_pipeline.py", root / "train") as torch:
            facts = {
                "date": time.strftime("%Y-%m-%d %H:%M"),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
                "pillow": importlib.metadata.version("pillow"),
                "kilobytes_a_picture": size / (config.pictures + 1) / 1000,
                "pytorch": torch and torch.facts,
            }
            console.print(
                f"{facts['date']}, {facts['cores']} cores, load {facts['load']:.1f} before; "
                f"{config.pictures} JPEGs of {facts['kilobytes_a_picture']:.0f} kB, in the page "
                f"cache\nPillow {facts['pillow']}; PyTorch: {versions_of(torch)}",
                highlight=False,
            )
            results = [
                time_blocks(config, n, make_sides(config, n, dataset, torch))
                for n in config.workers
            ]
    console.print(table_of(results))
    return conclude(console, config, facts, results)


if __name__ == "__main__":
    import tyro  # here, so that the functions above can be had without it

    with exit_on_user_error():
        try:
            main(tyro.cli(Config, description=__doc__))
        except ChildProcessError as error:  # whose own words stand above
            raise UserError(str(error)) from error
