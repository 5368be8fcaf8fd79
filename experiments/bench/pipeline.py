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
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from classifier import find_torch_python, is_disturbed, spread
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torch_loop import TorchProcess

from jaxvision.data import Batches, FileDataset, classification_train, load_image_folder, prefetch
from jaxvision.errors import UserError, exit_on_user_error

HERE = Path(__file__).resolve().parent
OUTPUTS = ("float", "bytes")
"""What PyTorch's side makes: normalised float32, or bytes as ours."""
DEPTH_PER_WORKER = 2
"""Batches made ahead for each worker, which is PyTorch's default."""


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


class JaxvisionSide:
    """Our pipeline, which goes on where the block before ended."""

    def __init__(self, dataset: FileDataset, workers: int, batch_size: int):
        self.workers, self.step = workers, 0
        self.batches = Batches(dataset, batch_size=batch_size, transform=classification_train(224))

    def seconds(self, warmup: int, number: int) -> float:
        """Seconds that `number` batches take, after `warmup` that are not counted."""
        stop = self.step + warmup + number
        if self.workers:
            depth = DEPTH_PER_WORKER * self.workers
            # As many more as a loader of PyTorch's is ahead when its block ends.
            batches = prefetch(
                self.batches, self.step, stop + depth, workers=self.workers, depth=depth
            )
        else:
            batches = map(self.batches, range(self.step, stop))
        for _ in range(warmup):
            next(batches)
        since = time.perf_counter()
        for _ in range(number):
            next(batches)
        taken = time.perf_counter() - since
        if self.workers:
            batches.close()
        self.step = stop
        return taken


def time_blocks(
    config: Config, workers: int, dataset: FileDataset, torch: TorchProcess | None
) -> dict[str, Any]:
    """Seconds a picture of all sides, block by block."""
    ours = JaxvisionSide(dataset, workers, config.batch_size)
    sides: dict[str, Callable[[int, int], float]] = {"jaxvision": ours.seconds}
    if torch is not None:
        for output in OUTPUTS:
            sides[f"pytorch, {output}"] = torch_side(torch, output, workers, config.batch_size)
    warmup = DEPTH_PER_WORKER * workers + 1
    numbers = {}
    for name, run in sides.items():
        estimate = run(warmup, 2) / 2
        numbers[name] = config.batches or max(2, round(config.seconds / estimate))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(config.repeats):
        for name, run in sides.items():
            taken = run(warmup, numbers[name])
            seconds[name].append(taken / numbers[name] / config.batch_size)
    return {"workers": workers, "batches": numbers, "seconds_per_step": seconds}


def torch_side(
    torch: TorchProcess, output: str, workers: int, batch_size: int
) -> Callable[[int, int], float]:
    def run(warmup: int, number: int) -> float:
        answer = torch.request(
            output=output, workers=workers, batch_size=batch_size, warmup=warmup, batches=number
        )
        expected = [batch_size, 3, 224, 224]
        assert answer["shape"] == expected, answer["shape"]
        return answer["seconds"]

    return run


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
            ratios = ratios_of(result, output)
            cells.append(spread(ratios, ".2f") if ratios else "")
        table.add_row(str(result["workers"]), *cells)
    return table


def ratios_of(result: dict[str, Any], output: str) -> list[float]:
    """Our throughput over PyTorch's, for each pair of neighbouring blocks: above 1 is quicker."""
    seconds = result["seconds_per_step"]
    pairs = zip(seconds["jaxvision"], seconds.get(f"pytorch, {output}", []), strict=False)
    return [torch / ours for ours, torch in pairs]


def main(config: Config) -> dict[str, Any]:
    batches = 1 if config.batches is None else config.batches
    counts = (config.batch_size, config.pictures, config.repeats, batches)
    if min(counts) < 1 or min(config.workers, default=-1) < 0 or config.seconds <= 0:
        raise UserError(
            "--batch-size, --pictures, --repeats and --batches must be at least 1, --workers at "
            "least 0, --seconds above 0"
        )
    if config.pictures < config.batch_size:
        raise UserError(f"--pictures must be at least --batch-size, {config.batch_size}")
    python = find_torch_python(config.torch_python)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = write_pictures(root, config.pictures)
        dataset = load_image_folder(root, announce=lambda line: None)["train"]
        torch = None
        if python is not None:
            command = [str(python), str(HERE / "torch_pipeline.py"), str(root / "train")]
            torch = TorchProcess(command)
            if "missing" in torch.facts:
                torch.close()
                torch = None
        facts = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "pillow": importlib.metadata.version("pillow"),
            "kilobytes_a_picture": size / (config.pictures + 1) / 1000,
            "pytorch": torch and torch.facts,
        }
        versions = "not installed (give --torch-python a Python that has it and torchvision)"
        if torch is not None:
            versions = f"torch {torch.facts['torch']}, torchvision {torch.facts['torchvision']}"
        console.print(
            f"{facts['date']}, {facts['cores']} cores, load {facts['load']:.1f} before; "
            f"{config.pictures} JPEGs of {facts['kilobytes_a_picture']:.0f} kB, in the page cache\n"
            f"Pillow {facts['pillow']}; PyTorch: {versions}",
            highlight=False,
        )
        try:
            results = [time_blocks(config, n, dataset, torch) for n in config.workers]
        finally:
            if torch is not None:
                torch.close()
    console.print(table_of(results))
    if is_disturbed(results):
        console.print("NOT A FAIR COMPARISON: other programs were using this machine")
    numbers = {
        "environment": facts,
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "results": results,
    }
    if config.json is not None:
        config.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return numbers


if __name__ == "__main__":
    import tyro  # here, so that the functions above can be had without it

    with exit_on_user_error():
        try:
            main(tyro.cli(Config, description=__doc__))
        except ChildProcessError as error:  # whose own words stand above
            raise UserError(str(error)) from error
