"""conv_output_size against counting, conv2d against loops, its two routes against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision.ops import (
    conv2d,
    conv_output_size,
    conv_transpose2d,
    conv_transpose_output_size,
    convolution,
)

CASES = [  # (h, w), kernel, stride, padding, groups, channels
    ((5, 6), (3, 3), (1, 1), (0, 0), 1, 3),
    ((7, 5), (3, 2), (2, 1), (1, 0), 1, 2),
    ((6, 9), (5, 5), (2, 3), (2, 2), 1, 4),
    ((6, 7), (3, 3), (1, 2), (1, 2), 2, 4),
    ((4, 4), (3, 3), (1, 1), (1, 1), 6, 6),  # depthwise
    ((1, 1), (1, 1), (1, 1), (0, 0), 1, 1),
    ((5, 4), (5, 4), (1, 1), (0, 0), 1, 1),  # one output pixel
    ((6, 5), (3, 2), (1, 1), (1, 2), 1, 1),
    ((6, 5), (3, 2), (2, 2), (1, 2), 1, 1),  # a single channel, but a stride
    ((2, 2), (3, 3), (1, 1), (1, 1), 1, 3),  # from here on maps smaller than the kernel
    ((1, 1), (3, 3), (1, 1), (1, 1), 1, 4),  # only the middle of the kernel meets anything
    ((2, 9), (3, 3), (2, 2), (1, 1), 1, 2),
    ((3, 2), (5, 3), (2, 1), (2, 2), 1, 2),  # some columns see only the padding
    ((1, 2), (2, 3), (3, 4), (2, 1), 1, 2),  # one row in three, which never meets the input
]


jitted_conv2d = jax.jit(conv2d, static_argnums=(2, 3, 4))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slow_conv2d(x, kernel, stride, padding, groups):
    (b, _, _, c), (fh, fw, c_in, k) = x.shape, kernel.shape
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    x = np.pad(x, ((0, 0), *((p, p) for p in padding), (0, 0)))
    out_h = len(range(0, x.shape[1] - fh + 1, stride[0]))
    out_w = len(range(0, x.shape[2] - fw + 1, stride[1]))
    y = np.zeros((b, out_h, out_w, k))
    for i in range(out_h):
        for j in range(out_w):
            top, left = i * stride[0], j * stride[1]
            patch = x[:, top : top + fh, left : left + fw]
            for f in range(k):
                group = f // (k // groups)
                inputs = patch[..., group * c_in : (group + 1) * c_in]
                y[:, i, j, f] = (inputs * kernel[..., f]).sum(axis=(1, 2, 3))
    assert c == c_in * groups
    return y


@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_conv_output_size_counts_the_places_that_fit(kernel, stride, padding):
    for size in range(1, 9):
        places = len(range(0, size + 2 * padding - kernel + 1, stride))
        if not places:
            with pytest.raises(ValueError, match=f"{kernel} does not fit .* {size} .* {padding}"):
                conv_output_size(size, kernel, stride, padding)
            continue
        assert conv_output_size(size, kernel, stride, padding) == places
        for channels in (1, 3):  # each takes its own route through conv2d
            y = jax.eval_shape(
                lambda x, k: conv2d(x, k, (stride, 1), (padding, 0)),
                jax.ShapeDtypeStruct((2, size, 4, channels), jnp.float32),
                jax.ShapeDtypeStruct((kernel, 2, channels, 5), jnp.float32),
            )
            assert y.shape == (2, places, 3, 5)


@pytest.mark.parametrize(
    "sizes", [{"size": 0}, {"size": -3}, {"kernel": 0}, {"stride": 0}, {"padding": -1}]
)
def test_conv_output_size_refuses_impossible_sizes(sizes):
    ((name, value),) = sizes.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        conv_output_size(**{"size": 9, "kernel": 3, **sizes})


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "groups", "channels"), CASES)
def test_conv2d_equals_loops(size, kernel, stride, padding, groups, channels):
    x, weights = normal(0, 2, *size, channels), normal(1, *kernel, channels // groups, 6)
    expected = slow_conv2d(x, weights, stride, padding, groups)
    got = jitted_conv2d(x, weights, stride, padding, groups)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def by_xla(x, kernel, padding):
    pads = [(p, p) for p in padding]
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.jit, static_argnums=(0, 4))
def with_gradients(convolution, x, kernel, cotangent, padding):
    y, vjp = jax.vjp(lambda x, k: convolution(x, k, padding=padding), x, kernel)
    return y, *vjp(cotangent)


@pytest.mark.parametrize(
    ("size", "kernel", "padding"),
    [((28, 28), 5, (0, 0)), ((9, 7), 3, (1, 2)), ((1, 1), 1, (0, 0)), ((2, 3), 5, (2, 1))],
)
def test_patches_equal_xlas_convolution_and_its_gradients(size, kernel, padding):
    x, weights = normal(0, 3, *size, 1), normal(1, kernel, min(kernel, size[1]), 1, 4)
    shape = jax.eval_shape(lambda *pair: by_xla(*pair, padding), x, weights).shape
    cotangent = normal(2, *shape)
    got, expected = (
        with_gradients(convolution, x, weights, cotangent, padding)
        for convolution in (conv2d, by_xla)
    )
    for ours, xlas in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "features", "stride", "groups"),
    [
        ((8, 7), 6, 1, 10, (1, 1), 1),
        ((8, 7), 6, 1, 10, (2, 3), 1),
        ((7, 6), 64, 3, 128, (1, 1), 32),  # 4 blocks of 16 groups of 2 channels
        ((7, 6), 24, 3, 24, (2, 2), 6),
        ((7, 6), 320, 3, 160, (2, 2), 10),  # groups of 32, one each
        ((5, 5), 9, 3, 9, (1, 1), 3),
        ((2, 2), 24, 3, 16, (1, 1), 1),
        ((1, 2), 5, 3, 7, (2, 2), 1),
    ],
)
def test_the_forms_for_the_cpu_equal_xlas_own_and_its_gradients(
    monkeypatch, size, channels, kernel, features, stride, groups
):
    x, weights = (
        normal(0, 2, *size, channels),
        normal(1, kernel, kernel, channels // groups, features),
    )

    def run():
        def results(*pair):
            y, vjp = jax.vjp(lambda x, k: conv2d(x, k, stride, (kernel // 2,) * 2, groups), *pair)
            return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

        return jax.jit(results)(x, weights)

    got = run()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for ours, xlas in zip(got, run(), strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((5, 7, 6, 3), (3, 3), (1, 1), (1, 1)),  # some pictures a piece
        ((2, 17, 9, 3), (3, 2), (2, 1), (1, 0)),  # some rows
        ((1, 40, 15, 2), (7, 7), (2, 2), (3, 3)),
        ((1, 17, 17, 4), (3, 3), (4, 4), (0, 0)),  # a stride that passes over rows
    ],
)
def test_a_kernels_gradient_by_pieces_equals_xlas(monkeypatch, shape, kernel, stride, padding):
    x, weights = normal(0, *shape), normal(1, *kernel, shape[-1], 4)
    dx, dweights = normal(2, *x.shape), normal(3, *weights.shape)

    def results(conv):
        y, vjp = jax.vjp(conv, x, weights)
        cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        forward = jax.jvp(conv, (x, weights), (dx, dweights))
        # By the kernel, of a gradient by the input: the second derivatives.
        second = jax.grad(lambda w: (jax.vjp(conv, x, w)[1](cotangent)[0] ** 2).sum())(weights)
        return y, *vjp(cotangent), *forward, second

    def run():
        return jax.jit(lambda: results(lambda x, w: conv2d(x, w, stride, padding)))()

    counts, cuts = [], convolution._cuts
    monkeypatch.setattr(convolution, "_cuts", lambda *a: counts.append(a[1]) or cuts(*a))
    monkeypatch.setattr(convolution, "PIECE_BYTES", 256)
    got = run()
    assert max(counts) > 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    expected = run()
    for ours, xlas in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=1e-4, atol=1e-3)


def test_a_frozen_kernel_costs_no_gradient(monkeypatch):
    monkeypatch.setattr(convolution, "PIECE_BYTES", 64)
    x, weights = normal(0, 4, 8, 8, 3), normal(1, 3, 3, 3, 4)

    def convolutions(conv, *arguments):
        gradient = jax.grad(lambda *a: conv(*a).sum())
        return str(jax.make_jaxpr(gradient)(*arguments)).count("conv_general_dilated[")

    assert convolutions(lambda x: conv2d(x, weights), x) == 2
    assert convolutions(lambda w: conv2d(x, w), weights) > 8
    assert conv2d(x, weights).shape == (4, 6, 6, 4)
    # Several devices share the maps: they would send one another the pieces.
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert convolutions(lambda w: conv2d(x, w), weights) == 2


@pytest.mark.parametrize("channels", [1, 2])
def test_gradients_equal_finite_differences(channels):
    x, weights = normal(0, 2, 5, 4, channels), normal(1, 3, 2, channels, 3)
    conv = jax.jit(lambda x, k: conv2d(x, k, padding=(1, 0)))
    check_grads(conv, (x, weights), order=1, eps=0.1)


def test_some_kinds_take_another_route_on_the_cpu_only(monkeypatch):
    def convolutions(channels, stride=(1, 1), size=3, groups=1, pixels=9):
        kernel = normal(1, size, size, channels // groups, 64)
        jaxpr = jax.make_jaxpr(lambda x: conv2d(x, kernel, stride, groups=groups))(
            normal(0, 1, pixels, 9, channels)
        )
        return str(jaxpr).count("conv_general_dilated[")

    assert convolutions(channels=1) == 0
    assert convolutions(channels=1, stride=(2, 2)) == 1
    assert convolutions(channels=3) == 1
    assert convolutions(channels=3, stride=(2, 2), pixels=6) == 0  # 2 rows of output
    assert convolutions(channels=3, size=1, stride=(2, 2)) == 0
    assert convolutions(channels=64, groups=32) == 2
    assert convolutions(channels=64, groups=64) == 1  # depthwise
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert convolutions(channels=1) == 1
    assert convolutions(channels=3, stride=(2, 2), pixels=6) == 1
    assert convolutions(channels=3, size=1) == 1
    assert convolutions(channels=64, groups=32) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_vmap_equals_a_loop(channels):
    x, kernels = normal(0, 3, 2, 6, 5, channels), normal(1, 3, 3, 3, channels, 2)
    got = jax.jit(jax.vmap(conv2d))(x, kernels)
    for y, *pair in zip(got, x, kernels, strict=True):
        np.testing.assert_allclose(y, jitted_conv2d(*pair), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_bfloat16_stays_bfloat16(channels):
    x, kernel = normal(0, 2, 6, 6, channels), normal(1, 3, 3, channels, 4)
    got = jitted_conv2d(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    got, expected = np.asarray(got).astype(np.float32), jitted_conv2d(x, kernel)
    np.testing.assert_allclose(got, expected, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_kernel_that_does_not_fit_is_an_error_and_not_an_empty_array(channels):
    x, kernel = normal(0, 1, 6, 3, channels), normal(1, 5, 5, channels, 2)
    with pytest.raises(ValueError, match="kernel of 5 does not fit into an input of 3"):
        conv2d(x, kernel)
    fits = jax.eval_shape(lambda *pair: conv2d(*pair, padding=(0, 1)), x, kernel)
    assert fits.shape == (1, 2, 1, 2)


TRANSPOSED = [  # (h, w), kernel, stride, padding, output padding, groups, dilation
    ((4, 5), (2, 2), (2, 2), (0, 0), (0, 0), 1, (1, 1)),
    ((4, 5), (3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1)),
    ((3, 4), (4, 3), (2, 3), (1, 0), (0, 2), 1, (1, 1)),
    ((3, 2), (1, 2), (3, 1), (0, 0), (2, 0), 1, (1, 1)),  # pixels that nothing reaches
    ((4, 3), (3, 3), (2, 1), (1, 2), (1, 0), 2, (1, 1)),
    ((4, 3), (3, 2), (2, 1), (1, 1), (0, 0), 1, (2, 1)),
]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "extra", "groups", "dilation"), TRANSPOSED
)
def test_conv_transpose2d_is_the_gradient_of_conv2d(
    monkeypatch, backend, size, kernel, stride, padding, extra, groups, dilation
):
    # Each backend has its own form; here both run on the CPU.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    axes = zip(size, kernel, stride, padding, extra, dilation, strict=True)
    out = [conv_transpose_output_size(*axis) for axis in axes]
    x, weights = normal(0, 2, *size, 4), normal(1, *kernel, 6 // groups, 4)

    @jax.jit
    def both(x, weights):
        def convolve(y):
            return conv2d(y, weights, stride, padding, groups, dilation)

        _, vjp = jax.vjp(convolve, jnp.zeros((2, *out, 6)))
        got = conv_transpose2d(x, weights, stride, padding, extra, groups, dilation)
        return got, vjp(x)[0]

    np.testing.assert_allclose(*both(x, weights), rtol=1e-5, atol=1e-5)
    halves = jax.eval_shape(
        lambda *pair: conv_transpose2d(*pair, stride, padding, extra, groups, dilation),
        *(jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for v in (x, weights)),
    )
    assert halves.dtype == jnp.bfloat16


def test_a_transposed_convolution_that_is_none_is_an_error():
    x, kernel = normal(0, 1, 3, 3, 2), normal(1, 2, 2, 4, 2)
    with pytest.raises(ValueError, match="output padding below the stride 2"):
        conv_transpose2d(x, kernel, (2, 2), output_padding=(2, 0))
    with pytest.raises(ValueError, match="padding of 4 leaves nothing"):
        conv_transpose2d(x, kernel, padding=(4, 4))
    with pytest.raises(ValueError, match="stride=0"):
        conv_transpose2d(x, kernel, (0, 1))
