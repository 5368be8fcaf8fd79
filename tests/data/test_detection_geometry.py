"""Where boxes go, by hand; what a cut leaves; colours of a picture with boxes."""

import numpy as np
import pytest

from jaxvision.data import color_jitter, compose, random_horizontal_flip
from jaxvision.data.color import apply_hsv
from jaxvision.data.detection_geometry import (
    Keep,
    Placement,
    clip,
    cut,
    letterbox_placement,
    masks_to_boxes,
)
from jaxvision.data.detection_transforms import random_flip
from jaxvision.data.transforms import ExampleTransform, PictureTransform


def test_a_placement_by_hand():
    """10 x 20 doubled to 20 x 40, 3 down and 5 to the left of its canvas."""
    placement = Placement((10, 20), (20, 40), (30, 30), (3, -5))
    assert placement.scale == (2.0, 2.0)
    boxes = np.array([[1, 2, 4, 6], [0, 0, 20, 10]], np.float32)
    got = placement.to_canvas(boxes)
    assert got.tolist() == [[-3, 7, 3, 15], [-5, 3, 35, 23]]
    np.testing.assert_array_equal(placement.to_original(got), boxes)
    assert placement.to_original(np.array([[-99, -99, 99, 99]], np.float32)).tolist() == [
        [0, 0, 20, 10]
    ]


def test_boxes_come_back_from_any_letterbox():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width, *size = (int(n) for n in rng.integers(1, 900, 4))
        placement = letterbox_placement(height, width, tuple(size), center=bool(rng.integers(2)))
        corners = rng.random((5, 2, 2)) * (width, height)
        boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
        on_canvas = placement.to_canvas(boxes)
        assert (on_canvas >= -1e-3).all()
        assert (on_canvas <= np.array([*size[::-1], *size[::-1]]) + 1e-3).all()
        bound = 1e-4 * max(height, width) * max(1, height / size[0], width / size[1])
        assert abs(placement.to_original(on_canvas) - boxes).max() < bound
        # One side fits exactly, and the rest is shared.
        assert placement.resized[0] == size[0] or placement.resized[1] == size[1]


def test_masks_to_boxes_of_nothing_and_of_one_pixel():
    masks = np.zeros((2, 4, 5), bool)
    masks[1, 3, 4] = True
    assert masks_to_boxes(masks).tolist() == [[0, 0, 0, 0], [4, 3, 5, 4]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    ("keep", "stays"),
    [
        (Keep(), [0, 1, 2]),
        (Keep(min_size=2.0), [0, 2]),  # object 1 has one column left
        (Keep(min_visible=0.26), [2]),
        (Keep(min_visible=0.25), [0, 2]),  # object 0 has a quarter left
        (Keep(min_visible=1.0), [2]),
        (Keep(centers=True), [2]),
    ],
)
def test_what_stays(keep, stays):
    boxes = [[-15, 10, 5, 20], [-9, 0, 1, 9], [2, 3, 9, 9], [-8, 3, 0, 9], [4, 4, 4, 9]]
    example = {
        "image": np.zeros((20, 20, 3), np.uint8),
        "boxes": np.array(boxes, np.float32),
        "labels": np.arange(5, dtype=np.int32),
        "difficult": np.zeros(5, bool),
    }
    got = cut(example, keep)
    assert got["labels"].tolist() == stays
    expected = clip(example["boxes"], 20, 20)[stays]
    np.testing.assert_array_equal(got["boxes"], expected)


def test_hsv():
    image = np.array([[[200, 100, 100], [0, 255, 0], [90, 90, 90]]], np.uint8)
    assert apply_hsv(image, 0.0, 1.0, 1.0) is image
    turned = apply_hsv(image, 1 / 3, 1.0, 1.0).astype(int)
    assert abs(turned - [[[100, 200, 100], [0, 0, 255], [90, 90, 90]]]).max() <= 5
    grey = apply_hsv(image, 0.0, 0.0, 1.0)
    assert (grey == [[[200] * 3, [255] * 3, [90] * 3]]).all()
    assert (apply_hsv(image[..., :1], 0.2, 1.3, 0.5) == [[[100], [0], [45]]]).all()
    brighter = apply_hsv(image, 0.0, 1.0, 2.0).astype(int)
    assert abs(brighter - [[[255, 128, 128], [0, 255, 0], [180, 180, 180]]]).max() <= 2


def test_pictures_that_move_alone_refuse_boxes():
    rng = np.random.default_rng(0)
    example = {"image": np.zeros((9, 9, 3), np.uint8), "boxes": np.zeros((0, 4), np.float32)}
    for transform in (
        random_horizontal_flip(),
        compose(color_jitter(0.1), random_horizontal_flip()),
    ):
        assert isinstance(transform, PictureTransform)
        with pytest.raises(ValueError, match="leaves its boxes where they are"):
            transform(example, rng)
    assert isinstance(compose(random_flip(), color_jitter(0.1)), ExampleTransform)
