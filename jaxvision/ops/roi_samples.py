"""Where RoIAlign's samples are along one axis, and how they weigh its pixels.

Everything is in torchvision's order of operations and roundings: whether a sample on the border of
the map counts hangs on its position's last digit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvision.types import Array

Tap = Callable[[int | jax.Array], tuple[Int[Array, "n bins"], Float[Array, "n bins"]]]


class Axis(NamedTuple):
    """Where along one axis the RoIs' samples are: `bins` of `length` features with `grid` each."""

    start: Float[Array, "n"]
    length: Float[Array, "n"]
    grid: Float[Array, "n"]
    size: Int[Array, "n"]


def sampled_axis(
    low: Float[Array, "n"],
    high: Float[Array, "n"],
    size: Int[Array, "n"],
    bins: int,
    sampling_ratio: int,
    aligned: bool,
) -> Axis:
    """Returns the samples of RoIs from `low` to `high`, in features, on maps of `size` features."""
    offset = 0.5 if aligned else 0.0
    start = low - offset
    length = high - offset - start
    length = quotient(length if aligned else jnp.maximum(length, 1.0), float(bins))
    if sampling_ratio > 0:
        grid = jnp.full_like(length, sampling_ratio)
    else:
        grid = jnp.maximum(jnp.ceil(length), 0.0)
    return Axis(start, length, grid, size)


def _positions(axis: Axis, bins: int) -> Callable[[jax.Array | float], Float[Array, "n bins *s"]]:
    """Returns `sample number [n, bins, s] -> position`; in torchvision's order of operations."""
    numbers = jnp.arange(bins, dtype=jnp.float32)
    steps = rounded(numbers.reshape(1, -1) * axis.length.reshape(-1, 1))
    first = (axis.start.reshape(-1, 1) + steps)[..., None]
    length, grid = (v.reshape(-1, 1, 1) for v in (axis.length, jnp.maximum(axis.grid, 1.0)))
    return lambda sample: first + quotient((sample + 0.5) * length, grid)


def rounded(product):
    """Keeps XLA from adding to a product with one rounding for both, as torchvision does not.

    Whether a sample on the border counts hangs on the last digit.
    """
    return jnp.clip(product, -3e38, 3e38)


def quotient(a: jax.Array, b: jax.Array | float) -> jax.Array:
    """Keeps XLA from multiplying by the rounded reciprocal of a constant or of what is broadcast.

    It cannot see that the divisor is one where that hangs on the dividend.
    """
    return a / jnp.where(jnp.isnan(a), 1.0, b)


def _blend(position, size):
    """Returns the lower pixel of a sample, the share of the one above it, and whether it counts."""
    last = size - 1
    inside = (position >= -1.0) & (position <= size.astype(jnp.float32))
    position = jnp.clip(position, 0.0, last.astype(jnp.float32))
    low = jnp.floor(position).astype(jnp.int32)
    return low, position - low.astype(jnp.float32), inside


def _within(pixel, size):
    """Also of a map without pixels, which is what a RoI that fills up a chunk has: then 0."""
    return jnp.clip(pixel, 0, jnp.maximum(size - 1, 0))


def fixed_taps(
    axis: Axis, bins: int, sampling_ratio: int
) -> tuple[Int[Array, "n bins t"], Float[Array, "n bins t"]]:
    """Returns the pixel and the weight of each tap: a sample's lower and its upper pixel."""
    samples = jnp.arange(sampling_ratio, dtype=jnp.float32).reshape(1, 1, -1)
    size = axis.size.reshape(-1, 1, 1)
    low, share, inside = _blend(_positions(axis, bins)(samples), size)
    pixel = jnp.stack([low, low + 1], axis=-1)
    weight = jnp.stack([1.0 - share, share], axis=-1) / sampling_ratio
    weight = jnp.where(inside[..., None], weight, 0.0)
    taps = (*low.shape[:2], 2 * sampling_ratio)
    return _within(pixel.reshape(taps), size), weight.reshape(taps)


def pixel_weights(axis: Axis, bins: int, pixels: Int[Array, "_ _ s"]) -> Float[Array, "n bins s"]:
    """Returns how much of each pixel is in each bin, where the number of samples is adaptive.

    Those are then at least half a pixel apart, or there is but one: no more than five are within a
    pixel of a given one. So the RoI may be as large as it likes.
    """
    position = _positions(axis, bins)
    size, grid = axis.size.reshape(-1, 1, 1), axis.grid.reshape(-1, 1, 1)
    step = axis.length.reshape(-1, 1, 1) / jnp.maximum(grid, 1.0)
    step = jnp.where(step > 0, step, 1.0)
    before = (pixels.astype(jnp.float32) - 1.0 - position(-0.5)) / step - 0.5
    first = jnp.clip(jnp.floor(before) - 1.0, 0.0, jnp.maximum(grid - 1.0, 0.0))
    total = 0.0
    for i in range(8):  # two more before and one more behind, for rounding
        sample = first + i
        low, share, inside = _blend(position(sample), size)
        weight = jnp.where(low == pixels, 1.0 - share, 0.0)
        weight = weight + jnp.where(low + 1 == pixels, share, 0.0)
        total = total + jnp.where(inside & (sample < grid), weight, 0.0)
    return total / jnp.maximum(grid, 1.0)


def adaptive_taps(axis: Axis, bins: int) -> tuple[jax.Array, Tap]:
    """One tap a pixel, for as many as the longest bin covers."""
    position, size = _positions(axis, bins), axis.size.reshape(-1, 1)
    lowest, highest = position(0.0)[..., 0], position(axis.grid.reshape(-1, 1, 1) - 1.0)[..., 0]
    last = (size - 1).astype(jnp.float32)
    first = jnp.clip(jnp.floor(lowest), 0.0, last).astype(jnp.int32)
    end = jnp.clip(jnp.floor(highest) + 1.0, 0.0, last).astype(jnp.int32)
    touched = (axis.grid.reshape(-1, 1) > 0) & (highest >= -1.0) & (lowest <= last + 1.0)
    count = jnp.where(touched, end - first + 1, 0)

    def tap(t):
        pixel = first + t
        weight = pixel_weights(axis, bins, pixel[..., None])[..., 0]
        return _within(pixel, size), jnp.where(t < count, weight, 0.0)

    return count.max(initial=0), tap
