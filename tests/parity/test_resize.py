"""Resizing against F.interpolate: each mode, up and down, and the gradients."""

import jax
import numpy as np
import pytest
import torch.nn.functional as F

from jaxvision.ops import resize_bilinear, resize_nearest
from jaxvision.ops.resize import nearest_pixels

from .tensors import from_nchw, to_nchw

SIZES = [  # from, to
    ((7, 5), (14, 10)),
    ((28, 28), (224, 224)),
    ((100, 137), (224, 224)),
    ((64, 96), (13, 200)),  # one axis shrinks, the other grows
    ((33, 47), (8, 5)),
    ((1, 4), (3, 1)),
    ((6, 6), (6, 9)),  # one axis stays
]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_bilinear(size, wanted, align_corners, antialias):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    theirs = to_nchw(x).requires_grad_()
    mode = {"mode": "bilinear", "align_corners": align_corners, "antialias": antialias}
    expected = F.interpolate(theirs, wanted, **mode)
    cotangent = rng.normal(size=(2, *wanted, 3)).astype(np.float32)
    expected.backward(to_nchw(cotangent))

    @jax.jit
    def run(x, cotangent):
        y, vjp = jax.vjp(lambda x: resize_bilinear(x, wanted, align_corners, antialias), x)
        return y, vjp(cotangent)[0]

    y, gradient = run(x, cotangent)
    np.testing.assert_allclose(y, from_nchw(expected), atol=1e-5)
    np.testing.assert_allclose(gradient, from_nchw(theirs.grad), rtol=1e-5, atol=1e-4)


def test_nearest():
    enlarge = jax.jit(resize_nearest, static_argnums=1)
    x = np.random.default_rng(0).normal(size=(2, 7, 10, 3)).astype(np.float32)
    for wanted in ((14, 5), (3, 23), (7, 11)):
        expected = from_nchw(F.interpolate(to_nchw(x), wanted, mode="nearest"))
        np.testing.assert_array_equal(enlarge(x, wanted), expected)


def test_nearest_takes_torchs_pixels_at_all_small_sizes():
    for length in range(1, 100):
        x = np.arange(length, dtype=np.float32).reshape(1, 1, length, 1)
        for wanted in range(1, 100):
            expected = F.interpolate(to_nchw(x), (1, wanted), mode="nearest")
            np.testing.assert_array_equal(nearest_pixels(length, wanted), expected.flatten())
