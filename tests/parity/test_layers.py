"""Conv and Dense against Conv2d and Linear: values, all gradients, and the initial draw."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jaxvision.models.layers import Conv, Dense
from jaxvision.ops import conv2d

from .tensors import from_nchw, from_oihw, to_nchw, to_torch

CONVOLUTIONS = [  # channels, features, kernel, stride, padding, groups
    (1, 6, (5, 5), 1, 0, 1),  # LeNet's first: patches times a matrix on the CPU
    (1, 4, (3, 3), 1, 1, 1),
    (1, 4, (3, 5), 1, 2, 1),
    (1, 5, (1, 1), 1, 0, 1),
    (1, 4, (3, 3), 2, 1, 1),
    (3, 8, (7, 7), 2, 3, 1),  # ResNet's first
    (3, 4, (3, 3), 1, 1, 1),
    (3, 4, (3, 3), 3, 0, 1),
    (3, 4, (2, 3), 2, 1, 1),
    (4, 6, (1, 1), 2, 0, 1),  # ResNet's shortcut
    (4, 6, (3, 3), 1, 1, 2),
    (4, 4, (3, 3), 2, 1, 4),  # depthwise
    (4, 8, (5, 5), 1, 2, 4),
]


def values_and_gradients(layer, params, x, cotangent):
    @jax.jit
    def run(params, x, cotangent):
        y, vjp = jax.vjp(lambda params, x: layer.apply({"params": params}, x), params, x)
        return y, *vjp(cotangent)

    return run(params, x, cotangent)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "features", "kernel", "stride", "padding", "groups"), CONVOLUTIONS
)
def test_conv(channels, features, kernel, stride, padding, groups, use_bias):
    torch.manual_seed(0)
    theirs = nn.Conv2d(channels, features, kernel, stride, padding, groups=groups, bias=use_bias)
    ours = Conv(features, kernel, stride, padding, groups, use_bias)
    x = torch.randn(2, channels, 9, 12, requires_grad=True)
    expected = theirs(x)
    cotangent = torch.randn(expected.shape)
    expected.backward(cotangent)

    params = {"kernel": from_oihw(theirs.weight)}
    expected_grads = {"kernel": from_oihw(theirs.weight.grad)}
    if use_bias:
        params["bias"] = theirs.bias.detach().numpy()
        expected_grads["bias"] = theirs.bias.grad.numpy()
    shapes = jax.eval_shape(ours.init, jax.random.key(0), from_nchw(x))["params"]
    assert jax.tree.map(lambda s: s.shape, shapes) == jax.tree.map(lambda a: a.shape, params)
    y, grads, x_grad = values_and_gradients(ours, params, from_nchw(x), from_nchw(cotangent))
    compare(y, from_nchw(expected))
    compare(x_grad, from_nchw(x.grad))
    jax.tree.map(compare, grads, expected_grads)


def compare(ours, theirs):
    """Sums of some hundred products of numbers around 1, taken in another order."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


convolve = jax.jit(conv2d, static_argnums=(2, 3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (1, 2), (3, 1)])
def test_conv2d_with_a_stride_and_a_padding_for_each_side(channels, padding, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 11, channels)).astype(np.float32)
    kernel = rng.normal(size=(4, 3, channels, 5)).astype(np.float32)
    weight = to_torch(kernel).permute(3, 2, 0, 1)
    expected = F.conv2d(to_nchw(x), weight, stride=stride, padding=padding)
    y = convolve(x, kernel, stride, padding)
    compare(y, from_nchw(expected))


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense(use_bias):
    torch.manual_seed(0)
    theirs = nn.Linear(40, 13, bias=use_bias)
    ours = Dense(13, use_bias)
    x = torch.randn(6, 40, requires_grad=True)
    expected = theirs(x)
    cotangent = torch.randn(expected.shape)
    expected.backward(cotangent)

    params, expected_grads = {"kernel": theirs.weight.detach().numpy().T}, {}
    expected_grads["kernel"] = theirs.weight.grad.numpy().T
    if use_bias:
        params["bias"] = theirs.bias.detach().numpy()
        expected_grads["bias"] = theirs.bias.grad.numpy()
    y, grads, x_grad = values_and_gradients(ours, params, x.detach().numpy(), cotangent.numpy())
    compare(y, expected.detach().numpy())
    compare(x_grad, x.grad.numpy())
    jax.tree.map(compare, grads, expected_grads)


LARGE = {  # fan-in, ours, theirs, the input's shape
    "conv": (800, Conv(4000, (5, 5)), lambda: nn.Conv2d(32, 4000, 5), (1, 5, 5, 32)),
    "one channel": (9, Conv(20000, (3, 3)), lambda: nn.Conv2d(1, 20000, 3), (1, 3, 3, 1)),
    "groups": (
        72,
        Conv(8000, (3, 3), groups=4),
        lambda: nn.Conv2d(32, 8000, 3, groups=4),
        (1, 3, 3, 32),
    ),
    "dense": (64, Dense(20000), lambda: nn.Linear(64, 20000), (1, 64)),
}


@pytest.mark.parametrize("layer", LARGE)
def test_initial_weights_and_biases_are_drawn_as_torch_draws_them(layer):
    fan_in, ours, theirs, shape = LARGE[layer]
    params = jax.jit(ours.init)(jax.random.key(0), np.zeros(shape, np.float32))["params"]
    torch.manual_seed(0)
    theirs = theirs()
    bound = 1 / np.sqrt(fan_in)
    for a, b in ((params["kernel"], theirs.weight), (params["bias"], theirs.bias)):
        a, b = np.asarray(a, np.float64), b.detach().double().numpy()
        assert a.size == b.size
        # Of n draws the mean scatters by bound / sqrt(3 n), the extremes by bound / n.
        scatter = bound / np.sqrt(3 * a.size)
        for draw in (a, b):
            assert np.abs(draw).max() <= bound * (1 + 1e-6)
            assert draw.max() > bound * (1 - 30 / a.size)
            assert draw.min() < -bound * (1 - 30 / a.size)
            assert abs(draw.mean()) < 4 * scatter
            assert draw.var() == pytest.approx(bound**2 / 3, rel=4 / np.sqrt(a.size))
        assert distance_of_distributions(a, b) < 2.5 / np.sqrt(a.size)


def distance_of_distributions(a, b):
    """Kolmogorov and Smirnov's: the largest difference between the cumulative distributions."""
    a, b = np.sort(a, axis=None), np.sort(b, axis=None)
    return np.abs(np.searchsorted(b, a) / b.size - np.arange(a.size) / a.size).max()
