"""Times suppression and matching of boxes against torchvision: the same boxes, in turn, in one run.

    python experiments/bench/box_ops.py --torch-python .venv-parity/bin/python

nms and batched_nms keep all there is to keep, as torchvision does, and again only the 1,000 best,
which is what a detector asks for: torchvision then computes everything and cuts. A step of `match`
is the IoUs with 20 objects and the RPN's matching. Beside a CPU-only PyTorch torchvision's compiled
nms does not load; a loop of PyTorch operations stands in for it, which the table then says. It is
several times slower than the compiled one, so those ratios flatter ours.
"""

import json
import os
import statistics
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
from torch_box_ops import MATCHER, OBJECTS, THRESHOLDS, make_boxes
from torch_loop import TorchProcess

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.ops import batched_nms, box_iou, match, nms
from jaxvision.train.run import enable_compilation_cache

HERE = Path(__file__).resolve().parent
BEST = 1000


@dataclass(frozen=True)
class Config:
    counts: tuple[int, ...] = (1000, 4000, 20000)
    """How many boxes; `match` also takes these as anchors."""
    repeats: int = 4
    """Blocks of each side."""
    seconds: float = 0.5
    """About how long a block takes; at least one step."""
    torch_python: Path | None = None
    """A Python that has PyTorch and torchvision; by default this one, or else .venv-parity's."""
    device: Literal["cpu", "cuda"] = "cpu"
    """PyTorch's device; ours is jax's default (JAX_PLATFORMS chooses another)."""
    json: Path | None = None
    """Write the raw numbers to this file."""


def cases(counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """What is asked of both sides; `most` is for ours only."""
    suppress = [
        {"kind": kind, "scene": scene, "count": count, "most": most}
        for kind, scene in (("nms", "crowded"), ("nms", "sparse"), ("batched_nms", "crowded"))
        for count in counts
        for most in sorted({count, min(count, BEST)}, reverse=True)
    ]
    matching = [{"kind": "match", "scene": "crowded", "count": n, "most": n} for n in counts]
    return suppress + matching


def make_steps(kind: str, scene: str, count: int, most: int) -> Callable[[int], dict[str, Any]]:
    """Returns `number -> seconds and results` of that many steps."""
    boxes, scores, labels = map(jnp.asarray, make_boxes(count, scene))
    if kind == "nms":
        run = jax.jit(lambda b, s, _: nms(b, s, THRESHOLDS[kind], most)[1].sum())
    elif kind == "batched_nms":
        run = jax.jit(lambda b, s, k: batched_nms(b, s, k, THRESHOLDS[kind], most)[1].sum())
    else:
        objects = jnp.asarray(make_boxes(OBJECTS, scene)[0])
        run = jax.jit(lambda b, _, __: match(box_iou(objects, b), *MATCHER))

    def steps(number: int) -> dict[str, Any]:
        since = time.perf_counter()
        for _ in range(number):
            result = jax.block_until_ready(run(boxes, scores, labels))
        seconds = time.perf_counter() - since
        real = (result >= 0).sum() if kind == "match" else result
        return {"seconds": seconds, "results": int(real)}

    steps(2)
    return steps


def main(config: Config) -> list[dict[str, Any]]:
    if min(config.repeats, *config.counts) < 1:
        raise UserError("--repeats and --counts must be at least 1")
    python = find_torch_python(config.torch_python)
    if python is None:
        raise UserError("PyTorch is not installed: give --torch-python a Python that has it")
    torch = TorchProcess([str(python), str(HERE / "torch_box_ops.py")])
    results = []
    try:
        if "missing" in torch.facts:
            raise UserError(
                f"expected a Python with PyTorch and torchvision, got {python}: "
                f"{torch.facts['missing']}; give another --torch-python"
            )
        for case in cases(config.counts):
            request = {k: v for k, v in case.items() if k != "most"} | {"device": config.device}
            sides = {
                "pytorch": lambda n, r=request: torch.request(**r, steps=n),
                "jaxvision": make_steps(**case),
            }
            results.append({**case, **time_in_turn(sides, config)})
    finally:
        torch.close()
    console = Console(width=120)
    console.print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores; {torch.facts}")
    console.print(table_of(results, torch.facts["compiled_nms"]))
    if config.json is not None:
        numbers = {"pytorch": torch.facts, "results": results}
        config.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return results


def time_in_turn(sides: dict[str, Callable], config: Config) -> dict[str, Any]:
    steps, seconds, counted = {}, {}, {}
    for side, run in sides.items():
        answer = run(1)
        steps[side] = max(1, round(config.seconds / answer["seconds"]))
        seconds[side], counted[side] = [], answer["results"]
    for _ in range(config.repeats):
        for side, run in sides.items():
            seconds[side].append(run(steps[side])["seconds"] / steps[side])
    return {"seconds_per_step": seconds, "results": counted}


def table_of(results: list[dict[str, Any]], compiled: bool) -> Table:
    other = "torchvision" if compiled else "PyTorch loop"
    table = Table(title="Milliseconds: median (lowest to highest)")
    table.add_column("what")
    for heading in ("boxes", "kept", "PyTorch side", "PyTorch", "jaxvision", "ratio"):
        table.add_column(heading, justify="right")
    for result in results:
        seconds = result["seconds_per_step"]
        torch, ours = ([1000 * s for s in seconds[side]] for side in ("pytorch", "jaxvision"))
        digits = ".2f" if statistics.median(ours) < 10 else ".0f"
        best = "" if result["most"] == result["count"] else f", {result['most']:,} best"
        table.add_row(
            f"{result['kind']}, {result['scene']}{best}",
            f"{result['count']:,}",
            f"{result['results']['jaxvision']:,}",
            "torchvision" if result["kind"] == "match" else other,
            spread(torch, ".1f"),
            spread(ours, digits),
            spread(ratios_of(result), ".3f"),
        )
    return table


if __name__ == "__main__":
    import tyro

    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
