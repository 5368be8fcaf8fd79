"""Two-dimensional convolution as torch defines it, formulated so that it is fast."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
) -> Float[Array, "b h2 w2 k"]:
    """Returns the cross-correlation of NHWC `x` and HWIO `kernel`; zeros pad both sides alike.

    The same values on every backend. Three kinds run in another form on the CPU, where XLA does
    that faster than its own convolution: of a single channel, of 1x1 pixels, and in groups.
    """
    for size, f, s, p in zip(x.shape[1:3], kernel.shape[:2], stride, padding, strict=True):
        conv_output_size(size, f, s, p)  # XLA would return an empty array where nothing fits
    if jax.default_backend() == "cpu":
        if x.shape[-1] == 1 and groups == 1 and stride == (1, 1):
            return _conv2d_by_patches(x, kernel, padding)
        if kernel.shape[:2] == (1, 1) and padding == (0, 0) and groups == 1:
            return _conv2d_by_product(x, kernel, stride)
        if 1 < groups < x.shape[-1]:
            return _conv2d_by_blocks(x, kernel, stride, padding, groups)
    return _conv2d(x, kernel, stride, padding, groups)


def _conv2d(x, kernel, stride, padding, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=stride,
        padding=[(p, p) for p in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _conv2d_by_patches(x, kernel, padding):
    """Stride 1 only: gathers each output pixel's patch into a row, then one matrix product."""
    kernel_h, kernel_w, channels, features = kernel.shape
    (pad_h, pad_w), (b, h, w, _) = padding, x.shape
    out_h = conv_output_size(h, kernel_h, padding=pad_h)
    out_w = conv_output_size(w, kernel_w, padding=pad_w)
    x = jnp.pad(x, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    shifted = [
        x[:, i : i + out_h, j : j + out_w, :] for i in range(kernel_h) for j in range(kernel_w)
    ]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, kernel_h * kernel_w * channels)
    return (patches @ kernel.reshape(-1, features)).reshape(b, out_h, out_w, features)


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
