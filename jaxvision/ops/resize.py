"""Resizing as torch's interpolate defines it: pixel centres at one half, antialiased on request."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxvision.types import Array


def resize_bilinear(
    x: Float[Array, "*b h w c"],
    size: tuple[int, int],
    align_corners: bool = False,
    antialias: bool = False,
) -> Float[Array, "*b h2 w2 c"]:
    """Resizes to `size` (h2, w2), as `torch.nn.functional.interpolate(mode="bilinear")` does.

    Output pixel i stands at (i + 1/2) * h / h2 - 1/2 of the input, clamped to its border; with
    `align_corners` the first and the last pixels of both stand on each other. Shrinking without
    `antialias` samples two pixels an axis and skips the rest, as torch does by default; with it the
    triangle is as wide as the step, as in Pillow. `jax.image.resize` always antialiases.

    >>> x = jnp.array([0.0, 4.0]).reshape(1, 2, 1)
    >>> resize_bilinear(x, (1, 4))[0, :, 0].tolist()
    [0.0, 1.0, 3.0, 4.0]
    >>> resize_bilinear(x, (1, 3), align_corners=True)[0, :, 0].tolist()
    [0.0, 2.0, 4.0]
    """
    _check(x, size)
    weights = antialiased_weights if antialias else bilinear_weights
    # The shorter way first: what one axis shrinks or grows, the other pays for.
    y = x.astype(jnp.float32)
    axes = sorted((-3, -2), key=lambda axis: size[axis + 3] / x.shape[axis])
    for axis in axes:
        length, wanted = x.shape[axis], size[axis + 3]
        if length != wanted:
            y = _along(weights(length, wanted, align_corners), y, axis)
    return y.astype(x.dtype)


def resize_nearest(
    x: Float[Array, "*b h w c"], size: tuple[int, int]
) -> Float[Array, "*b h2 w2 c"]:
    """Resizes to `size` (h2, w2) by copying pixels: output i is input floor(i * h / h2).

    That is torch's mode="nearest" (and OpenCV's INTER_NEAREST), not Pillow's, which takes the pixel
    nearest to the centre.

    >>> resize_nearest(jnp.arange(3.0).reshape(1, 3, 1), (1, 5))[0, :, 0].tolist()
    [0.0, 0.0, 1.0, 1.0, 2.0]
    """
    _check(x, size)
    for axis in (-3, -2):
        length, wanted = x.shape[axis], size[axis + 3]
        if length != wanted:
            x = jnp.take(x, nearest_pixels(length, wanted), axis=axis)
    return x


def nearest_pixels(length: int, wanted: int) -> np.ndarray:
    """The input pixel of each output pixel; in float32, which decides at a few sizes, as torch."""
    step = np.float32(length) / np.float32(wanted)
    pixels = np.floor(np.arange(wanted, dtype=np.float32) * step).astype(np.int32)
    return np.minimum(pixels, length - 1)


def bilinear_weights(
    length: int, wanted: int, align_corners: bool = False, outputs: range | None = None
) -> np.ndarray:
    """The matrix [wanted, length] that interpolates an axis, or its rows `outputs` alone.

    A row has at most two entries that are not zero.
    """
    outputs = range(wanted) if outputs is None else outputs
    step = _step(length, wanted, align_corners)
    position = np.arange(outputs.start, outputs.stop, dtype=np.float64)
    position = position * step if align_corners else np.maximum(step * (position + 0.5) - 0.5, 0)
    # Torch's step and position are float32 and the sum is rounded once, as here.
    position = position.astype(np.float32)
    low = np.minimum(position.astype(np.int64), length - 1)
    fraction = np.clip(position - low.astype(np.float32), 0, 1)
    rows = np.arange(len(outputs))
    weights = np.zeros((len(outputs), length), np.float32)
    weights[rows, low] = 1 - fraction
    weights[rows, np.minimum(low + 1, length - 1)] += fraction
    return weights


def antialiased_weights(length: int, wanted: int, align_corners: bool = False) -> np.ndarray:
    """The matrix [wanted, length] of triangles as wide as the step, each row's sum 1."""
    step = _step(length, wanted, align_corners)
    support = max(step, np.float32(1))
    centres = step * (np.arange(wanted, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centres - support + np.float32(0.5)).astype(np.int64), 0)
    last = np.minimum((centres + support + np.float32(0.5)).astype(np.int64), length)
    inputs = np.arange(length)
    distance = (inputs.astype(np.float32) + np.float32(0.5) - centres[:, None]) / support
    inside = (inputs >= first[:, None]) & (inputs < last[:, None])
    weights = np.where(inside, np.maximum(1 - np.abs(distance), 0), 0).astype(np.float32)
    totals = weights.sum(axis=1, keepdims=True)
    return weights / np.where(totals > 0, totals, 1)


def _step(length: int, wanted: int, align_corners: bool) -> np.float32:
    if not align_corners:
        return np.float32(length) / np.float32(wanted)
    return np.float32(length - 1) / np.float32(wanted - 1) if wanted > 1 else np.float32(0)


def _along(weights: np.ndarray, x: Array, axis: int) -> jax.Array:
    # At full precision, because a TPU would multiply in bfloat16.
    rule = {-3: "ih,...hwc->...iwc", -2: "jw,...hwc->...hjc"}[axis]
    return jnp.einsum(rule, weights, x, precision=jax.lax.Precision.HIGHEST)


def _check(x: Array, size: tuple[int, int]) -> None:
    if min(size) < 1 or min(x.shape[-3:-1]) < 1:
        raise ValueError(
            f"expected sizes of at least 1, got {x.shape[-3]} x {x.shape[-2]} to be resized to "
            f"{size[0]} x {size[1]}"
        )
