"""The first variables of a network, drawn by a program that compiles quickly."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxvision.types import Variables


def init_variables(model: nn.Module, key: PRNGKeyArray, input_shape: Sequence[int]) -> Variables:
    """Returns `model.init(key, images)` for pictures of `input_shape` (h, w, c), compiled.

    The same values as `jax.jit(model.init)` on the CPU, where compiling that takes LLVM most of ten
    seconds for a ResNet, all of it for the loops of the random numbers; this takes one.

    >>> from jaxvision.models import get_model
    >>> variables = init_variables(get_model("lenet"), jax.random.key(0), (28, 28, 1))
    >>> variables["params"]["conv1"]["kernel"].shape
    (5, 5, 1, 6)
    """
    images = jnp.zeros((1, *input_shape), jnp.float32)
    return jit_once(model.init)(key, images)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for what runs once: on the CPU it is optimised less, and compiled sooner.

    A level that the environment's XLA_FLAGS ask for stands.
    """
    level = "xla_backend_optimization_level"
    chosen = jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", "")
    return jax.jit(function, compiler_options=None if chosen else {level: 1})
