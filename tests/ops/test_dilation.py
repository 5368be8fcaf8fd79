"""Dilated convolution: as with a kernel that has zeros between its pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import conv2d


def spread_out(kernel, dilation):
    """The kernel with zeros between its pixels, in NumPy."""
    fh, fw, c, k = kernel.shape
    down, across = dilation
    large = np.zeros(((fh - 1) * down + 1, (fw - 1) * across + 1, c, k), kernel.dtype)
    large[::down, ::across] = kernel
    return large


def test_by_hand():
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 5, 1)
    kernel = np.array([1.0, 0.0, 10.0], np.float32).reshape(1, 3, 1, 1)
    dilated = jax.jit(partial(conv2d, dilation=(1, 2)), static_argnames="padding")
    assert dilated(x, kernel).ravel().tolist() == [40.0]
    y = dilated(x, kernel, padding=(0, 2))
    assert y.shape == (1, 1, 5, 1)
    assert y.ravel().tolist() == [20.0, 30.0, 40.0, 1.0, 2.0]


@partial(jax.jit, static_argnums=(2, 3))
def with_gradients(x, kernel, groups, dilation):
    def loss(x, kernel):
        y = conv2d(x, kernel, (2, 1), (2, 3), groups, dilation)
        return (y * jnp.cos(y)).sum(), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    return y, *gradients


@pytest.mark.parametrize("dilation", [(2, 2), (3, 1), (1, 4)])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 1), (4, 2)])
def test_values_and_gradients_equal_the_kernel_with_zeros(dilation, channels, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 11, 13, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels // groups, 6)).astype(np.float32)
    y, *gradients = with_gradients(x, kernel, groups, dilation)
    large = spread_out(kernel, dilation)
    expected, dx, dlarge = map(np.asarray, with_gradients(x, large, groups, (1, 1)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[0], dx, rtol=1e-4, atol=1e-4)
    dkernel = dlarge[:: dilation[0], :: dilation[1]]
    np.testing.assert_allclose(gradients[1], dkernel, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_reaches_too_far_is_refused():
    with pytest.raises(ValueError, match="a kernel of 9 does not fit into an input of 8"):
        conv2d(
            np.zeros((1, 8, 8, 1), np.float32),
            np.zeros((3, 3, 1, 1), np.float32),
            dilation=(4, 4),
        )
