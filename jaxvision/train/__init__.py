"""Training: state, jitted steps, the loop. It knows no task and no model.

`jaxvision.train.optim` has optimisers and schedules, `jaxvision.train.checkpoint` saving and
restoring, `jaxvision.train.run` run folders.
"""

from jaxvision.train.loop import FitResult, evaluate, fit
from jaxvision.train.state import TrainState, create_state
from jaxvision.train.step import make_eval_step, make_train_step

__all__ = [
    "FitResult",
    "TrainState",
    "create_state",
    "evaluate",
    "fit",
    "make_eval_step",
    "make_train_step",
]
