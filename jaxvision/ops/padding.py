"""Pictures of different sizes in one array."""

import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvision.types import Array


def zero_outside(
    images: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], multiple: int = 1
) -> Float[Array, "b h2 w2 c"]:
    """Returns normalised pictures, of `sizes` (h, w) at the top left, on a background of zeros.

    What was to the right or below is gone, NaN too, and zeros make both sides of the array
    multiples of `multiple`. This is what torchvision's detectors do behind their normalisation.

    >>> zero_outside(jnp.ones((1, 2, 3, 1)), jnp.array([[1, 2]]), 4)[0, :, :, 0].tolist()[:2]
    [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    _, h, w, _ = images.shape
    rows = jnp.arange(h).reshape(1, h) < sizes[:, :1]
    columns = jnp.arange(w).reshape(1, w) < sizes[:, 1:]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    images = jnp.where(inside, images, jnp.zeros((), images.dtype))
    return jnp.pad(images, ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0)))
