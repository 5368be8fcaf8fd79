"""In which precision boxes, scores and losses are computed, whatever the network is in."""

import jax.numpy as jnp
from jaxtyping import Shaped

from jaxvision.types import Array


def at_least_float32(x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Returns bfloat16, float16 and integers as float32; float32 and float64 as they are.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
