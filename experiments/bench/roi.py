"""Times RoIAlign and the pasting of masks against torchvision: the same boxes, in turn, in one run.

    python experiments/bench/roi.py --torch-python .venv-parity/bin/python

1,000 boxes of a picture of 800 x 1088 pixels, on four levels with 256 channels, 7 x 7 bins of 2 x 2
samples: the box head's of a Faster R-CNN, forward, and with the features' gradient. Then a tenth
of the boxes have a mask of 28 x 28 pixels, which becomes one of the picture's. Beside a
CPU-only PyTorch torchvision's compiled operator does not load; one on PyTorch's `grid_sample`
(torch_operators.py) stands in for it, which the table then says.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from classifier import find_torch_python, ratios_of, spread
from rich.console import Console
from rich.table import Table
from torch_loop import TorchProcess
from torch_roi import BINS, SAMPLES, STRIDES, make_boxes, make_masks, make_pyramid

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.ops import multiscale_roi_align, paste_masks
from jaxvision.train.run import enable_compilation_cache

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config:
    boxes: int = 1000
    size: tuple[int, int] = (800, 1088)
    """Of the picture, h and w."""
    channels: int = 256
    repeats: int = 4
    """Blocks of each side."""
    seconds: float = 1.0
    """About how long a block takes; at least one step."""
    torch_python: Path | None = None
    """A Python that has PyTorch and torchvision; by default this one, or else .venv-parity's."""
    device: Literal["cpu", "cuda"] = "cpu"
    """PyTorch's device; ours is jax's default (JAX_PLATFORMS chooses another)."""
    json: Path | None = None
    """Write the raw numbers to this file."""


KINDS = {
    "pool": "multiscale_roi_align, forward",
    "pool_with_gradient": "multiscale_roi_align, forward and backward",
    "paste": "paste_masks",
}


def make_steps(config: Config, kind: str) -> Callable[[int], dict[str, float]]:
    """Returns `number -> seconds, and the mean of what came out` of that many steps."""
    if kind == "paste":
        given = (*make_masks(config.boxes, config.size), config.size)
        return timed(lambda: paste_masks(*given, threshold=None))
    maps = [jnp.asarray(m) for m in make_pyramid(config.size, config.channels)]
    boxes = jnp.asarray(make_boxes(config.boxes, config.size))

    def pool(maps, boxes):
        return multiscale_roi_align(maps, boxes, BINS, [1 / s for s in STRIDES], SAMPLES)

    @jax.jit
    def pool_with_gradient(maps, boxes):
        y, pull = jax.vjp(lambda maps: pool(maps, boxes), maps)
        return y, pull(y)

    with_gradient = kind == "pool_with_gradient"
    run = pool_with_gradient if with_gradient else jax.jit(lambda *given: (pool(*given),))
    return timed(lambda: jax.block_until_ready(run(maps, boxes))[0])


def timed(run: Callable[[], Any]) -> Callable[[int], dict[str, float]]:
    def steps(number: int) -> dict[str, float]:
        since = time.perf_counter()
        for _ in range(number):
            result = run()
        return {"seconds": time.perf_counter() - since, "mean": float(result.mean())}

    steps(1)
    return steps


def main(config: Config) -> list[dict[str, Any]]:
    if min(config.boxes, config.channels, config.repeats, *config.size) < 1:
        raise UserError("--boxes, --size, --channels and --repeats must be at least 1")
    python = find_torch_python(config.torch_python)
    if python is None:
        raise UserError("PyTorch is not installed: give --torch-python a Python that has it")
    torch = TorchProcess([str(python), str(HERE / "torch_roi.py")])
    results = []
    try:
        if "missing" in torch.facts:
            raise UserError(
                f"expected a Python with PyTorch and torchvision, got {python}: "
                f"{torch.facts['missing']}; give another --torch-python"
            )
        for kind in KINDS:
            request = {"boxes": config.boxes, "size": config.size, "channels": config.channels}
            request |= {"kind": kind, "device": config.device}
            sides = {
                "pytorch": lambda n, r=request: torch.request(**r, steps=n),
                "jaxvision": make_steps(config, kind),
            }
            results.append({"kind": kind, **time_in_turn(sides, config)})
    finally:
        torch.close()
    console = Console(width=120)
    console.print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores; {torch.facts}")
    console.print(table_of(results, torch.facts["compiled"]))
    if config.json is not None:
        numbers = {"pytorch": torch.facts, "results": results}
        config.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return results


def time_in_turn(sides: dict[str, Callable], config: Config) -> dict[str, Any]:
    steps, seconds, means = {}, {}, {}
    for side, run in sides.items():
        answer = run(1)
        steps[side] = max(1, round(config.seconds / answer["seconds"]))
        seconds[side], means[side] = [], answer["mean"]
    for _ in range(config.repeats):
        for side, run in sides.items():
            seconds[side].append(run(steps[side])["seconds"] / steps[side])
    return {"seconds_per_step": seconds, "mean": means}


def table_of(results: list[dict[str, Any]], compiled: bool) -> Table:
    table = Table(title="Milliseconds: median (lowest to highest)")
    table.add_column("")
    for heading in ("torchvision's", "torchvision", "jaxvision", "ratio"):
        table.add_column(heading, justify="right")
    pooled = "operator in C++" if compiled else "stand-in on grid_sample"
    for result in results:
        seconds = result["seconds_per_step"]
        torch, ours = ([1000 * s for s in seconds[side]] for side in ("pytorch", "jaxvision"))
        table.add_row(
            KINDS[result["kind"]],
            "Python" if result["kind"] == "paste" else pooled,
            spread(torch, ".0f"),
            spread(ours, ".0f"),
            spread(ratios_of(result), ".2f"),
        )
    return table


if __name__ == "__main__":
    import tyro

    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
