"""The flags of how a detector is trained, and the optimiser that they mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxvision.train.optim import LearningRate, adamw, sgd


@dataclass(frozen=True)
class RunFlags:
    workers: int = 1
    """Threads that make batches ahead of time."""
    seed: int = 0
    run_dir: Path | None = None
    """The run folder, by default runs/<experiment>/<time>."""
    resume: bool = False
    """Go on with the run in --run-dir, or with the newest one."""
    log_every: int | None = None
    """Log every so many steps, by default about five times an epoch."""


@dataclass(frozen=True)
class OptimizerFlags:
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    """AdamW's, which is times the rate; for sgd, where it is L2, take 1e-4 to 5e-4."""
    ema_decay: float | None = 0.998
    """Of the moving average of the weights, which is what is evaluated and kept; None: none."""


def optimizer_of(config: Any, rate: LearningRate, *, nesterov: bool = False) -> Any:
    """Returns AdamW, or SGD with a momentum of 0.9, as the flags of `config` say."""
    if config.optimizer == "adamw":
        return adamw(rate, weight_decay=config.weight_decay)
    return sgd(rate, momentum=0.9, nesterov=nesterov, weight_decay=config.weight_decay)
