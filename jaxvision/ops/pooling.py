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
    gradient between them. Only the gradient of two oddities is not torch's: a window of nothing but
    -inf that reaches into the padding passes none on, and of several NaN in a window of more than
    127 pixels another one gets it.

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
    # An offset within the window is stored as int8, so only windows up to 11 x 11 can use it.
    pool = _max_pool_by_offsets if window[0] * window[1] <= 127 else _max_pool_by_reduce_window
    y = pool(x.reshape(-1, h, w, c), window, stride, padding)
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


def _max_pool_by_reduce_window(x, window, stride, padding):
    pads = ((0, 0), *((p, p) for p in padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), pads)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool_by_offsets(x, window, stride, padding):
    """The same pool, whose gradient does without XLA's slow select-and-scatter."""
    return _max_and_offset(x, window, stride, padding)[0]


def _max_and_offset(x, window, stride, padding):
    """Returns each window's maximum and the row-major offset at which it first stands."""
    (fh, fw), (sh, sw), (ph, pw) = window, stride, padding
    b, h, w, c = x.shape
    out_h, out_w = conv_output_size(h, fh, sh, ph), conv_output_size(w, fw, sw, pw)
    # Rows and columns are split into (index, phase) of the stride: XLA's CPU code for slices of
    # that shape is several times faster than for strided slices.
    rows, columns = out_h + (fh - 1) // sh, out_w + (fw - 1) // sw
    config = ((0, 0, 0), (ph, sh * rows - h - ph, 0), (pw, sw * columns - w - pw, 0), (0, 0, 0))
    x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), config).reshape(b, rows, sh, columns, sw, c)
    maximum = offset = None
    for i in range(fh):
        for j in range(fw):
            top, left = i // sh, j // sw
            pixel = x[:, top : top + out_h, i % sh, left : left + out_w, j % sw]
            if maximum is None:
                maximum, offset = pixel, jnp.zeros(pixel.shape, jnp.int8)
                continue
            larger = (pixel > maximum) | jnp.isnan(pixel)
            maximum = jnp.where(larger, pixel, maximum)
            offset = jnp.where(larger, jnp.int8(i * fw + j), offset)
    return maximum, offset


def _offsets_forward(x, window, stride, padding):
    maximum, offset = _max_and_offset(x, window, stride, padding)
    return maximum, (offset, x.shape)


def _offsets_backward(window, stride, padding, residuals, cotangent):
    offset, (b, h, w, c) = residuals
    (fh, fw), (sh, sw), (ph, pw) = window, stride, padding
    rows, columns = -(-h // sh), -(-w // sw)  # of one phase
    zero = jnp.zeros((), cotangent.dtype)

    def phase(row, column):
        """The gradient of the pixels at (row + sh * n, column + sw * m)."""
        total = jnp.zeros((b, rows, columns, c), cotangent.dtype)
        for i in range((row + ph) % sh, fh, sh):
            for j in range((column + pw) % sw, fw, sw):
                chosen = jnp.where(offset == i * fw + j, cotangent, zero)
                # Pixel row + sh * n is at offset i of window n + (row + ph - i) / sh.
                first_row, first_column = (row + ph - i) // sh, (column + pw - j) // sw
                _, out_h, out_w, _ = chosen.shape
                high_h, high_w = rows + first_row - out_h, columns + first_column - out_w
                config = ((0, 0, 0), (-first_row, high_h, 0), (-first_column, high_w, 0), (0, 0, 0))
                total = total + jax.lax.pad(chosen, zero, config)
        return total

    phases = [jnp.stack([phase(r, q) for q in range(sw)], axis=3) for r in range(sh)]
    gradient = jnp.stack(phases, axis=2).reshape(b, rows * sh, columns * sw, c)
    return (gradient[:, :h, :w],)


_max_pool_by_offsets.defvjp(_offsets_forward, _offsets_backward)
