"""Bytes to normalised floats: every byte, by hand, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import normalize_images

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def random_bytes(shape):
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_every_byte_becomes_its_share_of_255():
    picture = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    got = normalize_images(picture)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.asarray(picture) / 255, rtol=1e-6)
    assert float(got.max()) == 1.0


def test_by_hand():
    picture = jnp.array([[[0, 51, 255]]], jnp.uint8)
    got = normalize_images(picture, mean=(0.0, 0.1, 0.5), std=(1.0, 0.2, 0.25))
    np.testing.assert_allclose(got, [[[0.0, 0.5, 2.0]]], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 5, 3), (2, 4, 5, 3), (2, 3, 4, 5, 3)])
@pytest.mark.parametrize("container", [tuple, list])
def test_one_value_a_channel_whatever_the_leading_axes(shape, container):
    pictures = random_bytes(shape)
    mean, std = (np.array(values) for values in IMAGENET.values())
    options = {name: container(values) for name, values in IMAGENET.items()}
    expected = (np.asarray(pictures) / 255 - mean) / std
    got = jax.jit(lambda x: normalize_images(x, **options))(pictures)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalize_images(pictures, **options), got, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_floats_are_taken_as_they_are_and_become_float32(dtype):
    x = jnp.array([[[0.0], [0.25], [1.0]]], dtype)
    got = normalize_images(x, mean=[0.5], std=2.0)
    assert got.dtype == jnp.float32
    assert got[0, :, 0].tolist() == [-0.25, -0.125, 0.25]


def test_vmap_equals_the_whole_batch():
    pictures = random_bytes((3, 4, 4, 3))
    one_by_one = jax.vmap(lambda x: normalize_images(x, **IMAGENET))(pictures)
    np.testing.assert_allclose(one_by_one, normalize_images(pictures, **IMAGENET), rtol=1e-6)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_wrong_number_of_values_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} has 3 values, the images have 1 channels"):
        normalize_images(jnp.zeros((1, 2, 2, 1), jnp.uint8), **{name: (0.1, 0.2, 0.3)})


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int8])
def test_other_integers_have_no_known_range(dtype):
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        normalize_images(jnp.zeros((1, 2, 2, 1), dtype))
