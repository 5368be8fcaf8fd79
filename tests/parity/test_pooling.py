"""max_pool against F.max_pool2d: values and gradients are equal to the last bit, ties included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxvision.ops import max_pool

from .tensors import from_nchw, to_nchw

POOLS = [  # window, stride, padding
    (2, None, 0),
    (3, None, 0),
    (3, 2, 1),  # ResNet's
    (3, 2, 0),  # AlexNet's: windows overlap
    (3, 1, 1),
    (2, 1, 0),
    (2, 3, 1),  # the stride skips pixels
    ((2, 3), None, 0),
    ((2, 3), (1, 2), (1, 0)),
    ((3, 2), (2, 3), (0, 1)),
    (12, 3, 0),
]
KINDS = ["normal", "relu", "integers", "constant", "infinite", "nan"]
CASES = [(*pool, kind) for pool in POOLS for kind in KINDS]
# max_pool says that it differs here: of several NaN in so large a window another gets the gradient.
CASES.remove((12, 3, 0, "nan"))


def pictures_of(kind, shape):
    """Random pictures that make the rule for ties and for NaN matter."""
    rng = np.random.default_rng(len(kind))
    x = rng.normal(size=shape).astype(np.float32)
    if kind == "relu":
        return np.maximum(x - 1, 0)
    if kind == "integers":
        return rng.integers(-1, 2, shape).astype(np.float32)
    if kind == "constant":
        return np.full(shape, -7, np.float32)
    if kind == "nan":
        return np.where(rng.random(shape) < 0.15, np.float32(np.nan), x)
    if kind == "infinite":
        # But for the border: max_pool says that it differs where padding meets nothing but -inf.
        inside = x[:, 1:-1, 1:-1]
        inside[inside < -0.5], inside[inside > 0.5] = -np.inf, np.inf
        return x
    assert kind == "normal"
    return x


@partial(jax.jit, static_argnames=("window", "stride", "padding"))
def pool_with_gradient(x, cotangent, window, stride, padding):
    y, vjp = jax.vjp(lambda x: max_pool(x, window, stride, padding), x)
    return y, vjp(cotangent)[0]


def compare(x, window, stride, padding, dtype=jnp.float32):
    theirs = to_nchw(x).to(torch.bfloat16 if dtype == jnp.bfloat16 else torch.float32)
    theirs.requires_grad_()
    expected = F.max_pool2d(theirs, window, stride, padding)
    # Small integers: their sums are exact in any order and any dtype, so equal means equal.
    rng = np.random.default_rng(1)
    cotangent = rng.integers(-9, 10, from_nchw(expected.float()).shape).astype(np.float32)
    expected.backward(to_nchw(cotangent).to(expected.dtype))

    ours = jnp.asarray(x, dtype), jnp.asarray(cotangent, dtype)
    y, gradient = pool_with_gradient(*ours, window, stride, padding)
    assert y.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y, np.float32), from_nchw(expected.float()))
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), from_nchw(theirs.grad.float()))


@pytest.mark.parametrize(("window", "stride", "padding", "kind"), CASES)
def test_float32(window, stride, padding, kind):
    compare(pictures_of(kind, (2, 13, 17, 3)), window, stride, padding)


@pytest.mark.parametrize("kind", ["relu", "nan"])
@pytest.mark.parametrize(("window", "stride", "padding"), [(2, None, 0), (3, 2, 1), (2, 3, 1)])
def test_bfloat16(window, stride, padding, kind):
    compare(pictures_of(kind, (2, 13, 17, 3)), window, stride, padding, jnp.bfloat16)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (4, 7), (28, 28)])
def test_sizes_that_the_window_does_not_divide(size):
    compare(pictures_of("relu", (1, *size, 2)), 2, None, 0)
    if min(size) > 2:
        compare(pictures_of("relu", (1, *size, 2)), 3, 2, 1)
