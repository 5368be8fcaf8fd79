"""Pools against loops: values, indices, the whole gradient to a window's first maximum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision import ops
from jaxvision.ops import max_pool, pool_output_size

# One program each: what is called outside of jit is compiled operator by operator.
pool = jax.jit(max_pool, static_argnums=(1, 2, 3))
avg_pool = jax.jit(ops.avg_pool, static_argnums=(1, 2, 3))
max_pool_with_argmax = jax.jit(
    ops.max_pool_with_argmax, static_argnums=(1, 2, 3), static_argnames="ceil_mode"
)

POOLS = [  # (h, w), window, stride, padding
    ((6, 8), (2, 2), (2, 2), (0, 0)),
    ((7, 5), (2, 2), (2, 2), (0, 0)),  # a row and a column are left over
    ((7, 9), (3, 3), (2, 2), (1, 1)),  # windows overlap, ResNet's
    ((5, 6), (3, 2), (1, 1), (1, 1)),
    ((9, 8), (2, 2), (3, 3), (1, 0)),  # the stride skips pixels
    ((6, 9), (2, 3), (1, 4), (0, 1)),
    ((1, 1), (1, 1), (1, 1), (0, 0)),
    ((1, 1), (3, 3), (2, 2), (1, 1)),  # one pixel in the middle of padding
    ((12, 13), (11, 11), (1, 2), (0, 0)),
    ((2, 140), (1, 130), (1, 4), (0, 3)),  # an offset that does not fit into int8
]
LARGE_POOLS = [((14, 13), (12, 12), (1, 1), (0, 0)), ((13, 20), (8, 16), (4, 3), (2, 5))]


def pictures(size, seed=0):
    """[5, h, w, 2]: noise, ties of three values, ReLU's zeros, all equal, and huge numbers."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(*size, 2))
    ties, relu = rng.integers(-1, 2, noise.shape), np.maximum(noise - 1, 0)
    return np.stack([noise, ties, relu, np.full_like(noise, -7), 1e37 * noise]).astype(np.float32)


def slow_max_pool(x, window, stride, padding, ceil_mode=False):
    """Returns the pooled pictures, for small integers the gradient, and where the maxima stand."""
    (b, h, w, c), (ph, pw) = x.shape, padding
    # So much on the right that every window fits which may be asked for.
    pads = ((0, 0), *((p, p + f) for p, f in zip(padding, window, strict=True)), (0, 0))
    padded = np.pad(x, pads, constant_values=-np.inf)
    starts = [
        [
            start
            for start in range(0, size + 2 * p, s)
            if start + f <= size + 2 * p
            or (ceil_mode and start < size + p and start + f - s < size + 2 * p)
        ]
        for size, f, s, p in zip((h, w), window, stride, padding, strict=True)
    ]
    y = np.zeros((b, len(starts[0]), len(starts[1]), c), np.float32)
    gradient, indices = np.zeros(padded.shape, np.float64), np.zeros(y.shape, np.int64)
    cotangent = small_integers(y.shape)
    for index in np.ndindex(y.shape):
        n, i, j, channel = index
        best = None
        for pixel in np.ndindex(window):
            place = (n, starts[0][i] + pixel[0], starts[1][j] + pixel[1], channel)
            inside = ph <= place[1] < h + ph and pw <= place[2] < w + pw
            if not inside:
                continue
            if best is None or padded[place] > padded[best] or np.isnan(padded[place]):
                best = place
        y[index], indices[index] = padded[best], (best[1] - ph) * w + best[2] - pw
        gradient[best] += cotangent[index]
    return y, gradient[:, ph : ph + h, pw : pw + w], indices


def small_integers(shape):
    """Their sums are exact in any order, so that gradients can be compared for equality."""
    return np.random.default_rng(1).integers(-9, 10, shape).astype(np.float32)


@partial(jax.jit, static_argnums=(0, 3, 4, 5))
def with_gradient(function, x, cotangent, window, stride, padding):
    y, vjp = jax.vjp(lambda x: function(x, window, stride, padding), x)
    return y, vjp(cotangent)[0]


@pytest.mark.parametrize(("size", "window", "stride", "padding"), POOLS + LARGE_POOLS)
def test_values_and_gradients_equal_loops(size, window, stride, padding):
    x = pictures(size)
    expected, gradient, _ = slow_max_pool(x, window, stride, padding)
    cotangent = small_integers(expected.shape)
    y, got = with_gradient(max_pool, x, cotangent, window, stride, padding)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(got, gradient)


def by_xla(x, window, stride, padding):
    pads = ((0, 0), *((p, p) for p in padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), pads)


@pytest.mark.parametrize(("size", "window", "stride", "padding"), POOLS)
def test_values_and_gradients_equal_xlas_own(size, window, stride, padding):
    x = pictures(size, seed=3)
    out = [pool_output_size(*axis) for axis in zip(size, window, stride, padding, strict=True)]
    cotangent = small_integers((5, *out, 2))
    got, expected = (
        with_gradient(function, x, cotangent, window, stride, padding)
        for function in (max_pool, by_xla)
    )
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


CEIL_POOLS = [  # (h, w), window, stride, padding
    ((7, 6), (3, 3), (2, 2), (0, 0)),  # SqueezeNet's: along the width something is left over
    ((6, 8), (2, 2), (2, 2), (0, 0)),  # nothing is left over
    ((5, 7), (2, 3), (3, 4), (1, 1)),  # a last window would start in the padding on the right
    ((2, 1), (4, 3), (3, 3), (0, 1)),  # a window larger than the picture
    ((6, 5), (3, 2), (4, 2), (1, 0)),
]


@pytest.mark.parametrize(("size", "window", "stride", "padding"), CEIL_POOLS)
def test_ceil_mode_equals_loops(size, window, stride, padding):
    x = pictures(size)
    expected, gradient, _ = slow_max_pool(x, window, stride, padding, ceil_mode=True)
    cotangent = small_integers(expected.shape)
    function = partial(max_pool, ceil_mode=True)
    y, got = with_gradient(function, x, cotangent, window, stride, padding)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(got, gradient)


@pytest.mark.parametrize("kind", ["numbers", "nan", "minus infinity"])
@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "ceil_mode"),
    [(*p, False) for p in POOLS[:5] + POOLS[-1:]] + [(*p, True) for p in CEIL_POOLS],
)
def test_argmax_equals_loops(size, window, stride, padding, ceil_mode, kind):
    x = pictures(size, seed=7)
    strange = np.random.default_rng(3).random(x.shape) < 0.3
    if kind == "nan":
        x[strange] = np.nan
    elif kind == "minus infinity":  # whole pictures of it too, whose windows begin in the padding
        x[strange], x[0] = -np.inf, -np.inf
    expected, _, places = slow_max_pool(x, window, stride, padding, ceil_mode)
    y, indices = max_pool_with_argmax(x, window, stride, padding, ceil_mode=ceil_mode)
    assert indices.dtype == jnp.int32
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, places)


def test_the_gradient_of_argmax_pooling_is_max_pools():
    x, cotangent = pictures((7, 9)), small_integers((5, 3, 4, 2))
    got, expected = (
        with_gradient(function, x, cotangent, 3, 2, 0)
        for function in (lambda *pool: max_pool_with_argmax(*pool)[0], max_pool)
    )
    np.testing.assert_array_equal(got[1], expected[1])
    assert np.abs(expected[1]).sum() > 1


def test_pool_output_size_in_ceil_mode_counts_the_windows_that_hold_a_pixel():
    for size, f, s, p in np.ndindex(9, 6, 5, 3):
        size, f, s = size + 1, f + 1, s + 1
        if 2 * p > f:
            continue
        starts = [i for i in range(0, size + p, s) if i - s + f < size + 2 * p]
        if not starts or (size + 2 * p < f and f - size - 2 * p >= s):
            with pytest.raises(ValueError, match="does not fit"):
                pool_output_size(size, f, s, p, ceil_mode=True)
        else:
            assert pool_output_size(size, f, s, p, ceil_mode=True) == len(starts)
    with pytest.raises(ValueError, match="stride=0"):
        pool_output_size(2, 4, 0, ceil_mode=True)


def test_avg_pool_counts_the_zeros_of_the_padding():
    x = np.arange(1, 7, dtype=np.float32).reshape(2, 3, 1)
    assert avg_pool(x, 2).tolist() == [[[3.0]]]
    assert avg_pool(x, 2, 2, 1).tolist() == [[[0.25], [1.25]], [[1.0], [2.75]]]
    assert avg_pool(x.astype(jnp.bfloat16), (1, 3)).dtype == jnp.bfloat16
    weights = np.array([1.0, 2.0], np.float32).reshape(1, 2, 1)
    _, gradient = with_gradient(ops.avg_pool, x, weights, 2, 1, 0)
    assert gradient.tolist() == [[[0.25], [0.75], [0.5]]] * 2


def test_a_tie_gives_the_whole_gradient_to_the_first_maximum():
    x = np.array([[1.0, 3.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0]], np.float32)[..., None]
    cotangent = np.array([[[5.0], [7.0]]], np.float32)
    gradient = np.asarray(with_gradient(max_pool, x, cotangent, 2, None, 0)[1])
    assert gradient[..., 0].tolist() == [[0.0, 5.0, 7.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("size", "window", "stride", "padding"), POOLS[:5] + LARGE_POOLS)
def test_nan_wins(size, window, stride, padding):
    x = pictures(size, seed=5)
    x[np.random.default_rng(2).random(x.shape) < 0.02] = np.nan
    expected, *_ = slow_max_pool(x, window, stride, padding)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(pool(x, window, stride, padding), expected)


def test_one_nan_gets_the_gradient_of_its_window():
    x = np.array([[1.0, np.nan, 2.0, 3.0], [9.0, 2.0, 4.0, np.nan]], np.float32)[..., None]
    y, gradient = with_gradient(max_pool, x, np.ones((1, 2, 1), np.float32), 2, None, 0)
    assert np.isnan(y).all()
    assert np.asarray(gradient)[..., 0].tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("window", [(3, 2), (12, 11)])
def test_gradients_equal_finite_differences(window):
    # No two pixels are closer than the step, so that the pool is linear where it is differenced.
    x = np.random.default_rng(0).permutation(14 * 13).reshape(14, 13, 1)
    x = x.astype(np.float32)
    check_grads(lambda x: pool(x, window, 2, 1), (x,), order=1, modes=["rev"], eps=0.05)


def test_defaults_and_integers_for_pairs():
    x = pictures((9, 8))
    expected, *_ = slow_max_pool(x, (3, 3), (3, 3), (0, 0))
    np.testing.assert_array_equal(pool(x, 3), expected)
    expected, *_ = slow_max_pool(x, (3, 3), (2, 2), (1, 1))
    np.testing.assert_array_equal(pool(x, 3, 2, 1), expected)


def test_any_leading_axes_and_vmap():
    x = pictures((6, 7))
    expected = np.asarray(pool(x, 2))
    np.testing.assert_array_equal(pool(x[0], 2), expected[0])
    nested = np.asarray(pool(x[:4].reshape(2, 2, 6, 7, 2), 2))
    np.testing.assert_array_equal(nested[1, 1], expected[3])
    np.testing.assert_array_equal(jax.vmap(lambda x: pool(x, 2))(x), expected)
    assert pool(np.zeros((0, 6, 7, 2), np.float32), 2).shape == (0, 3, 3, 2)


@pytest.mark.parametrize("window", [3, 12])
def test_bfloat16_stays_bfloat16(window):
    x = pictures((13, 12)).astype(jnp.bfloat16)
    expected = np.asarray(pool(x.astype(np.float32), window, 2))
    y, gradient = with_gradient(max_pool, x, expected.astype(jnp.bfloat16), window, 2, 0)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y).astype(np.float32), expected)


def test_compiles_once_for_one_shape():
    compiled = []
    for seed in range(3):
        cotangent = np.ones((5, 4, 5, 2), np.float32)
        with_gradient(max_pool, pictures((7, 9), seed), cotangent, (3, 3), (2, 2), (1, 1))
        compiled.append(with_gradient._cache_size())
    assert len(set(compiled)) == 1


def test_what_does_not_fit_is_an_error():
    x = np.zeros((1, 4, 3, 1), np.float32)
    with pytest.raises(ValueError, match=r"padding \(2, 2\) is more than half of the window"):
        max_pool(x, 3, padding=2)
    with pytest.raises(ValueError, match="kernel of 4 does not fit into an input of 3"):
        max_pool(x, 4)
    with pytest.raises(ValueError, match="stride=0"):
        max_pool(x, 2, 0)
