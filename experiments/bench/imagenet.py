"""Times networks at 224 pixels against torchvision's own: train steps and inference, in turn.

    python experiments/bench/imagenet.py --torch-python .venv-parity/bin/python

On the CPU both compute in float32, PyTorch in channels_last. On a GPU (`--device cuda`, with a jax
for CUDA) both compute in bfloat16, PyTorch by autocast and torch.compile. Pictures are random and
stay on the device, so that neither side waits for data; a train step is SGD with momentum 0.9. The
two take turns, block by block, while the other waits without using the CPU, and what counts is the
ratio of neighbouring blocks.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from classifier import find_torch_python, is_disturbed, ratios_of, spread
from rich.console import Console
from rich.table import Table
from torch_loop import TorchProcess

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import classification_loss
from jaxvision.models import get_model, init_variables
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd
from jaxvision.train.run import enable_compilation_cache

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ("resnet18", "resnet50")
    modes: tuple[Literal["train", "eval"], ...] = ("train", "eval")
    batch_size: int = 8
    repeats: int = 5
    """Blocks of each side."""
    seconds: float = 4.0
    """About how long a block takes."""
    device: Literal["cpu", "cuda"] = "cpu"
    torch_python: Path | None = None
    """A Python that has PyTorch; by default this one, or else .venv-parity's."""
    json: Path | None = None
    """Write the raw numbers to this file."""


class Workload:
    """Our side: one network and what is done with it."""

    def __init__(self, name: str, mode: str, batch_size: int, device: str):
        dtype = jnp.float32 if device == "cpu" else jnp.bfloat16
        model = get_model(name, dtype=dtype)
        images = jax.random.normal(jax.random.key(0), (batch_size, 224, 224, 3))
        variables = init_variables(model, jax.random.key(0), images.shape[1:])
        tx = sgd(0.01, momentum=0.9)
        self.batch = {"image": images, "label": jnp.arange(batch_size) % 1000}
        self.state = create_state(variables, tx)
        self.train_step = make_train_step(classification_loss(model), tx)
        self.predict = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
        self.mode = mode
        self.steps(2)

    def steps(self, number: int) -> float:
        since = time.perf_counter()
        for _ in range(number):
            if self.mode == "train":
                self.state, _ = self.train_step(self.state, self.batch)
            else:
                result = self.predict(self.state.variables, self.batch["image"])
        jax.block_until_ready(self.state if self.mode == "train" else result)
        return time.perf_counter() - since


def time_blocks(config: Config, torch: TorchProcess | None) -> list[dict[str, Any]]:
    """Seconds a step of both sides, block by block."""
    results = []
    for name in config.models:
        for mode in config.modes:
            ours = Workload(name, mode, config.batch_size, config.device)
            sides = {"jaxvision": ours.steps}
            if torch is not None:
                request = {"name": name, "mode": mode, "batch_size": config.batch_size}
                sides["pytorch"] = lambda n, r=request: torch.request(**r, steps=n)["seconds"]
            steps = {k: max(1, round(config.seconds / run(1))) for k, run in sides.items()}
            seconds: dict[str, list[float]] = {k: [] for k in sides}
            for _ in range(config.repeats):
                for k, run in sides.items():
                    seconds[k].append(run(steps[k]) / steps[k])
            results.append({"model": name, "mode": mode, "seconds_per_step": seconds})
    return results


def table_of(results: list[dict[str, Any]], batch_size: int) -> Table:
    table = Table(title=f"Batches of {batch_size} at 224: median (lowest to highest) ms a step")
    for heading in ("model", "", "PyTorch", "jaxvision", "jaxvision / PyTorch"):
        table.add_column(heading, justify="right" if "o" in heading[1:] else "left")
    for result in results:
        seconds, ratios = result["seconds_per_step"], ratios_of(result)
        cells = [
            spread([1000 * s for s in seconds[side]], ".1f") if side in seconds else "not installed"
            for side in ("pytorch", "jaxvision")
        ]
        ratio = spread(ratios, ".2f") if ratios else ""
        table.add_row(result["model"], result["mode"], *cells, ratio)
    return table


def main(config: Config) -> list[dict[str, Any]]:
    if min(config.repeats, config.batch_size) < 1 or config.seconds <= 0:
        raise UserError("--batch-size and --repeats must be at least 1, --seconds above 0")
    torch, python = None, find_torch_python(config.torch_python)
    if python is not None:
        script = str(HERE / "torch_imagenet.py")
        torch = TorchProcess([str(python), script, "--device", config.device])
        if "missing" in torch.facts:
            torch.close()
            torch = None
    console = Console(width=120)
    ours = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    theirs = torch.facts if torch else "PyTorch: not installed (give --torch-python)"
    console.print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores; {ours}; {theirs}")
    try:
        results = time_blocks(config, torch)
    finally:
        if torch is not None:
            torch.close()
    console.print(table_of(results, config.batch_size))
    if is_disturbed(results):
        console.print("NOT A FAIR COMPARISON: other programs were using this machine")
    if config.json is not None:
        config.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    import tyro

    with exit_on_user_error():
        enable_compilation_cache()
        try:
            main(tyro.cli(Config, description=__doc__))
        except ChildProcessError as error:
            raise UserError(str(error)) from error
