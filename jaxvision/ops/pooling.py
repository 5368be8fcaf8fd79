"""Pooling as torch defines it: explicit padding, all gradient to a window's first maximum."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxvision.ops.convolution import conv_output_size
from jaxvision.types import Array


def max_pool(
    x: Float[Array, "*b h w c"],
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    *,
    ceil_mode: bool = False,
) -> Float[Array, "*b h2 w2 c"]:
    """Returns the maximum of each window; `stride` is the window where it is not given.

    Padding is with -inf, alike on both sides, and at most half the window; with `ceil_mode` a last
    window may reach over the right and the lower border, as `pool_output_size` says. NaN wins, as
    in torch. Where several pixels of a window are equal, the first in row-major order gets all of
    the gradient; ReLU makes such ties everywhere, and plain autodiff of a maximum would split the
    gradient between them. Only the gradient of one oddity is not torch's: a window of nothing but
    -inf that reaches into the padding passes none on.

    >>> x = jnp.arange(16.0).reshape(4, 4, 1)
    >>> pool = jax.jit(max_pool, static_argnums=1, static_argnames="ceil_mode")
    >>> pool(x, 2).squeeze().tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    >>> pool(x, 3, ceil_mode=True).squeeze().tolist()
    [[10.0, 11.0], [14.0, 15.0]]
    """
    rows, columns = _pool_axes(x.shape, window, stride, padding, ceil_mode)
    y = x.reshape(-1, *x.shape[-3:])
    # Along the width first, then the height: of equal pixels the first in row-major order wins.
    y = _max_along(_max_along(y, columns)[0], rows)[0]
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def max_pool_with_argmax(
    x: Float[Array, "*b h w c"],
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    *,
    ceil_mode: bool = False,
) -> tuple[Float[Array, "*b h2 w2 c"], Int[Array, "*b h2 w2 c"]]:
    """Returns `max_pool` and where each maximum stands, as torch's `return_indices` does.

    An index is row * w + column in the plane of its own picture and channel, padding not counted;
    `max_unpool` takes it. Of equal pixels it is the first in row-major order, of several NaN the
    last. The gradient is `max_pool`'s.

    >>> x = jnp.array([[1.0, 5.0, 2.0, 2.0], [3.0, 4.0, 2.0, 2.0]]).reshape(2, 4, 1)
    >>> values, indices = jax.jit(max_pool_with_argmax, static_argnums=1)(x, 2)
    >>> values.ravel().tolist(), indices.ravel().tolist()
    ([5.0, 2.0], [1, 2])
    """
    w = x.shape[-2]
    rows, columns = _pool_axes(x.shape, window, stride, padding, ceil_mode)
    y, right = _max_along(x.reshape(-1, *x.shape[-3:]), columns)
    y, down = _max_along(y, rows)
    # How far right it stands in the row that won; in the padding above, nothing has won.
    rights = _pixels_of_windows(right, rows, fill=0)
    right = next(rights)
    for i, other in enumerate(rights, 1):
        right = jnp.where(down == i, other, right)
    top = jnp.arange(rows.out, dtype=jnp.int32).reshape(1, -1, 1, 1) * rows.stride
    left = jnp.arange(columns.out, dtype=jnp.int32).reshape(1, 1, -1, 1) * columns.stride
    # Offset 0 may lie in the padding, where nothing is above -inf: the first pixel inside it is.
    row = jnp.maximum(top - rows.padding + down.astype(jnp.int32), 0)
    column = jnp.maximum(left - columns.padding + right.astype(jnp.int32), 0)
    shape = (*x.shape[:-3], *y.shape[1:])
    return y.reshape(shape), (row * w + column).reshape(shape)


def pool_output_size(
    size: int, window: int, stride: int, padding: int = 0, *, ceil_mode: bool = False
) -> int:
    """Returns how many windows a pool has along an axis: `conv_output_size`, but for `ceil_mode`.

    With it what is left over at the end gets a window too, padded on the right, if that window
    starts inside the input or the padding in front of it (SqueezeNet, GoogLeNet, SSD).

    >>> pool_output_size(112, window=3, stride=2), pool_output_size(112, 3, 2, ceil_mode=True)
    (55, 56)
    """
    if not ceil_mode or size + 2 * padding >= window:
        count = conv_output_size(size, window, stride, padding)  # raises where something is wrong
        left_over = (size + 2 * padding - window) % stride
    else:  # less than one window, which torch takes if at most a stride is missing
        left_over = size + 2 * padding - window + stride
        count = 0
        if left_over <= 0:
            conv_output_size(size, window, stride, padding)  # raises
    if ceil_mode and left_over > 0 and count * stride < size + padding:
        return count + 1
    return count


def avg_pool(
    x: Float[Array, "*b h w c"],
    window: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Float[Array, "*b h2 w2 c"]:
    """Returns the mean of each window; zeros of the padding count, which is torch's default.

    >>> x = jnp.arange(16.0).reshape(4, 4, 1)
    >>> jax.jit(avg_pool, static_argnums=1)(x, 2).squeeze().tolist()
    [[2.5, 4.5], [10.5, 12.5]]
    """
    y = x.reshape(-1, *x.shape[-3:]).astype(jnp.float32)
    axes = _pool_axes(x.shape, window, stride, padding, ceil_mode=False)
    for axis in axes:
        y = sum(_pixels_of_windows(y, axis, fill=0))
    y = (y / math.prod(axis.window for axis in axes)).astype(x.dtype)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def global_avg_pool(x: Float[Array, "*b h w c"]) -> Float[Array, "*b c"]:
    """Returns the mean over height and width.

    >>> global_avg_pool(jnp.arange(8.0).reshape(2, 2, 2)).tolist()
    [3.0, 4.0]
    """
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # jax 0.12 may join a bfloat16 convolution and the mean behind it to one YNN kernel, and
        # that gives NaN.
        x = jax.lax.optimization_barrier(x)
    return jnp.mean(x, axis=(-3, -2))


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
        return jnp.expand_dims(global_avg_pool(x), (-3, -2))
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


class _PoolAxis(NamedTuple):
    axis: int
    window: int
    stride: int
    padding: int
    out: int


def _pool_axes(shape, window, stride, padding, ceil_mode):
    window, padding = _pair(window), _pair(padding)
    stride = window if stride is None else _pair(stride)
    if any(2 * p > f for p, f in zip(padding, window, strict=True)):
        raise ValueError(f"padding {padding} is more than half of the window {window}")
    axes = []
    for i, (size, f, s, p) in enumerate(zip(shape[-3:-1], window, stride, padding, strict=True)):
        out = pool_output_size(size, f, s, p, ceil_mode=ceil_mode)
        axes.append(_PoolAxis(i + 1, f, s, p, out))
    return axes


def _pixels_of_windows(x, pool, fill):
    """Yields, for each offset into the window, the pixels there of all windows along the axis."""
    axis, window, stride, padding, out = pool
    # The axis is split into (index, phase) of the stride: XLA's CPU code for slices of that shape
    # is several times faster than for strided slices.
    length = out + (window - 1) // stride
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (padding, stride * length - x.shape[axis] - padding, 0)
    x = jax.lax.pad(x, jnp.array(fill, x.dtype), config)
    x = x.reshape(*x.shape[:axis], length, stride, *x.shape[axis + 1 :])
    for i in range(window):
        pixels = jax.lax.slice_in_dim(x, i // stride, i // stride + out, axis=axis)
        yield jax.lax.index_in_dim(pixels, i % stride, axis=axis + 1, keepdims=False)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_along(x, pool):
    """Returns each window's maximum along an axis, and how far into the window it first stands.

    Its gradient does without XLA's slow select-and-scatter.
    """
    dtype = jnp.int8 if pool.window <= 127 else jnp.int32
    pixels = _pixels_of_windows(x, pool, fill=-jnp.inf)
    maximum = next(pixels)
    offset = jnp.zeros(maximum.shape, dtype)
    for i, pixel in enumerate(pixels, 1):
        larger = (pixel > maximum) | jnp.isnan(pixel)
        maximum = jnp.where(larger, pixel, maximum)
        offset = jnp.where(larger, jnp.array(i, dtype), offset)
    return maximum, offset


def _max_forward(x, pool):
    maximum, offset = _max_along(x, pool)
    return (maximum, offset), (offset, x.shape[pool.axis])


def _max_backward(pool, residuals, cotangents):
    (offset, size), (cotangent, _) = residuals, cotangents
    axis, window, stride, padding, out = pool
    length = -(-size // stride)  # of one phase
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


_max_along.defvjp(_max_forward, _max_backward)
