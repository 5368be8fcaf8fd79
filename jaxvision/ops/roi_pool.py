"""RoI pooling (Fast R-CNN, arXiv:1504.08083, section 2.1) with torchvision's rounding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvision.ops.roi_samples import quotient
from jaxvision.types import Array

LOWEST = -3.4028234663852886e38
"""What a bin without a number above it gives, as in torchvision: float32's lowest."""


def roi_pool(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Array, "n h2 w2 c"]:
    """Returns the maximum of each box's features in `output_size` bins of whole features.

    `boxes` are xyxy in the picture's pixels; times `spatial_scale` their corners are rounded, half
    away from zero, and both are inside: so a box is at least one feature. Bins overlap where they
    do not divide the box. A bin outside the map is 0, NaN is never a maximum, and a box with NaN or
    infinity gives zeros. The gradient goes to the first maximum in row-major order; the boxes' is
    zero.

    It looks maxima up in tables of windows of 1, 2, 4, ... features a side: log2(h) * log2(w)
    copies of the features, which suits a map of stride 16 but not a whole pyramid's finest level.

    >>> features, box = jnp.arange(16.0).reshape(4, 4, 1), jnp.array([[0.0, 0.0, 3.0, 3.0]])
    >>> jax.jit(roi_pool, static_argnums=2)(features, box, 2).squeeze().tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    h, w, _ = features.shape
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)
    valid = jnp.isfinite(boxes).all(axis=1).reshape(-1, 1)
    x1, y1, x2, y2 = _round(jnp.where(valid, boxes, 0.0) * spatial_scale).T
    windows = _Windows(*_bins(y1, y2, bins[0], h), *_bins(x1, x2, bins[1], w))
    # A bin of no length is empty: so are all bins of a box that is none.
    windows = windows._replace(bottom=jnp.where(valid, windows.bottom, 0))
    return _window_max(features, windows).astype(features.dtype)


class _Windows(NamedTuple):
    """Rows from `top` to before `bottom`, columns from `left` to before `right`, of each bin."""

    top: Int[Array, "n h2"]
    bottom: Int[Array, "n h2"]
    left: Int[Array, "n w2"]
    right: Int[Array, "n w2"]


def _round(x):
    """To the nearest integer, and half away from zero, within int32's range."""
    whole = jnp.trunc(x)
    rounded = whole + jnp.where(jnp.abs(x - whole) >= 0.5, jnp.sign(x), 0.0)
    return jnp.clip(rounded, -1e9, 1e9).astype(jnp.int32)


def _bins(low, high, bins, size):
    """Returns the first feature of each bin and the one behind its last, within the map."""
    length = jnp.maximum(high - low + 1, 1).astype(jnp.float32)
    length = quotient(length, float(bins)).reshape(-1, 1)
    numbers = jnp.arange(bins + 1, dtype=jnp.float32).reshape(1, -1)
    first = jnp.floor(numbers[:, :-1] * length).astype(jnp.int32) + low.reshape(-1, 1)
    end = jnp.ceil(numbers[:, 1:] * length).astype(jnp.int32) + low.reshape(-1, 1)
    return jnp.clip(first, 0, size), jnp.clip(end, 0, size)


class _Found(NamedTuple):
    """The largest value of some windows and which pixel it is, -1 for none."""

    value: Float[Array, "*s c"]
    pixel: Int[Array, "*s c"]


def _larger(a: _Found, b: _Found) -> _Found:
    """Of equal values the first pixel's; -1 counts as behind all others."""
    first = (b.pixel >= 0) & ((a.pixel < 0) | (b.pixel < a.pixel))
    take = (b.value > a.value) | ((b.value == a.value) & first)
    return jax.tree.map(lambda x, y: jnp.where(take, y, x), a, b)


def _doubled(found: _Found, axis: int) -> list[_Found]:
    """Returns what windows of 1, 2, 4, ... features along an axis hold, from each pixel on."""
    levels, size, step = [found], found.value.shape[axis], 1
    while 2 * step <= size:
        last = levels[-1]
        pads = [(0, 0)] * last.value.ndim
        pads[axis] = (0, step)
        shifted = _Found(
            *(
                jax.lax.slice_in_dim(jnp.pad(v, pads, constant_values=fill), step, None, axis=axis)
                for v, fill in zip(last, (LOWEST, -1), strict=True)
            )
        )
        levels.append(_larger(last, shifted))
        step *= 2
    return levels


def _level(length):
    """The largest k with 2**k <= length, and 0 for a length of 0."""
    powers = jnp.array([2**k for k in range(1, 31)], jnp.int32).reshape(1, 1, -1)
    return (length[..., None] >= powers).sum(axis=-1)


def _argmax(features: Float[Array, "h w c"], windows: _Windows) -> _Found:
    h, w, c = features.shape
    value = features.astype(jnp.float32)
    number = jnp.arange(h * w, dtype=jnp.int32).reshape(h, w, 1)
    counts = value > LOWEST  # False for NaN
    found = _Found(jnp.where(counts, value, LOWEST), jnp.where(counts, number, -1))
    tables = [table for rows in _doubled(found, axis=0) for table in _doubled(rows, axis=1)]
    flat = [jnp.stack(v).reshape(-1, c) for v in zip(*tables, strict=True)]

    # Two windows of a power of two cover a bin along an axis, four cover it along both.
    down, across = _level(windows.bottom - windows.top), _level(windows.right - windows.left)
    tops = windows.top, jnp.maximum(windows.bottom - 2**down, 0)
    lefts = windows.left, jnp.maximum(windows.right - 2**across, 0)
    table = down[:, :, None] * w.bit_length() + across[:, None, :]
    best = None
    for top in tops:
        for left in lefts:
            index = (table * h + top[:, :, None]) * w + left[:, None, :]
            index = jnp.clip(index, 0, len(flat[0]) - 1)  # of empty bins, which do not matter
            corner = _Found(*(v.at[index].get(mode="promise_in_bounds") for v in flat))
            best = corner if best is None else _larger(best, corner)
    empty = (windows.bottom <= windows.top)[:, :, None] | (windows.right <= windows.left)[:, None]
    empty = empty[..., None]
    return _Found(jnp.where(empty, 0.0, best.value), jnp.where(empty, -1, best.pixel))


@jax.custom_vjp
def _window_max(features, windows):
    return _argmax(features, windows).value


def _window_max_forward(features, windows):
    best = _argmax(features, windows)
    return best.value, (best.pixel, features[:0], features.shape)


def _window_max_backward(residuals, cotangent):
    pixel, like, (h, w, c) = residuals
    channel = jnp.arange(c, dtype=jnp.int32).reshape(1, 1, 1, -1)
    index = jnp.where(pixel >= 0, pixel * c + channel, h * w * c)  # beyond the end: dropped
    gradient = jnp.zeros((h * w * c,), jnp.float32).at[index].add(cotangent, mode="drop")
    return gradient.reshape(h, w, c).astype(like.dtype), None


_window_max.defvjp(_window_max_forward, _window_max_backward)
