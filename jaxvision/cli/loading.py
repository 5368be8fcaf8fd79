"""A `Predictor` of the run folder that a command names, and the thresholds that it is given."""

from pathlib import Path
from typing import Any

from jaxvision.errors import UserError


def open_run(run: Path, which: str, **thresholds: Any) -> Any:
    """Returns the `Predictor` of a run's checkpoint: best, latest or the number of a step."""
    from jaxvision.predict import Predictor
    from jaxvision.train.run import enable_compilation_cache

    enable_compilation_cache()
    return Predictor.from_checkpoint(run, int(which) if which.isdigit() else which, **thresholds)


def check_thresholds(command: Any) -> None:
    """Refuses a detector's thresholds that cannot be, before anything is loaded."""
    most = command.max_detections
    if most is not None and most < 1:
        raise UserError(f"expected --max-detections of at least 1, got {most}")
    for name in ("threshold", "score_threshold", "iou_threshold"):
        given = getattr(command, name, None)
        if given is not None and not 0 <= given <= 1:
            raise UserError(f"expected --{name.replace('_', '-')} from 0 to 1, got {given}")
