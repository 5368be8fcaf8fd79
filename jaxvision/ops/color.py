"""Pixel values: from the bytes that travel to the floats that a network sees."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array, PerChannel


def normalize_images(
    images: Num[Array, "*b h w c"],
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
) -> Float[Array, "*b h w c"]:
    """Returns float32 `(x - mean) / std` for x in [0, 1]; one value for each channel or for all.

    Bytes are divided by 255 first, as torchvision's ToTensor does; floats are taken to be in [0, 1]
    already. Meant to run inside the jitted step, so that batches travel to the device as bytes.

    >>> import numpy as np
    >>> white = np.full((1, 1, 1), 255, np.uint8)
    >>> float(normalize_images(jnp.asarray(white), mean=0.5, std=0.5)[0, 0, 0])
    1.0
    """
    channels = images.shape[-1]
    for name, value in (("mean", mean), ("std", std)):
        count = np.size(value)
        if count not in (1, channels):
            raise ValueError(f"{name} has {count} values, the images have {channels} channels")
    if jnp.issubdtype(images.dtype, jnp.integer):
        if images.dtype != jnp.uint8:
            raise TypeError(f"expected uint8 or float images, got {images.dtype}")
        images = images.astype(jnp.float32) / 255
    images = at_least_float32(jnp.asarray(images))
    mean = jnp.broadcast_to(jnp.asarray(mean, images.dtype), images.shape)
    std = jnp.broadcast_to(jnp.asarray(std, images.dtype), images.shape)
    return (images - mean) / std
