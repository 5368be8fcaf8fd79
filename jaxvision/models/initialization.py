"""The first variables of a network, drawn by a program that compiles quickly."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PRNGKeyArray

from jaxvision.models.equal import one_for_equal
from jaxvision.types import Variables


def init_variables(
    model: nn.Module,
    key: PRNGKeyArray,
    input_shape: Sequence[int],
    *,
    where: Callable[[str], bool] | None = None,
) -> Variables:
    """Returns `model.init(key, images)` for pictures of `input_shape` (h, w, c), compiled.

    The same values as `jax.jit(model.init)` on the CPU, where compiling that takes LLVM most of ten
    seconds for a ResNet, all of it for the loops of the random numbers; this takes one.

    `where` says of the path of an array, such as `params/fc/kernel`, whether it is wanted. Those
    that are not, because they come from elsewhere, are a `jax.ShapeDtypeStruct`: drawing them is
    not even compiled.

    >>> from jaxvision.models import get_model
    >>> variables = init_variables(get_model("lenet"), jax.random.key(0), (28, 28, 1))
    >>> variables["params"]["conv1"]["kernel"].shape
    (5, 5, 1, 6)
    """
    images = np.zeros((1, *input_shape), np.float32)  # NumPy's need no program of their own
    if where is None:
        return _initializer(model)(key, images)
    initialize = _traced_once(model)
    result = {}

    def draw(key: PRNGKeyArray, images: jax.Array) -> dict[str, jax.Array]:
        flat = flatten_dict(initialize(key, images), sep="/")
        result.update({path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in flat.items()})
        return {path: x for path, x in flat.items() if where(path)}

    result |= jit_once(draw)(key, images)
    return unflatten_dict(result, sep="/")


def abstract_variables(model: nn.Module, input_shape: Sequence[int]) -> Variables:
    """Returns what `init_variables` would, as `jax.ShapeDtypeStruct`: nothing is computed.

    >>> from jaxvision.models import get_model
    >>> abstract_variables(get_model("lenet"), (28, 28, 1))["params"]["conv1"]["bias"]
    ShapeDtypeStruct(shape=(6,), dtype=float32)
    """
    images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return jax.eval_shape(_traced_once(model), jax.random.key(0), images)


@one_for_equal
def _initializer(model: nn.Module) -> Callable[[PRNGKeyArray, jax.Array], Variables]:
    return jit_once(_traced_once(model))


@one_for_equal
def _traced_once(model: nn.Module) -> Callable[[PRNGKeyArray, jax.Array], Variables]:
    """`model.init` for use inside of jit, where a function must not have a level of its own."""
    return jax.jit(model.init)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for what runs once: on the CPU it is optimised less, and compiled sooner.

    A level that the environment's XLA_FLAGS ask for stands.
    """
    level = "xla_backend_optimization_level"
    chosen = jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", "")
    return jax.jit(function, compiler_options=None if chosen else {level: 1})
