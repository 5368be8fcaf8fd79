"""What the benchmarks of input pipelines share: two sides that take turns, and what is said of it.

A side is `(warmup, number) -> seconds` that `number` batches take after `warmup` that don't count.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from classifier import find_torch_python, is_disturbed
from rich.console import Console
from torch_loop import TorchProcess

from jaxvision.data import prefetch
from jaxvision.errors import UserError

HERE = Path(__file__).resolve().parent
DEPTH_PER_WORKER = 2
"""Batches made ahead for each worker, which is PyTorch's default."""

Side = Callable[[int, int], float]


class LoaderSide:
    """Our pipeline, which goes on where the block before ended."""

    def __init__(self, batches: Callable[[int], Any], workers: int):
        self.batches, self.workers, self.step = batches, workers, 0

    def __call__(self, warmup: int, number: int) -> float:
        stop, depth = self.step + warmup + number, DEPTH_PER_WORKER * self.workers
        batches = map(self.batches, range(self.step, stop))
        if self.workers:
            # As many more as a loader of PyTorch's is ahead when its block ends.
            batches = prefetch(
                self.batches, self.step, stop + depth, workers=self.workers, depth=depth
            )
        for _ in range(warmup):
            next(batches)
        since = perf_counter()
        for _ in range(number):
            next(batches)
        taken = perf_counter() - since
        if self.workers:
            batches.close()
        self.step = stop
        return taken


def torch_side(torch: TorchProcess, shape: list[int], **request: Any) -> Side:
    """PyTorch's pipeline in its process, asked for by `request`, which gives batches of `shape`."""

    def seconds(warmup: int, number: int) -> float:
        answer = torch.request(warmup=warmup, batches=number, **request)
        assert answer["shape"] == shape, answer["shape"]
        return answer["seconds"]

    return seconds


def time_blocks(config: Any, workers: int, sides: dict[str, Side]) -> dict[str, Any]:
    """Seconds a picture of all sides, block by block."""
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


def ratios_of(result: dict[str, Any], other: str) -> list[float]:
    """Our throughput over `other`'s, for each pair of neighbouring blocks: above 1 is quicker."""
    seconds = result["seconds_per_step"]
    pairs = zip(seconds["jaxvision"], seconds.get(other, []), strict=False)
    return [theirs / ours for ours, theirs in pairs]


def check(config: Any) -> None:
    """Refuses flags with which there is nothing to time."""
    batches = 1 if config.batches is None else config.batches
    counts = (config.batch_size, config.pictures, config.repeats, batches)
    if min(counts) < 1 or min(config.workers, default=-1) < 0 or config.seconds <= 0:
        raise UserError(
            "--batch-size, --pictures, --repeats and --batches must be at least 1, --workers at "
            "least 0, --seconds above 0"
        )
    if config.pictures < config.batch_size:
        raise UserError(f"--pictures must be at least --batch-size, {config.batch_size}")


@contextmanager
def open_torch(given: Path | None, script: str, argument: Path) -> Iterator[TorchProcess | None]:
    """The process of PyTorch's side, None where there is no PyTorch with torchvision."""
    python = find_torch_python(given)
    if python is None:
        yield None
        return
    torch = TorchProcess([str(python), str(HERE / script), str(argument)])
    try:
        yield None if "missing" in torch.facts else torch
    finally:
        torch.close()


def versions_of(torch: TorchProcess | None) -> str:
    if torch is None:
        return "not installed (give --torch-python a Python that has it and torchvision)"
    facts = torch.facts
    return f"torch {facts['torch']}, torchvision {facts['torchvision']}, {facts['threads']} threads"


def make_console(width: int) -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=width)


def conclude(
    console: Console, config: Any, facts: dict[str, Any], results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Warns of a machine that was in use; returns all numbers, and writes them where asked to."""
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
