"""Times Selective Search against OpenCV's, picture by picture in turn, and of a whole data set.

    python experiments/bench/proposals.py                  # three minutes on two cores

Both search the same scenes with one thread. OpenCV runs as it comes (scales for larger pictures,
so fewer regions) and with the same colours, scales and similarities as ours; what counts is the
ratio, the median over the pictures. Then `load_proposals` searches scenes in 1 and more processes,
its start included, as a detector's training waits for it once.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what experiments share
from selective_search_methods import sides_of, time_in_turn

from jaxvision.data.detection_sources import load_detection
from jaxvision.data.proposals import load_proposals
from jaxvision.errors import UserError, exit_on_user_error


@dataclass(frozen=True)
class Config:
    sizes: tuple[Literal[128, 224], ...] = (128, 224)
    """Of the scenes, in pixels."""
    modes: tuple[Literal["single", "fast", "quality"], ...] = ("single", "fast", "quality")
    pictures: int = 12
    """Scenes that are timed one by one; a third of them in quality mode."""
    repeats: int = 3
    """Times that each is timed; the quickest counts."""
    processes: tuple[int, ...] = (1, 2)
    scenes: int = 400
    """Scenes that those processes search, in fast mode, of the first size."""
    garments: Literal["auto", "full", "embedded"] = "auto"
    """Which Fashion-MNIST the scenes are drawn from."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    json: Path | None = None
    """Write the raw numbers to this file."""


def scenes_of(config: Config, size: int) -> Any:
    """The first test scenes."""
    count = max(config.pictures, config.scenes)
    splits = load_detection(
        "garment_scenes",
        size=size,
        counts={"train": 1, "val": 1, "test": count},
        data=config.garments,
        data_dir=config.data_dir,
        processes=max(config.processes),
        announce=lambda line: None,
    )
    return splits["test"]


def time_pictures(config: Config, size: int, dataset: Any) -> list[dict[str, Any]]:
    """Seconds a picture of each side and mode."""
    results = []
    for mode in config.modes:
        number = -(-config.pictures // 3) if mode == "quality" else config.pictures
        images = [dataset.image(i) for i in range(number)]
        seconds = time_in_turn(sides_of(mode), images, config.repeats)
        seconds = {name: each.tolist() for name, each in seconds.items()}
        results.append({"size": size, "mode": mode, "seconds": seconds})
    return results


def time_data_set(config: Config, dataset: Any) -> list[dict[str, Any]]:
    """Seconds that all scenes take in so many processes, by the clock."""
    chosen = dataset.subset(np.arange(config.scenes))
    results = []
    for processes in config.processes:
        with tempfile.TemporaryDirectory() as folder:
            since = time.perf_counter()
            load_proposals(chosen, workers=processes, data_dir=folder, announce=lambda line: None)
            seconds = time.perf_counter() - since
        results.append({"processes": processes, "scenes": config.scenes, "seconds": seconds})
    return results


def picture_table(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Milliseconds a picture (median), and our time over theirs")
    for heading in ("pixels", "mode", *results[0]["seconds"], "/ OpenCV", "/ OpenCV, our settings"):
        table.add_column(heading, justify="right")
    for result in results:
        ours, *others = map(np.array, result["seconds"].values())
        cells = [f"{1000 * np.median(each):.1f}" for each in (ours, *others)]
        cells += [f"{np.median(ours / each):.2f}" for each in others]
        table.add_row(f"{result['size']} x {result['size']}", result["mode"], *cells)
    return table


def data_set_table(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="load_proposals, fast mode: scenes a second")
    for heading in ("processes", "scenes", "seconds", "scenes a second"):
        table.add_column(heading, justify="right")
    for result in results:
        rate = result["scenes"] / result["seconds"]
        cells = (result["processes"], result["scenes"], f"{result['seconds']:.1f}", f"{rate:.1f}")
        table.add_row(*map(str, cells))
    return table


def main(config: Config) -> dict[str, Any]:
    numbers = (config.pictures, config.repeats, config.scenes, *config.processes)
    if min(numbers) < 1 or not config.sizes or not config.modes:
        raise UserError(
            "--pictures, --repeats, --scenes and --processes must be at least 1, and --sizes and "
            "--modes name one each"
        )
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(
        f"{facts['date']}, {facts['cores']} cores, load {facts['load']:.1f} before", highlight=False
    )
    datasets = {size: scenes_of(config, size) for size in config.sizes}
    pictures = [
        result
        for size, dataset in datasets.items()
        for result in time_pictures(config, size, dataset)
    ]
    console.print(picture_table(pictures))
    whole = time_data_set(config, datasets[config.sizes[0]])
    console.print(data_set_table(whole))
    found = {
        "environment": facts,
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "pictures": pictures,
        "data_set": whole,
    }
    if config.json is not None:
        config.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    import tyro  # here, so that the functions above can be had without it

    with exit_on_user_error():
        main(tyro.cli(Config, description=__doc__))
