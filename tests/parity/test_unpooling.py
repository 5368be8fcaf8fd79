"""Indices, ceil_mode, unpooling and transposed convolution against torch's own, to the last bit."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jaxvision.models.layers import ConvTranspose
from jaxvision.ops import (
    avg_pool,
    max_pool,
    max_pool_with_argmax,
    max_unpool,
    unpool_bed_of_nails,
    unpool_nearest,
)
from jaxvision.weights.rules import leaves

from .tensors import from_nchw, to_nchw, to_torch

POOLS = [  # window, stride, padding
    (2, 2, 0),
    (3, 3, 0),
    (3, 2, 1),
    (3, 2, 0),
    ((2, 3), (1, 2), (1, 0)),
    (12, 3, 0),
]


STATIC = ("window", "stride", "padding", "ceil_mode")
with_argmax = jax.jit(max_pool_with_argmax, static_argnames=STATIC)


@partial(jax.jit, static_argnames=("pool", *STATIC))
def with_gradient(x, cotangent, pool, **options):
    y, vjp = jax.vjp(partial(pool, **options), x)
    return y, vjp(cotangent)[0]


def picture(kind, shape):
    rng = np.random.default_rng(len(kind))
    x = rng.normal(size=shape).astype(np.float32)
    if kind == "relu":
        return np.maximum(x - 1, 0)
    if kind == "nan":
        return np.where(rng.random(shape) < 0.15, np.float32(np.nan), x)
    if kind == "infinite":  # -inf everywhere in one picture, and in part of the other
        return np.where(x < 0.5, -np.inf, x) if kind == "infinite" else x
    return x


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kind", ["normal", "relu", "nan", "infinite"])
@pytest.mark.parametrize(("window", "stride", "padding"), POOLS)
def test_values_and_indices(window, stride, padding, kind, ceil_mode):
    x = picture(kind, (2, 13, 16, 3))
    expected, places = F.max_pool2d(
        to_nchw(x), window, stride, padding, ceil_mode=ceil_mode, return_indices=True
    )
    y, indices = with_argmax(x, window=window, stride=stride, padding=padding, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(y, from_nchw(expected))
    np.testing.assert_array_equal(indices, from_nchw(places))


@pytest.mark.parametrize("kind", ["normal", "relu"])
@pytest.mark.parametrize(("window", "stride", "padding"), POOLS)
def test_ceil_mode_and_its_gradient(window, stride, padding, kind):
    x = picture(kind, (2, 13, 16, 3))
    theirs = to_nchw(x).requires_grad_()
    expected = F.max_pool2d(theirs, window, stride, padding, ceil_mode=True)
    rng = np.random.default_rng(0)
    cotangent = rng.integers(-9, 10, from_nchw(expected).shape).astype(np.float32)
    expected.backward(to_nchw(cotangent))
    options = {"window": window, "stride": stride, "padding": padding, "ceil_mode": True}
    y, gradient = with_gradient(x, cotangent, max_pool, **options)
    np.testing.assert_array_equal(y, from_nchw(expected))
    np.testing.assert_array_equal(gradient, from_nchw(theirs.grad))


@pytest.mark.parametrize("size", range(1, 12))
def test_ceil_mode_has_torchs_sizes(size):
    ours = jax.ShapeDtypeStruct((1, size, size, 1), np.float32)
    for window in range(1, 6):
        for stride in range(1, 6):
            for padding in range(window // 2 + 1):
                x = torch.zeros(1, 1, size, size)
                run = partial(
                    max_pool, window=window, stride=stride, padding=padding, ceil_mode=True
                )
                try:
                    expected = F.max_pool2d(x, window, stride, padding, ceil_mode=True).shape[-1]
                except RuntimeError:
                    with pytest.raises(ValueError, match="does not fit"):
                        jax.eval_shape(run, ours)
                    continue
                assert jax.eval_shape(run, ours).shape[1] == expected


def test_avg_pool():
    x = picture("normal", (2, 13, 16, 3))
    for window, stride, padding in POOLS:
        theirs = to_nchw(x).requires_grad_()
        expected = F.avg_pool2d(theirs, window, stride, padding)
        expected.backward(expected.detach())
        cotangent, options = from_nchw(expected), {"stride": stride, "padding": padding}
        y, gradient = with_gradient(x, cotangent, avg_pool, window=window, **options)
        np.testing.assert_allclose(y, from_nchw(expected), atol=1e-6)
        np.testing.assert_allclose(gradient, from_nchw(theirs.grad), atol=1e-6)


@pytest.fixture
def one_thread_without_guarantees():
    """torch calls max_unpool2d not deterministic; on the one thread of these tests it is."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


@pytest.mark.usefixtures("one_thread_without_guarantees")
@pytest.mark.parametrize(("window", "stride", "padding"), POOLS[:4])
def test_max_unpool(window, stride, padding):
    x = picture("normal", (2, 13, 16, 3))
    y, places = F.max_pool2d(to_nchw(x), window, stride, padding, return_indices=True)
    # The same values again: where windows overlap, torch and we agree on which one stays.
    theirs = y.clone().requires_grad_()
    expected = F.max_unpool2d(theirs, places, window, stride, padding, output_size=(13, 16))
    cotangent = picture("relu", (2, 13, 16, 3))
    expected.backward(to_nchw(cotangent))

    @jax.jit
    def run(values, indices, cotangent):
        got, vjp = jax.vjp(lambda v: max_unpool(v, indices, (13, 16)), values)
        return got, vjp(cotangent)[0]

    got, gradient = run(from_nchw(y), from_nchw(places).astype(np.int32), cotangent)
    np.testing.assert_array_equal(got, from_nchw(expected))
    np.testing.assert_array_equal(gradient, from_nchw(theirs.grad))


@pytest.mark.parametrize("factor", [2, 3])
def test_nearest_and_bed_of_nails(factor):
    x = picture("normal", (2, 5, 6, 3))
    nearest = F.interpolate(to_nchw(x), scale_factor=factor, mode="nearest")
    np.testing.assert_array_equal(unpool_nearest(x, factor), from_nchw(nearest))
    one = torch.zeros(3, 1, factor, factor)
    one[:, 0, 0, 0] = 1
    nails = F.conv_transpose2d(to_nchw(x), one, stride=factor, groups=3)
    np.testing.assert_array_equal(unpool_bed_of_nails(x, factor), from_nchw(nails))


TRANSPOSED = [  # features, kernel, stride, padding, output padding, groups, dilation
    (6, (2, 2), 2, 0, 0, 1, 1),  # U-Net's and the mask head's
    (6, (3, 3), 2, 1, 1, 1, 1),
    (6, (4, 4), 2, 1, 0, 1, 1),
    (3, (3, 3), 1, 1, 0, 1, 1),
    (3, (1, 1), 3, 0, 2, 1, 1),  # pixels that nothing reaches
    (3, (3, 2), 2, 2, 1, 1, 1),
    (3, (3, 3), 2, 3, 1, 1, 1),
    (6, (5, 5), 3, 2, 1, 2, 1),
    (8, (3, 3), 2, 1, 1, 4, 1),  # depthwise
    (3, (3, 2), 2, 2, 1, 1, 2),
]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("features", "kernel", "stride", "padding", "extra", "groups", "dilation"), TRANSPOSED
)
def test_conv_transpose(features, kernel, stride, padding, extra, groups, dilation, use_bias):
    torch.manual_seed(0)
    arguments = stride, padding, extra, groups
    theirs = nn.ConvTranspose2d(4, features, kernel, *arguments, use_bias, dilation)
    ours = ConvTranspose(features, kernel, *arguments, dilation, use_bias)
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    expected = theirs(x)
    cotangent = torch.randn(expected.shape)
    expected.backward(cotangent)

    # Conversion's own rule, by the names that it gives the leaves.
    shapes = jax.eval_shape(ours.init, jax.random.key(0), from_nchw(x))
    state = dict(theirs.named_parameters())
    rules = {leaf.path[-1]: leaf for leaf in leaves({"params": {"up": shapes["params"]}})}
    assert {f"up.{name}" for name in state} == {leaf.torch_name for leaf in rules.values()}
    converted, gradients = (
        {n: leaf.from_torch(t[leaf.torch_name[3:]]) for n, leaf in rules.items()}
        for t in (
            {n: p.detach().numpy() for n, p in state.items()},
            {n: p.grad.numpy() for n, p in state.items()},
        )
    )
    for name, leaf in rules.items():
        np.testing.assert_array_equal(
            leaf.to_torch(converted[name]), state[leaf.torch_name[3:]].detach().numpy()
        )

    @jax.jit
    def run(params, x, cotangent):
        y, vjp = jax.vjp(lambda p, x: ours.apply({"params": p}, x), params, x)
        return y, *vjp(cotangent)

    y, grads, x_grad = run(converted, from_nchw(x), from_nchw(cotangent))
    for got, wanted in (
        (y, from_nchw(expected)),
        (x_grad, from_nchw(x.grad)),
        *((grads[name], gradients[name]) for name in converted),
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5)


def test_the_initial_draw_of_conv_transpose():
    theirs = nn.ConvTranspose2d(40, 60, 3, groups=2)
    draw = jax.jit(ConvTranspose(60, (3, 3), groups=2).init)
    params = draw(jax.random.key(0), np.zeros((1, 2, 2, 40), np.float32))
    bound = 1 / np.sqrt(30 * 9)
    for ours, tensor in (
        (params["params"]["kernel"], theirs.weight),
        (params["params"]["bias"], theirs.bias),
    ):
        assert ours.size == tensor.numel()
        for draw in (np.asarray(ours), tensor.detach().numpy()):
            assert bound * (1 - 30 / draw.size) < np.abs(draw).max() <= bound * (1 + 1e-6)
            assert draw.var() == pytest.approx(bound**2 / 3, rel=6 / np.sqrt(draw.size))
    assert to_torch(params["params"]["kernel"]).shape == (3, 3, 30, 40)
