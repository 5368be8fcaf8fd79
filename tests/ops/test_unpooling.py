"""Unpooling by hand and against loops: where a value goes, and where its gradient comes from."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import max_pool_with_argmax, max_unpool, unpool_bed_of_nails, unpool_nearest
from jaxvision.ops.unpooling import _max_unpool


def slow_max_unpool(x, indices, output_size, cotangent):
    """Returns the map, and the gradient of `x` for the map's `cotangent`."""
    out_h, out_w = output_size
    x, cotangent = np.asarray(x), np.asarray(cotangent)
    y, gradient = np.zeros((len(x), out_h, out_w, x.shape[-1]), x.dtype), np.zeros_like(x)
    for n, i, j, c in np.ndindex(x.shape):
        place = indices[n, i, j, c]
        if 0 <= place < out_h * out_w:
            y[n, place // out_w, place % out_w, c] = x[n, i, j, c]
            gradient[n, i, j, c] = cotangent[n, place // out_w, place % out_w, c]
    return y, gradient


pool = jax.jit(max_pool_with_argmax, static_argnums=(1, 2, 3))
unpool = jax.jit(max_unpool, static_argnums=2)


@partial(jax.jit, static_argnums=(2, 4))
def unpool_with_gradient(x, indices, output_size, cotangent, backend="cpu"):
    """Each backend has its own form, and so its own trace."""
    y, vjp = jax.vjp(lambda x: max_unpool(x, indices, output_size), x)
    return y, vjp(cotangent)[0]


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [
        ((6, 8), (2, 2), (2, 2), (0, 0)),
        ((7, 5), (2, 2), (2, 2), (0, 0)),  # a row and a column are left over
        ((6, 9), (3, 3), (3, 3), (0, 0)),
        ((7, 9), (3, 3), (2, 2), (1, 1)),  # windows overlap: values meet
        ((8, 8), (2, 2), (2, 2), (1, 1)),  # indices leave their cells
        ((3, 3), (1, 1), (1, 1), (0, 0)),
    ],
)
def test_back_to_where_the_maxima_stood(monkeypatch, backend, size, window, stride, padding):
    x = normal(0, 2, *size, 3)
    pooled, indices = pool(x, window, stride, padding)
    # Both forms run on the CPU here.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    values, cotangent = normal(1, *pooled.shape), normal(2, *x.shape)
    expected = slow_max_unpool(values, np.asarray(indices), size, cotangent)
    got = unpool_with_gradient(values, indices, size, cotangent, backend)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_any_indices_even_such_as_lie_outside():
    rng = np.random.default_rng(0)
    indices = rng.integers(-40, 80, (2, 4, 3, 2)).astype(np.int32)
    values, cotangent = normal(1, 2, 4, 3, 2), normal(2, 2, 8, 6, 2)
    expected = slow_max_unpool(values, indices, (8, 6), cotangent)
    got = unpool_with_gradient(values, indices, (8, 6), cotangent)
    np.testing.assert_array_equal(got[1], expected[1])
    # Where several values meet, the last one stays on the CPU.
    np.testing.assert_array_equal(got[0], expected[0])


def test_both_forms_meet_in_one_compiled_function():
    """Which form runs depends on the numbers in `indices` alone."""
    neat = np.array([0, 3, 8, 15], np.int32).reshape(1, 2, 2, 1)
    wild = np.array([15, 8, 3, 0], np.int32).reshape(1, 2, 2, 1)
    values = np.array([1.0, 2.0, 3.0, 4.0], np.float32).reshape(1, 2, 2, 1)
    compiled = []
    for indices, expected in ((neat, [1, 2, 3, 4]), (wild, [4, 3, 2, 1])):
        flat = np.asarray(unpool(values, indices, (4, 4))).reshape(-1)
        assert flat[[0, 3, 8, 15]].tolist() == expected
        assert flat.sum() == 10
        compiled.append(unpool._cache_size())
    assert len(set(compiled)) == 1


def test_pooling_what_was_unpooled_changes_nothing():
    x = np.abs(normal(0, 1, 8, 6, 2)) + 0.1
    values, indices = pool(x, 2)
    again, indices_again = pool(unpool(values, indices, (8, 6)), 2)
    np.testing.assert_array_equal(values, again)
    np.testing.assert_array_equal(indices, indices_again)


def test_nan_and_infinity_stay_at_their_pixel():
    values = np.array([np.nan, np.inf, 1.0, -0.0], np.float32).reshape(1, 2, 2, 1)
    indices = np.array([1, 2, 12, 10], np.int32).reshape(1, 2, 2, 1)
    y = np.asarray(unpool(values, indices, (4, 4))).reshape(-1)
    assert np.isnan(y[1])
    assert y[2] == np.inf
    assert y[12] == 1
    assert np.delete(y, [1, 2, 12]).tolist() == [0.0] * 13


def test_leading_axes_vmap_and_bfloat16():
    x = normal(0, 2, 3, 4, 6, 2)
    values, indices = map(np.asarray, pool(x, 2))
    expected = np.asarray(unpool(values, indices, (4, 6)))
    assert expected.shape == x.shape
    over_both = jax.jit(jax.vmap(jax.vmap(lambda v, i: max_unpool(v, i, (4, 6)))))
    np.testing.assert_array_equal(over_both(values, indices), expected)
    np.testing.assert_array_equal(unpool(values[0, 0], indices[0, 0], (4, 6)), expected[0, 0])
    halves = unpool(values.astype(jnp.bfloat16), indices, (4, 6))
    assert halves.dtype == jnp.bfloat16
    np.testing.assert_array_equal(halves, expected.astype(jnp.bfloat16))


def test_the_indices_have_no_gradient():
    values, indices = normal(0, 1, 2, 2, 1), np.array([0, 3, 8, 15], np.int32).reshape(1, 2, 2, 1)
    _, vjp = jax.vjp(jax.jit(lambda v, i: _max_unpool(v, i, (4, 4))), values, indices)
    assert vjp(np.ones((1, 4, 4, 1), np.float32))[1].dtype == jax.dtypes.float0


@partial(jax.jit, static_argnums=(0, 1))
def with_gradient(function, factor, x, cotangent):
    y, vjp = jax.vjp(lambda x: function(x, factor), x)
    return y, vjp(cotangent)[0]


@pytest.mark.parametrize("factor", [1, 2, (3, 2)])
def test_nearest_and_bed_of_nails_equal_numpys(factor):
    down, across = (factor, factor) if isinstance(factor, int) else factor
    x = normal(0, 2, 3, 4, 2)
    repeated = np.repeat(np.repeat(x, down, axis=1), across, axis=2)
    nails = np.zeros_like(repeated)
    nails[:, ::down, ::across] = x
    cotangent = normal(1, *repeated.shape)
    cells = cotangent.reshape(2, 3, down, 4, across, 2)
    for function, expected, gradient in (
        (unpool_nearest, repeated, cells.sum(axis=(2, 4))),
        (unpool_bed_of_nails, nails, cells[:, :, 0, :, 0]),
    ):
        y, of_x = with_gradient(function, factor, x, cotangent)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_allclose(of_x, gradient, rtol=1e-6)
        compiled = jax.jit(function, static_argnums=1)
        np.testing.assert_array_equal(compiled(x[0], factor), expected[0])
        assert compiled(x.astype(jnp.bfloat16), factor).dtype == jnp.bfloat16
        with pytest.raises(ValueError, match="factor of at least 1, got 0"):
            function(x, 0)
