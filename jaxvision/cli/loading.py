"""A `Predictor` of the run folder that a command names."""

from pathlib import Path
from typing import Any


def open_run(run: Path, which: str, **thresholds: Any) -> Any:
    """Returns the `Predictor` of a run's checkpoint: best, latest or the number of a step."""
    from jaxvision.predict import Predictor
    from jaxvision.train.run import enable_compilation_cache

    enable_compilation_cache()
    return Predictor.from_checkpoint(run, int(which) if which.isdigit() else which, **thresholds)
