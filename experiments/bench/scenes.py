"""Times garment_scenes: drawing them in parallel processes, and reading them back.

    python experiments/bench/scenes.py

Drawing is the whole preparation, from Fashion-MNIST in memory to records on the disk and decoded
pictures beside them, in a folder that is deleted afterwards; the time includes starting the
processes. From it follows how long 10,000 scenes take, which should be less than three minutes.
Reading is from those files, in an order that is shuffled, after one pass that is not counted:
single examples with and without masks, and whole batches of pictures.
"""

import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from jaxvision.data import DetectionDataset, epoch_order, load_detection, load_splits
from jaxvision.errors import UserError, exit_on_user_error


def say_nothing(line: str) -> None: ...


@dataclass(frozen=True)
class Config:
    sizes: tuple[Literal[128, 224], ...] = (128, 224)
    processes: tuple[int, ...] = (1, 2)
    scenes: int = 2000
    """Scenes drawn for each size and number of processes; the extrapolation is from them."""
    batch_size: int = 64
    repeats: int = 3
    """Passes over the scenes when reading."""
    data: Literal["full", "embedded", "auto"] = "auto"
    """Which Fashion-MNIST the garments are from."""
    json: Path | None = None
    """Write the raw numbers to this file."""


def time_drawing(config: Config, size: int, processes: int, folder: Path) -> dict[str, float]:
    """Seconds that the preparation takes, and until another start has it."""
    options = {
        "size": size,
        "counts": {"train": config.scenes, "val": 1, "test": 1},
        "data": config.data,
        "data_dir": folder,
        "processes": processes,
        "announce": say_nothing,
    }
    # The garments once: what was drawn before goes, and is drawn anew from them.
    shutil.rmtree(folder / "garment_scenes", ignore_errors=True)
    load_splits("fashion_mnist", data=config.data, data_dir=folder, announce=say_nothing)
    since = time.perf_counter()
    load_detection("garment_scenes", **options)
    drawn = time.perf_counter() - since
    since = time.perf_counter()
    load_detection("garment_scenes", **options)
    return {"prepare": drawn, "load": time.perf_counter() - since}


def time_reading(dataset: DetectionDataset, batch_size: int, repeats: int) -> dict[str, float]:
    """Pictures a second, the median of the passes, of each way of reading them."""
    order = epoch_order(len(dataset), seed=0, epoch=0)

    def examples(masks: bool) -> None:
        for index in order:
            dataset.example(int(index), masks=masks)

    def batches() -> None:
        for start in range(0, len(order), batch_size):
            dataset.images[order[start : start + batch_size]]

    ways = {
        "examples": lambda: examples(False),
        "examples with masks": lambda: examples(True),
        "batches of pictures": batches,
    }
    rates = {}
    for name, read in ways.items():
        read()
        seconds = []
        for _ in range(repeats):
            since = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - since)
        rates[name] = len(order) / median(seconds)
    return rates


def main(config: Config) -> dict[str, Any]:
    if min(config.scenes, config.batch_size, config.repeats, *config.processes) < 1:
        raise UserError("--scenes, --batch-size, --repeats and --processes must be at least 1")
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    console = Console()
    console.print(f"{facts['date']}, {facts['cores']} cores, load {facts['load']:.1f} before")
    drawing, reading = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size in config.sizes:
            for processes in config.processes:
                seconds = time_drawing(config, size, processes, Path(folder))
                drawing.append({"size": size, "processes": processes, **seconds})
                if processes == config.processes[-1]:
                    splits = load_detection(
                        "garment_scenes",
                        size=size,
                        counts={"train": config.scenes, "val": 1, "test": 1},
                        data=config.data,
                        data_dir=folder,
                        announce=say_nothing,
                    )
                    rates = time_reading(splits["train"], config.batch_size, config.repeats)
                    reading.append({"size": size, **rates})
    console.print(drawing_table(drawing, config.scenes), reading_table(reading))
    numbers = {
        "environment": facts,
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "drawing": drawing,
        "reading": reading,
    }
    if config.json is not None:
        config.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return numbers


def drawing_table(results: list[dict[str, Any]], scenes: int) -> Table:
    table = Table(title=f"Preparing {scenes:,} scenes")
    headings = ("size", "processes", "seconds", "scenes a second", "10,000 scenes, s", "a start, s")
    for heading in headings:
        table.add_column(heading, justify="right")
    for result in results:
        rate = scenes / result["prepare"]
        cells = (f"{result['prepare']:.1f}", f"{rate:,.0f}", f"{10_000 / rate:.0f}")
        sizes = (str(result["size"]), str(result["processes"]))
        table.add_row(*sizes, *cells, f"{result['load']:.2f}")
    return table


def reading_table(results: list[dict[str, Any]]) -> Table:
    names = [name for name in results[0] if name != "size"]
    table = Table(title="Reading, pictures a second")
    for heading in ("size", *names):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(str(result["size"]), *(f"{result[name]:,.0f}" for name in names))
    return table


if __name__ == "__main__":
    import tyro  # here, so that the functions above can be had without it

    with exit_on_user_error():
        main(tyro.cli(Config, description=__doc__))
