"""Batch normalisation against a plain NumPy version in float64, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision.ops import batch_norm, normalize_by, valid_rows

# Compiled whole: operation by operation takes ten times as long.
compiled = jax.jit(batch_norm)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def same(value, channels):
    return np.full(channels, value, np.float32)


def plain(x, scale, bias, eps=1e-5):
    """Algorithm 1 of the paper, line by line."""
    x = np.asarray(x, np.float64)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = ((x - mean) ** 2).mean(axes)
    normalised = (x - mean) / np.sqrt(var + eps)
    return normalised * np.asarray(scale) + np.asarray(bias), mean, var


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 4, 3), (3, 6, 2), (2, 2, 3, 2, 5)])
def test_values(shape):
    x, scale, bias = normal(0, *shape) * 3 + 1, normal(1, shape[-1]), normal(2, shape[-1])
    *got, count = compiled(x, scale, bias)
    for ours, expected in zip(got, plain(x, scale, bias), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    assert count == np.prod(shape[:-1])


def test_a_large_mean_does_not_cancel_the_variance():
    x = normal(0, 64, 4) + 3000
    _, _, var, _ = compiled(x, same(1, 4), same(0, 4))
    np.testing.assert_allclose(var, plain(x, 1, 0)[2], rtol=1e-4)


def test_a_constant_channel_gives_the_bias():
    bias = np.array([1.0, -1.0], np.float32)
    y, _, var, _ = compiled(np.full((8, 2), 5, np.float32), same(1, 2), bias)
    np.testing.assert_allclose(y, [[1.0, -1.0]] * 8, atol=1e-5)
    np.testing.assert_array_equal(var, 0)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_output_mean_and_variance(masked):
    """The statistics are outputs too, and a loss may depend on them."""
    x, scale, bias = normal(0, 4, 3, 2), normal(1, 2), normal(2, 2)
    weights = normal(3, 4, 3, 2)
    valid = jnp.array([True, True, False, True]) if masked else None

    def loss(x, scale, bias):
        with valid_rows(valid):
            y, mean, var, _ = batch_norm(x, scale, bias)
        kept = y if valid is None else jnp.where(valid[:, None, None], y, 0)
        return (kept * weights).sum() + (mean**2).sum() + 3 * (var**2).sum()

    check_grads(jax.jit(loss), (x, scale, bias), order=1, modes=["rev"], eps=1e-2, rtol=2e-2)


@jax.jit
def with_gradient(x, valid, scale, bias):
    def loss(x):
        with valid_rows(valid):
            y, mean, var, count = batch_norm(x, scale, bias)
        kept = y if valid is None else jnp.where(valid[:, None, None], y, 0)
        return (kept**3).sum(), (mean, var, count)

    return jax.value_and_grad(loss, has_aux=True)(x)


@pytest.mark.parametrize("poison", [0.0, 1e6, np.nan])
def test_rows_that_are_not_valid_are_not_seen(poison):
    x, scale, bias = normal(0, 5, 4, 3), normal(1, 3), normal(2, 3)
    valid = np.array([True, False, True, True, False])
    poisoned = np.where(valid[:, None, None], x, np.float32(poison))
    (value, got), gradient = with_gradient(poisoned, valid, scale, bias)
    (wanted, expected), wanted_gradient = with_gradient(x[valid], None, scale, bias)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(gradient)[valid], wanted_gradient, rtol=1e-4, atol=1e-4)


def test_without_a_valid_row_nothing_is_magnified():
    x = normal(0, 4, 3, 2)

    def loss(x):
        with valid_rows(jnp.zeros(4, bool)):
            y, mean, var, count = batch_norm(x, same(1, 2), same(0, 2))
        return y.sum(), (y, mean, var, count)

    (_, (y, mean, var, count)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(y, x, rtol=1e-4)
    assert (count, mean.tolist(), var.tolist()) == (0, [0, 0], [1, 1])
    assert not np.asarray(gradient).any()


def test_valid_rows_must_fit_and_end_with_their_context():
    x = normal(0, 4, 2)
    scale, bias = same(1, 2), same(0, 2)
    with valid_rows(np.ones(3, bool)), pytest.raises(ValueError, match=r"4 rows, but .* has 3"):
        batch_norm(x, scale, bias)
    assert batch_norm(x, scale, bias)[3] == 4


def test_bfloat16_has_float32_statistics():
    x = normal(0, 32, 4, 3) * 2 + 1
    y, mean, var, _ = compiled(x.astype(jnp.bfloat16), same(1, 3), same(0, 3))
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(np.asarray(y).astype(np.float32), plain(x, 1, 0)[0], atol=0.03)


def test_normalize_by_given_statistics():
    x, mean, var = normal(0, 2, 3, 4), normal(1, 4), np.abs(normal(2, 4)) + np.float32(0.1)
    scale, bias = normal(3, 4), normal(4, 4)
    got = jax.jit(normalize_by, static_argnames="eps")(x, mean, var, scale, bias, eps=1e-3)
    expected = (x - mean) / np.sqrt(var + 1e-3) * scale + bias
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
