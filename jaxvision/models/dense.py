"""What detectors of one stage have in common: they say of every place what is there, and where."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvision.ops import zero_outside
from jaxvision.types import Array


class DenseOutputs(NamedTuple):
    """What a network says of its anchors, map by map, the finest first.

    Of each map, row by row, in each row place by place, at each place anchor by anchor.
    """

    class_logits: tuple[Float[Array, "b _ k"], ...]
    box_deltas: tuple[Float[Array, "b _ 4"], ...]
    anchors: tuple[Float[Array, "_ 4"], ...]
    """Boxes in pixels, the same for all pictures: they follow from the pictures' size."""


def by_anchor(x: Float[Array, "b h w c"], columns: int) -> Float[Array, "b n k"]:
    """Returns a head's map as `columns` numbers for each anchor, [b, h * w * anchors, columns].

    >>> by_anchor(jnp.zeros((2, 4, 4, 18)), columns=6).shape
    (2, 48, 6)
    """
    return x.reshape(x.shape[0], -1, columns)


def on_zeros(
    images: Float[Array, "b h w c"], sizes: Int[Array, "b 2"] | None, multiple: int = 1
) -> Float[Array, "b h2 w2 c"]:
    """Returns `zero_outside`; without `sizes` each picture fills its array.

    >>> on_zeros(jnp.ones((1, 30, 40, 3)), None, multiple=32).shape
    (1, 32, 64, 3)
    """
    if sizes is None:
        sizes = jnp.broadcast_to(jnp.array([images.shape[1:3]]), (images.shape[0], 2))
    return zero_outside(images, sizes, multiple)
