"""Times resnet18's layers one by one against PyTorch's: what holds the whole network back.

    python experiments/bench/layers.py --torch-python .venv-parity/bin/python

Forward and backward of each distinct layer at batch 8 and 224 pixels in float32, in turn. The last
column is what the layer's difference makes up in a training step, as often as it occurs there.
"""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from classifier import find_torch_python, ratios_of, spread
from rich.console import Console
from rich.table import Table
from torch_loop import TorchProcess

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.ops import batch_norm, conv2d, max_pool
from jaxvision.train.run import enable_compilation_cache

HERE = Path(__file__).resolve().parent
LAYERS = [  # name, kind, arguments, [h, w, c] of the input, how often in resnet18
    ("stem 7x7/2", "conv", (3, 64, 7, 2), (224, 224, 3), 1),
    ("norm+relu 112", "norm", (64,), (112, 112, 64), 1),
    ("max-pool 3/2", "pool", (), (112, 112, 64), 1),
    ("3x3 64", "conv", (64, 64, 3, 1), (56, 56, 64), 4),
    ("norm+relu 56", "norm", (64,), (56, 56, 64), 4),
    ("3x3/2 64-128", "conv", (64, 128, 3, 2), (56, 56, 64), 1),
    ("1x1/2 64-128", "conv", (64, 128, 1, 2), (56, 56, 64), 1),
    ("3x3 128", "conv", (128, 128, 3, 1), (28, 28, 128), 3),
    ("norm+relu 28", "norm", (128,), (28, 28, 128), 5),
    ("3x3/2 128-256", "conv", (128, 256, 3, 2), (28, 28, 128), 1),
    ("3x3 256", "conv", (256, 256, 3, 1), (14, 14, 256), 3),
    ("norm+relu 14", "norm", (256,), (14, 14, 256), 5),
    ("3x3/2 256-512", "conv", (256, 512, 3, 2), (14, 14, 256), 1),
    ("3x3 512", "conv", (512, 512, 3, 1), (7, 7, 512), 3),
    ("norm+relu 7", "norm", (512,), (7, 7, 512), 5),
]


@dataclass(frozen=True)
class Config:
    batch_size: int = 8
    repeats: int = 4
    """Blocks of each side."""
    seconds: float = 0.5
    """About how long a block takes."""
    torch_python: Path | None = None
    """A Python that has PyTorch; by default this one, or else .venv-parity's."""


def apply_layer(kind: str, arguments: tuple[int, ...], params: dict[str, Any], x):
    if kind == "conv":
        _, _, kernel, stride = arguments
        return conv2d(x, params["kernel"], (stride, stride), (kernel // 2, kernel // 2))
    if kind == "norm":
        return jax.nn.relu(batch_norm(x, params["scale"], params["bias"])[0])
    return max_pool(x, 3, stride=2, padding=1)


def make_steps(kind: str, arguments: tuple[int, ...], shape: tuple[int, ...], input_gradient: bool):
    """Returns `number -> seconds` of forward and backward."""
    params = {}
    if kind == "conv":
        channels, features, kernel, _ = arguments
        size = (kernel, kernel, channels, features)
        params["kernel"] = 0.05 * jax.random.normal(jax.random.key(1), size)
    elif kind == "norm":
        params = {"scale": jnp.ones(arguments), "bias": jnp.zeros(arguments)}
    x = jax.random.normal(jax.random.key(0), shape)
    y = apply_layer(kind, arguments, params, x)
    cotangent = jnp.ones_like(y)

    @jax.jit
    def gradients(params, x, cotangent):
        if input_gradient:
            y, pull = jax.vjp(lambda p, x: apply_layer(kind, arguments, p, x), params, x)
        else:
            y, pull = jax.vjp(lambda p: apply_layer(kind, arguments, p, x), params)
        return y, pull(cotangent)

    def steps(number: int) -> float:
        since = time.perf_counter()
        for _ in range(number):
            jax.block_until_ready(gradients(params, x, cotangent))
        return time.perf_counter() - since

    steps(2)
    return steps


def main(config: Config) -> list[dict[str, Any]]:
    python = find_torch_python(config.torch_python)
    if python is None:
        raise UserError("PyTorch is not installed: give --torch-python a Python that has it")
    torch = TorchProcess([str(python), str(HERE / "torch_layers.py")])
    results = []
    try:
        for name, kind, arguments, size, times in LAYERS:
            shape, with_input = (config.batch_size, *size), name != LAYERS[0][0]
            request = {"kind": kind, "arguments": arguments, "shape": shape}
            request["input_gradient"] = with_input
            sides = {
                "jaxvision": make_steps(kind, arguments, shape, with_input),
                "pytorch": lambda n, r=request: torch.request(**r, steps=n)["seconds"],
            }
            steps = {k: max(2, round(config.seconds / (run(3) / 3))) for k, run in sides.items()}
            seconds: dict[str, list[float]] = {k: [] for k in sides}
            for _ in range(config.repeats):
                for k, run in sides.items():
                    seconds[k].append(run(steps[k]) / steps[k])
            results.append({"layer": name, "times": times, "seconds_per_step": seconds})
    finally:
        torch.close()
    console = Console(width=120)
    console.print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores; {torch.facts}")
    console.print(table_of(results))
    return results


def table_of(results: list[dict[str, Any]]) -> Table:
    table = Table(title="Forward and backward, ms: median (lowest to highest)")
    table.add_column("layer")
    for heading in ("times", "PyTorch", "jaxvision", "ratio", "difference in a step, ms"):
        table.add_column(heading, justify="right")
    for result in results:
        seconds = result["seconds_per_step"]
        torch, ours = ([1000 * s for s in seconds[side]] for side in ("pytorch", "jaxvision"))
        difference = result["times"] * (statistics.median(ours) - statistics.median(torch))
        table.add_row(
            result["layer"],
            str(result["times"]),
            spread(torch, ".1f"),
            spread(ours, ".1f"),
            spread(ratios_of(result), ".2f"),
            f"{difference:+.1f}",
        )
    return table


if __name__ == "__main__":
    import tyro

    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
