"""Two-dimensional convolution as torch defines it, formulated so that it is fast."""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float

from jaxvision.types import Array

PIECE_BYTES = 2**20
"""Of the pieces that a kernel's gradient is summed over on the CPU: what fits into a cache."""
MOST_PIECES = 32
"""A limit to what is compiled."""


def conv_output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Returns the length (N + 2P - F) / S + 1, rounded down, of a convolution's or a pool's output.

    Raises `ValueError` where the kernel does not fit into the padded input.

    >>> conv_output_size(28, kernel=5)
    24
    >>> conv_output_size(224, kernel=7, stride=2, padding=3)
    112
    >>> conv_output_size(4, kernel=5)
    Traceback (most recent call last):
    ValueError: a kernel of 5 does not fit into an input of 4 with padding 0
    """
    if size < 1 or kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"expected size, kernel and stride of at least 1 and padding of at least 0, got "
            f"size={size}, kernel={kernel}, stride={stride}, padding={padding}"
        )
    if size + 2 * padding < kernel:
        raise ValueError(
            f"a kernel of {kernel} does not fit into an input of {size} with padding {padding}"
        )
    return (size + 2 * padding - kernel) // stride + 1


def conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "fh fw c2 k"],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> Float[Array, "b h2 w2 k"]:
    """Returns the cross-correlation of NHWC `x` and HWIO `kernel`; zeros pad both sides alike.

    With a `dilation` d the kernel's pixels are d apart (arXiv:1511.07122): it reaches as far as a
    kernel of d * (F - 1) + 1 pixels. The same values on every backend. Four kinds run in another
    form on the CPU, where XLA does that faster than its own convolution: of a single channel, of
    1x1 pixels, in groups, and from or to a map that is smaller than the kernel. There, too, the
    gradient of a kernel of large maps is a sum over pieces of them.
    """
    spans = [d * (f - 1) + 1 for f, d in zip(kernel.shape[:2], dilation, strict=True)]
    axes = zip(x.shape[1:3], spans, stride, padding, strict=True)
    # Checked here, because XLA would return an empty array where nothing fits.
    out = [conv_output_size(*axis) for axis in axes]
    if jax.default_backend() == "cpu" and dilation == (1, 1):
        small = (
            min(x.shape[1], out[0]) < kernel.shape[0] or min(x.shape[2], out[1]) < kernel.shape[1]
        )
        if groups == 1 and (small or (x.shape[-1] == 1 and stride == (1, 1))):
            return _conv2d_by_patches(x, kernel, stride, padding)
        if kernel.shape[:2] == (1, 1) and padding == (0, 0) and groups == 1:
            return _conv2d_by_product(x, kernel, stride)
        if 1 < groups < x.shape[-1]:
            return _conv2d_by_blocks(x, kernel, stride, padding, groups)
        # Pieces of what several devices share would have to be sent from one to another.
        if groups == 1 and jax.device_count() == 1:
            count = _piece_count(x, out, kernel.shape[-1])
            if count > 1:
                return _conv2d_in_pieces(x, kernel, stride, padding, count)
    return _conv2d(x, kernel, stride, padding, groups, dilation)


def conv_transpose_output_size(
    size: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
) -> int:
    """Returns (N - 1) * S - 2P + D * (F - 1) + 1 and the output padding: an input of `conv2d`.

    Of the S lengths that a convolution with stride S shrinks to N it is the shortest, unless
    `output_padding` picks a longer one.

    >>> conv_transpose_output_size(7, kernel=3, stride=2, padding=1)
    13
    >>> conv_transpose_output_size(7, kernel=3, stride=2, padding=1, output_padding=1)
    14
    """
    if min(size, kernel, stride, dilation) < 1 or min(padding, output_padding) < 0:
        raise ValueError(
            f"expected size, kernel, stride and dilation of at least 1 and paddings of at least 0, "
            f"got size={size}, kernel={kernel}, stride={stride}, dilation={dilation}, "
            f"padding={padding}, output_padding={output_padding}"
        )
    if output_padding >= max(stride, dilation):
        raise ValueError(
            f"expected an output padding below the stride {stride} or the dilation {dilation}, got "
            f"{output_padding}"
        )
    out = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + output_padding
    if out < 1:
        raise ValueError(f"a padding of {padding} leaves nothing of an output of {out} pixels")
    return out


def conv_transpose2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "fh fw k2 c"],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    output_padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    dilation: tuple[int, int] = (1, 1),
) -> Float[Array, "b h2 w2 k"]:
    """Returns torch's transposed convolution: the gradient of `conv2d` by its input, at `x`.

    `kernel` is that of the convolution it transposes, which goes from k channels to c: HWIO with
    the *output's* k / groups channels third. So torch's weight [c, k / groups, fh, fw] takes the
    same axes as a Conv2d's, and nothing is flipped. `padding` is cut off on each side, and
    `output_padding` adds to the lower and the right end; `conv_transpose_output_size` has the sum.

    >>> x, ones = jnp.array([[[[1.0], [2.0]]]]), jnp.ones((2, 2, 1, 1))
    >>> jax.jit(conv_transpose2d, static_argnums=2)(x, ones, (2, 2)).squeeze().tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    fh, fw, features, channels = kernel.shape
    axes = zip(x.shape[1:3], (fh, fw), stride, padding, output_padding, dilation, strict=True)
    size = [conv_transpose_output_size(*axis) for axis in axes]
    if jax.default_backend() == "cpu" and groups == 1 and dilation == (1, 1):
        return _conv_transpose_by_phases(x, kernel, stride, padding, size)
    # Per group [k / groups, c / groups] is turned into [c / groups, k / groups].
    kernel = kernel.reshape(fh, fw, features, groups, channels // groups)
    kernel = kernel.transpose(0, 1, 4, 3, 2)[::-1, ::-1]
    kernel = kernel.reshape(fh, fw, channels // groups, groups * features)
    reach = [d * (f - 1) for f, d in zip((fh, fw), dilation, strict=True)]
    pads = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding, strict=True)]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=pads,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _conv_transpose_by_phases(x, kernel, stride, padding, size):
    """One convolution with stride 1, whose channels are the phases of the output's pixels.

    XLA's own convolution of an input with holes multiplies by all the zeros in them.
    """
    (b, h, w, _), (fh, fw, k, c), (sh, sw) = x.shape, kernel.shape, stride
    # Taps: how many of the kernel's rows and columns meet one output pixel.
    taps_h, taps_w = -(-fh // sh), -(-fw // sw)
    kernel = jnp.pad(kernel, ((0, taps_h * sh - fh), (0, taps_w * sw - fw), (0, 0), (0, 0)))
    kernel = kernel.reshape(taps_h, sh, taps_w, sw, k, c).transpose(0, 2, 5, 1, 3, 4)
    kernel = kernel[::-1, ::-1].reshape(taps_h, taps_w, c, sh * sw * k)
    # Rows beyond the last one are the output padding's, and lie within a stride of it or not.
    count_h = max(h + taps_h - 1, -(-(size[0] + padding[0]) // sh))
    count_w = max(w + taps_w - 1, -(-(size[1] + padding[1]) // sw))
    pads = [(taps_h - 1, count_h - h), (taps_w - 1, count_w - w)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    y = conv2d(x, kernel).reshape(b, count_h, count_w, sh, sw, k).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(b, count_h * sh, count_w * sw, k)
    (top, left), (out_h, out_w) = padding, size
    return y[:, top : top + out_h, left : left + out_w]


def _conv2d(x, kernel, stride, padding, groups=1, dilation=(1, 1)):
    return _conv(x, kernel, stride, [(p, p) for p in padding], groups, dilation)


def _conv(x, kernel, stride, pads, groups=1, dilation=(1, 1)):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=pads,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _piece_count(x, out, features):
    b, h, w, channels = x.shape
    largest = b * max(h * w * channels, out[0] * out[1] * features) * x.dtype.itemsize
    return min(MOST_PIECES, -(-largest // PIECE_BYTES))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _conv2d_in_pieces(x, kernel, stride, padding, count):
    """`_conv2d`, whose gradient by the kernel is a sum over about `count` pieces.

    XLA's own reads all of the maps once for each of the kernel's pixels: where they do not fit into
    a cache it takes three to five times as long as the convolution, and this half of it.
    """
    return _conv2d(x, kernel, stride, padding)


@partial(_conv2d_in_pieces.defjvp, symbolic_zeros=True)
def _conv2d_in_pieces_jvp(stride, padding, count, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_conv2d(dx, kernel, stride, padding))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_conv2d_of_pieces(x, dkernel, stride, padding, count))
    return _conv2d_in_pieces(x, kernel, stride, padding, count), sum(parts)


def _conv2d_of_pieces(x, kernel, stride, padding, count):
    """`_conv2d`, one piece after the other: a few of the pictures, or a few rows of one."""
    b, h, fh = len(x), x.shape[1], kernel.shape[0]
    (sh, _), (top, left) = stride, padding
    out_h = conv_output_size(h, fh, sh, top)
    rows = list(pairwise(_cuts(out_h, min(-(-out_h // fh), max(1, count // b)))))
    pieces = []
    for first, last in pairwise(_cuts(b, min(b, count))):
        row_pieces = []
        for upper, lower in rows:
            start, stop = upper * sh - top, (lower - 1) * sh - top + fh
            piece = x[first:last, max(start, 0) : min(stop, h)]
            pads = [(max(-start, 0), max(stop - h, 0)), (left, left)]
            row_pieces.append(_conv(piece, kernel, stride, pads))
        pieces.append(jnp.concatenate(row_pieces, axis=1))
    return jnp.concatenate(pieces)


def _cuts(length, count):
    """Where to cut a length into `count` nearly equal parts, from 0 to `length`."""
    return [length * i // count for i in range(count + 1)]


def _conv2d_by_patches(x, kernel, stride, padding):
    """Gathers each output pixel's patch into a row, then one matrix product.

    Where a map is smaller than the kernel, XLA's own convolution is a plain loop, and so is the
    input's gradient where the output is: 3x3 on 2x2 takes thirty times as long as this.
    """
    features, (sh, sw) = kernel.shape[-1], stride
    axes = zip(x.shape[1:3], kernel.shape[:2], stride, padding, strict=True)
    rows, columns = (_reached(*axis) for axis in axes)
    kernel = kernel[rows.taps, columns.taps]
    pads = [(low, high, 0) for low, high in ((0, 0), rows.pads, columns.pads, (0, 0))]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), pads)
    shifted = [
        x[:, i : i + sh * (rows.out - 1) + 1 : sh, j : j + sw * (columns.out - 1) + 1 : sw]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    out = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    return out.reshape(*patches.shape[:-1], features)


class _Reached(NamedTuple):
    """Along an axis: a kernel's taps that meet the input, their paddings, the output's length."""

    taps: slice
    pads: tuple[int, int]
    out: int


def _reached(size: int, kernel: int, stride: int, padding: int) -> _Reached:
    out = conv_output_size(size, kernel, stride, padding)
    starts = [stride * i - padding for i in range(out)]
    taps = [t for t in range(kernel) if any(0 <= start + t < size for start in starts)] or [0]
    low = padding - taps[0]
    high = starts[-1] + taps[-1] + 1 - size  # negative where the last pixels are not met
    return _Reached(slice(taps[0], taps[-1] + 1), (low, high), out)


def _conv2d_by_product(x, kernel, stride):
    """1x1 only: leaves out the pixels that the stride passes over, then one matrix product."""
    x = x[:, :: stride[0], :: stride[1]]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _conv2d_by_blocks(x, kernel, stride, padding, groups):
    """Joins groups to a few wider ones, with zeros where one group would see another's channels.

    XLA's own gradient of the kernel takes a second where this takes ten milliseconds.
    """
    kernel_h, kernel_w, channels, features = kernel.shape
    # At least 32 channels, and at most 8 convolutions, so that compiling stays quick.
    joined = max(32 // channels, groups // 8, 1)
    while groups % joined:
        joined -= 1
    count = groups // joined
    diagonal = jnp.eye(joined, dtype=kernel.dtype)
    blocks = kernel.reshape(kernel_h, kernel_w, channels, count, joined, features // groups)
    blocks = jnp.einsum("hwinjk,gj->nhwgijk", blocks, diagonal)
    blocks = blocks.reshape(count, kernel_h, kernel_w, joined * channels, features // count)
    inputs = jnp.split(x, count, axis=-1)
    return jnp.concatenate(
        [_conv2d(part, block, stride, padding) for part, block in zip(inputs, blocks, strict=True)],
        axis=-1,
    )
