"""Resizing by hand, against a loop over pixels, and what must not change anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import resize_bilinear, resize_nearest


def pictures(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def slow_axis(x, wanted, align_corners, antialias):
    """Resizes the first axis in float64, pixel by pixel."""
    length = len(x)
    step = length / wanted
    if align_corners:
        step = (length - 1) / (wanted - 1) if wanted > 1 else 0
    rows = []
    for i in range(wanted):
        if antialias:
            centre, reach = step * (i + 0.5), max(step, 1)
            first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), length)
            weights = {j: max(1 - abs(j + 0.5 - centre) / reach, 0) for j in range(first, end)}
        else:
            place = step * i if align_corners else max(step * (i + 0.5) - 0.5, 0)
            low = min(int(place), length - 1)
            weights = {low: 1 - (place - low)}
            if low + 1 < length:
                weights[low + 1] = place - low
            else:
                weights[low] = 1
        total = sum(weights.values())
        rows.append(sum(w * x[j] for j, w in weights.items()) / total)
    return np.array(rows)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("size", "wanted"), [((4, 6), (7, 13)), ((9, 7), (4, 2)), ((5, 3), (1, 9)), ((1, 2), (3, 5))]
)
def test_bilinear_equals_a_loop(size, wanted, align_corners, antialias):
    x = pictures(*size, 2)
    y = np.asarray(x, np.float64)
    y = slow_axis(y, wanted[0], align_corners, antialias)
    y = slow_axis(y.swapaxes(0, 1), wanted[1], align_corners, antialias).swapaxes(0, 1)
    got = jax.jit(resize_bilinear, static_argnums=(1, 2, 3))(x, wanted, align_corners, antialias)
    np.testing.assert_allclose(got, y, atol=1e-5)


def test_shrinking_with_and_without_antialias():
    x = jnp.zeros((8, 1, 1)).at[3].set(8.0)  # one bright row
    assert resize_bilinear(x, (2, 1))[:, 0, 0].tolist() == [0.0, 0.0]  # skipped
    smooth = resize_bilinear(x, (2, 1), antialias=True)[:, 0, 0]
    assert smooth[0] > smooth[1] > 0
    np.testing.assert_allclose(resize_bilinear(x, (4, 1))[:, 0, 0], [0.0, 4.0, 0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_plane_stays_a_plane_and_the_same_size_changes_nothing(align_corners):
    x = pictures(2, 5, 6, 3)
    np.testing.assert_array_equal(resize_bilinear(x, (5, 6), align_corners), x)
    np.testing.assert_array_equal(resize_nearest(x, (5, 6)), x)
    ones = jnp.ones((5, 6, 1))
    for antialias in (False, True):
        y = resize_bilinear(ones, (13, 4), align_corners, antialias)
        np.testing.assert_allclose(y, 1.0, rtol=1e-6)
    ramp = jnp.arange(5.0).reshape(5, 1, 1)
    aligned = resize_bilinear(ramp, (9, 1), align_corners=True)[:, 0, 0]
    np.testing.assert_allclose(aligned, np.arange(9) / 2, rtol=1e-6)


def test_nearest_copies_labels():
    x = pictures(3, 4, 2)
    y = np.asarray(resize_nearest(x, (7, 9)))
    rows, columns = np.arange(7) * 3 // 7, np.arange(9) * 4 // 9
    np.testing.assert_array_equal(y, np.asarray(x)[rows][:, columns])


def test_leading_axes_vmap_bfloat16_and_one_compile():
    x = pictures(2, 3, 4, 5, 2)
    run = jax.jit(lambda x: resize_bilinear(x, (6, 3)))
    y = run(x)
    assert y.shape == (2, 3, 6, 3, 2)
    np.testing.assert_allclose(jax.vmap(run)(x), y, atol=1e-6)
    np.testing.assert_allclose(resize_bilinear(x[1, 2], (6, 3)), y[1, 2], atol=1e-6)
    run(2 * x)
    assert run._cache_size() <= 2  # one for each rank
    halves = resize_bilinear(x.astype(jnp.bfloat16), (6, 3))
    assert halves.dtype == jnp.bfloat16
    exact = resize_bilinear(x.astype(jnp.bfloat16).astype(jnp.float32), (6, 3))
    np.testing.assert_array_equal(halves, exact.astype(jnp.bfloat16))
    assert resize_nearest(x.astype(jnp.bfloat16), (2, 2)).dtype == jnp.bfloat16


def test_the_gradient_is_the_transposed_interpolation():
    x, cotangent = pictures(4, 3, 1), pictures(7, 2, 1)
    y, vjp = jax.vjp(lambda x: resize_bilinear(x, (7, 2)), x)
    np.testing.assert_allclose((vjp(cotangent)[0] * x).sum(), (cotangent * y).sum(), rtol=1e-5)


@pytest.mark.parametrize("resize", [resize_bilinear, resize_nearest])
def test_sizes_without_pixels(resize):
    with pytest.raises(ValueError, match="at least 1, got 4 x 5 to be resized to 0 x 3"):
        resize(jnp.zeros((4, 5, 1)), (0, 3))
    with pytest.raises(ValueError, match="got 0 x 5"):
        resize(jnp.zeros((0, 5, 1)), (2, 3))
