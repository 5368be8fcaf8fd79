"""The whole state of a training run, as arrays: nothing in it that a checkpoint could not hold."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxvision.types import Variables


@flax.struct.dataclass
class TrainState:
    """What a train step takes and returns.

    `step` counts optimiser updates (int32 scalar). `ema`, where asked for, holds the exponential
    moving average of `params` and `batch_stats`, and is what evaluation and prediction then use.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables to evaluate with: the moving average where there is one."""
        if self.ema is not None:
            return self.ema
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    variables: Variables, tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """Returns the state at step 0 of training `variables` with `tx`.

    The arrays are copied, because a train step donates its state: `variables` stays usable. Where
    they are bound to a device or a mesh, as `jax.device_put` does it, all of the state is.
    """
    params = jax.tree.map(copied, variables["params"])
    batch_stats = jax.tree.map(copied, variables.get("batch_stats", {}))
    average = None
    if ema:
        average = jax.tree.map(copied, {"params": params, "batch_stats": batch_stats})
    # One program: op by op it would be one for each shape.
    opt_state = jax.jit(tx.init)(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, average)
    return _bound_together(state)


def copied(x: Any) -> jax.Array:
    """Returns a copy on the device. Unlike `jnp.array` it compiles nothing for a new shape.

    NumPy's arrays are copied before: jax may still be reading one when `device_put` has returned.
    """
    return jax.device_put(np.array(x) if isinstance(x, np.ndarray) else x, may_alias=False)


def _bound_together(state: TrainState) -> TrainState:
    """Binds the rest of the state to where jax calls some of its arrays committed.

    A step's results all are, once an argument is: it would compile for this state and once more for
    the next.
    """

    def is_bound(x: jax.Array) -> bool:
        return not isinstance(x, jax.core.Tracer) and getattr(x, "committed", False)

    bound = [x for x in jax.tree.leaves(state) if is_bound(x)]
    if not bound:
        return state
    place = bound[0].sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec())
    return jax.tree.map(lambda x: x if is_bound(x) else jax.device_put(x, place), state)
