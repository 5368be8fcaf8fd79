"""Pooling as torch defines it: explicit padding, all gradient to a window's first maximum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvision.ops.convolution import conv_output_size


def max_pool(
    x: Float[Array, "*b h w c"],
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Float[Array, "*b h2 w2 c"]:
    """Returns the maximum of each window; `stride` is the window where it is not given.

    Padding is with -inf, alike on both sides, and at most half the window. NaN wins, as in torch.
    Where several pixels of a window are equal, the first in row-major order gets all of the
    gradient; ReLU makes such ties everywhere, and plain autodiff of a maximum would split the
    gradient between them. Only the gradient of one oddity is not torch's: a window of nothing but
    -inf that reaches into the padding passes none on.

    >>> x = jnp.arange(16.0).reshape(4, 4, 1)
    >>> max_pool(x, 2)[..., 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    window = _pair(window)
    stride = window if stride is None else _pair(stride)
    padding = _pair(padding)
    if any(2 * p > f for p, f in zip(padding, window, strict=True)):
        raise ValueError(f"padding {padding} is more than half of the window {window}")
    batch, (h, w, c) = x.shape[:-3], x.shape[-3:]
    for size, f, s, p in zip((h, w), window, stride, padding, strict=True):
        conv_output_size(size, f, s, p)  # raises where the window does not fit
    y = x.reshape(-1, h, w, c)
    # Along the width first, then the height: of equal pixels the first in row-major order wins.
    for axis in (2, 1):
        y = _max_pool_along(y, axis, window[axis - 1], stride[axis - 1], padding[axis - 1])
    return y.reshape(*batch, *y.shape[1:])


def adaptive_avg_pool(
    x: Float[Array, "*b h w c"], output_size: int | tuple[int, int]
) -> Float[Array, "*b h2 w2 c"]:
    """torch's AdaptiveAvgPool2d: means over windows that cover any input size with `output_size`.

    Output i of n is the mean of the inputs from floor(i * size / n) up to, not including,
    ceil((i + 1) * size / n); where the input is smaller, values repeat.

    >>> adaptive_avg_pool(jnp.arange(6.0).reshape(2, 3, 1), (1, 2))[..., 0].tolist()
    [[2.0, 3.0]]
    """
    out_h, out_w = _pair(output_size)
    h, w = x.shape[-3:-1]
    if (h, w) == (out_h, out_w):
        return x
    if (out_h, out_w) == (1, 1):
        return x.mean(axis=(-3, -2), keepdims=True)
    rows, columns = _averaging(h, out_h), _averaging(w, out_w)
    # One constant matrix an axis; at full precision, because a TPU would multiply in bfloat16.
    return jnp.einsum(
        "ih,jw,...hwc->...ijc",
        rows.astype(x.dtype),
        columns.astype(x.dtype),
        x,
        precision=jax.lax.Precision.HIGHEST,
    )


def _averaging(size: int, bins: int) -> np.ndarray:
    """The matrix [bins, size] whose rows take the mean of each bin's window."""
    starts = np.arange(bins) * size // bins
    ends = -(-(np.arange(bins) + 1) * size // bins)
    inputs = np.arange(size)
    inside = (inputs >= starts[:, None]) & (inputs < ends[:, None])
    return (inside / (ends - starts)[:, None]).astype(np.float32)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool_along(x, axis, window, stride, padding):
    """Pools one axis, with a gradient that does without XLA's slow select-and-scatter."""
    return _max_and_offset(x, axis, window, stride, padding)[0]


def _max_and_offset(x, axis, window, stride, padding):
    """Returns each window's maximum, and how many pixels into the window it first stands."""
    size = x.shape[axis]
    out = conv_output_size(size, window, stride, padding)
    # The axis is split into (index, phase) of the stride: XLA's CPU code for slices of that shape
    # is several times faster than for strided slices.
    length = out + (window - 1) // stride
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (padding, stride * length - size - padding, 0)
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), config)
    x = x.reshape(*x.shape[:axis], length, stride, *x.shape[axis + 1 :])
    maximum = offset = None
    for i in range(window):
        pixel = jax.lax.slice_in_dim(x, i // stride, i // stride + out, axis=axis)
        pixel = jax.lax.index_in_dim(pixel, i % stride, axis=axis + 1, keepdims=False)
        if maximum is None:
            maximum, offset = pixel, jnp.zeros(pixel.shape, _offset_dtype(window))
            continue
        larger = (pixel > maximum) | jnp.isnan(pixel)
        maximum = jnp.where(larger, pixel, maximum)
        offset = jnp.where(larger, jnp.array(i, offset.dtype), offset)
    return maximum, offset


def _offset_dtype(window: int):
    return jnp.int8 if window <= 127 else jnp.int32


def _pool_forward(x, axis, window, stride, padding):
    maximum, offset = _max_and_offset(x, axis, window, stride, padding)
    return maximum, (offset, x.shape[axis])


def _pool_backward(axis, window, stride, padding, residuals, cotangent):
    offset, size = residuals
    length, out = -(-size // stride), cotangent.shape[axis]  # of one phase
    zero = jnp.zeros((), cotangent.dtype)
    config = [(0, 0, 0)] * cotangent.ndim

    def phase(r):
        """The gradient of the pixels at r + stride * n."""
        total = 0
        for i in range((r + padding) % stride, window, stride):
            chosen = jnp.where(offset == i, cotangent, zero)
            first = (r + padding - i) // stride  # pixel r + stride * n is in window n + first
            config[axis] = (-first, length + first - out, 0)
            total = total + jax.lax.pad(chosen, zero, config)
        if isinstance(total, int):  # a stride larger than the window passes these pixels over
            shape = (*cotangent.shape[:axis], length, *cotangent.shape[axis + 1 :])
            return jnp.zeros(shape, cotangent.dtype)
        return total

    gradient = jnp.stack([phase(r) for r in range(stride)], axis=axis + 1)
    shape = gradient.shape
    gradient = gradient.reshape(*shape[:axis], length * stride, *shape[axis + 2 :])
    return (jax.lax.slice_in_dim(gradient, 0, size, axis=axis),)


_max_pool_along.defvjp(_pool_forward, _pool_backward)
