"""R-CNN's crops (arXiv:1311.2524, appendix A): a region's pixels, stretched to a network's size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxvision.ops.boxes import Size, corners
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array


def warp_rois(
    image: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    output_size: int,
    *,
    padding: int = 16,
    size: Size | None = None,
    fill: int | float = 0.0,
) -> Float[Array, "n s s c"]:
    """Returns each box's part of a picture as `output_size` squared pixels, whatever its aspect.

    `padding` pixels at each side of a crop show what is around the box, as far around as the box is
    magnified: 16 of 227 in the paper; with 0 the crop is the box alone. What lies outside of the
    picture, which `size` (h, w) says where it is padded, is `fill`: after normalisation 0 is the
    mean, as in the paper. Between pixels it is bilinear, without antialiasing where a box is
    shrunk, as in the authors' code. A box without area shows the one line or point where it is; one
    with NaN or infinity is all `fill`. One picture a call; callers vmap. There is no gradient to
    the boxes.

    >>> warp = jax.jit(warp_rois, static_argnums=2, static_argnames=("padding", "fill"))
    >>> image = jnp.arange(16.0).reshape(4, 4, 1)
    >>> warp(image, jnp.array([[0.0, 0.0, 4.0, 4.0]]), 2, padding=0).squeeze().tolist()
    [[2.5, 4.5], [10.5, 12.5]]
    >>> warp(image, jnp.array([[0.0, 0.0, 2.0, 2.0]]), 4, padding=1, fill=-1).squeeze().tolist()[1]
    [-1.0, 0.0, 1.0, 2.0]
    """
    if not 0 <= 2 * padding < output_size:
        raise ValueError(f"expected padding below half of {output_size}, got {padding}")
    h, w, _ = image.shape
    height, width = (h, w) if size is None else size
    usable = jnp.isfinite(boxes).all(axis=1)
    x1, y1, x2, y2 = corners(jnp.where(usable[:, None], boxes, 0.0))
    rows = _taps(y1, y2, output_size, padding, height)
    columns = _taps(x1, x2, output_size, padding, width)
    pixels = jnp.asarray(at_least_float32(image))
    # Along the columns in the upper and in the lower row, and then from the one to the other.
    upper, lower = (
        _blend(
            pixels[row[:, :, None], columns.low[:, None, :]],
            pixels[row[:, :, None], columns.high[:, None, :]],
            columns.fraction[:, None, :, None],
        )
        for row in (rows.low, rows.high)
    )
    crops = _blend(upper, lower, rows.fraction[:, :, None, None])
    shown = rows.inside[:, :, None] & columns.inside[:, None, :] & usable[:, None, None]
    return jnp.where(shown[..., None], crops, jnp.asarray(fill, crops.dtype))


class _Taps(NamedTuple):
    """Along one axis, of each pixel of a crop: the two pixels that it lies between, how far it is
    from the first to the second, and whether it shows the picture."""

    low: Int[Array, "n s"]
    high: Int[Array, "n s"]
    fraction: Float[Array, "n s"]
    inside: Bool[Array, "n s"]


def _taps(first, last, count: int, padding: int, length) -> _Taps:
    """`count` places from `first` to `last` and, on both sides, as much more as `padding` takes."""
    scale = (last - first) / (count - 2 * padding)
    places = (jnp.arange(count) + 0.5 - padding)[None, :] * scale[:, None] + first[:, None]
    places = jax.lax.stop_gradient(places)
    inside = (places >= 0) & (places <= length)
    # Up to half a pixel from the picture's border there is nothing to blend with.
    position = jnp.clip(places - 0.5, 0, jnp.maximum(length - 1, 0))
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(length - 1, 0)).astype(jnp.int32)
    return _Taps(low, high, position - low, inside)


def _blend(a, b, fraction):
    return (1 - fraction) * a + fraction * b
