"""Mirror images at test time: what is found does not depend on which of the two is given."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.models import detection
from jaxvision.models.mirrored import mirror_pictures, with_mirror_images
from jaxvision.models.selection import Selection
from jaxvision.types import PaddedInstances, PaddedPoses

SIZES = np.array([[6, 10], [8, 12]], np.int32)


class LeftBright(nn.Module):
    """It has nothing to learn: `left_bright` finds objects."""

    keypoints: bool = False


def left_bright(model, variables, images, sizes, selection):
    """Finds the brightest column of the left half alone, with a mask that is its picture's row."""
    columns = images[..., 0].mean(axis=1)[:, :6]
    x = columns.argmax(axis=1).astype(jnp.float32)
    boxes = jnp.stack([x, 0 * x, x + 2, 0 * x + 4], axis=-1)[:, None]
    ones = jnp.ones((len(images), 1))
    found = (boxes, columns.max(axis=1)[:, None], ones.astype(jnp.int32), ones > 0)
    if model.keypoints:
        return PaddedPoses(*found, jnp.zeros((len(images), 1, 3, 2)), jnp.zeros((2, 1, 3)))
    masks = jnp.broadcast_to(jnp.array([[0.0, 1.0]]), (len(images), 1, 2, 2))
    return PaddedInstances(*found, masks)


def test_both_sides_are_looked_at():
    images = np.zeros((2, 8, 12, 3), np.float32)
    images[0, :, 1], images[0, :, 8] = 0.9, 0.5  # the second one in the mirror image at 1
    images[1, :, 10] = 0.7
    find = with_mirror_images(left_bright)
    found = jax.jit(functools.partial(find, LeftBright(), {}, selection=Selection(0.05, 0.5, 3)))(
        images=jnp.asarray(images), sizes=jnp.asarray(SIZES)
    )
    assert found.valid.tolist() == [[True, True, False], [True, True, False]]
    np.testing.assert_allclose(found.scores, [[0.9, 0.5, 0], [0.7, 0, 0]], atol=1e-6)
    assert found.boxes[0, :2].tolist() == [[1, 0, 3, 4], [7, 0, 9, 4]]
    assert found.boxes[1, 0].tolist() == [9, 0, 11, 4]
    assert found.masks[0, :, 0].tolist() == [[0, 1], [1, 0], [0, 0]]  # mirrored as its box is


def test_a_mirror_image_is_of_the_picture_and_not_of_its_padding():
    images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    mirrored = mirror_pictures(jnp.asarray(images), jnp.asarray(SIZES))
    np.testing.assert_array_equal(mirrored[0, :, :10], images[0, :, 9::-1])
    np.testing.assert_array_equal(mirrored[0, :, 10:], images[0, :, 10:])
    np.testing.assert_array_equal(mirrored[1], images[1, :, ::-1])


def test_keypoints_are_refused():
    find = with_mirror_images(left_bright)
    with pytest.raises(ValueError, match="without keypoints"):
        find(LeftBright(True), {}, jnp.zeros((2, 8, 12, 3)), jnp.asarray(SIZES), Selection())


def test_the_detector_hands_it_on(monkeypatch):
    monkeypatch.setitem(detection.DETECTORS, LeftBright, left_bright)
    images = np.zeros((2, 8, 12, 3), np.uint8)
    images[:, :, 9] = 200
    alone, both = (
        detection.make_detector(LeftBright(), flip=flip, max_detections=4)({}, images, SIZES)
        for flip in (False, True)
    )
    assert alone.boxes.shape[1] == 1
    assert both.valid.sum(axis=1).tolist() == [2, 2]
    assert both.boxes[1, 0].tolist() == [9 - 1, 0, 10, 4]
