"""R-CNN's crops: by hand, against a slow warp in NumPy, hostile boxes, gradient, one compile."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import warp_rois

warp = jax.jit(warp_rois, static_argnums=2, static_argnames=("padding", "size", "fill"))
SIZE, SIDE = (14, 18), 10
OF_ARRAY = (17, 20)


def slow_warp(image, box, side, padding, size, fill):
    """One crop, pixel by pixel, as appendix A describes it."""
    crop = np.full((side, side, image.shape[-1]), fill, np.float64)
    if not np.isfinite(box).all():
        return crop
    x1, y1, x2, y2 = (float(number) for number in box)
    step_x, step_y = (x2 - x1) / (side - 2 * padding), (y2 - y1) / (side - 2 * padding)
    for i in range(side):
        for j in range(side):
            x, y = x1 + (j + 0.5 - padding) * step_x, y1 + (i + 0.5 - padding) * step_y
            if not (0 <= x <= size[1] and 0 <= y <= size[0]):
                continue
            x, y = np.clip(x - 0.5, 0, size[1] - 1), np.clip(y - 0.5, 0, size[0] - 1)
            left, top = math.floor(x), math.floor(y)
            crop[i, j] = 0
            for row, row_share in ((top, 1 - (y - top)), (min(top + 1, size[0] - 1), y - top)):
                for column, share in (
                    (left, 1 - (x - left)),
                    (min(left + 1, size[1] - 1), x - left),
                ):
                    crop[i, j] += row_share * share * image[row, column]
    return crop


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*OF_ARRAY, 3)).astype(np.float32)
    image[SIZE[0] :], image[:, SIZE[1] :] = np.nan, np.nan  # padding is never looked at
    return image


BOXES = np.array(
    [
        [3.0, 2.0, 11.0, 9.0],
        [0.0, 0.0, 18.0, 14.0],  # the whole picture
        [-6.0, -3.0, 5.0, 4.0],  # partly outside
        [12.5, 9.25, 25.0, 20.0],
        [7.0, 5.0, 8.0, 6.0],  # one pixel
        [4.0, 4.0, 4.0, 9.0],  # no width
        [40.0, 40.0, 50.0, 50.0],  # nothing of the picture
        [np.nan, 0.0, 5.0, 5.0],
        [0.0, 0.0, np.inf, 5.0],
    ],
    np.float32,
)


@pytest.mark.parametrize("padding", [0, 3])
def test_as_a_slow_warp_does_it(image, padding):
    options = {"padding": padding, "size": SIZE, "fill": 7.0}
    crops = warp(image, BOXES, SIDE, **options)
    expected = [slow_warp(image, box, SIDE, padding, SIZE, 7.0) for box in BOXES]
    np.testing.assert_allclose(crops, expected, atol=1e-4)
    assert (np.asarray(crops)[-2:] == 7).all()


def test_a_whole_picture_of_the_right_size_is_itself():
    image = np.arange(6 * 6 * 2, dtype=np.float32).reshape(6, 6, 2)
    whole = np.array([[0.0, 0.0, 6.0, 6.0]], np.float32)
    np.testing.assert_array_equal(np.asarray(warp(image, whole, 6, padding=0))[0], image)
    # Two pixels around it are outside of the picture.
    padded = np.asarray(warp(image, whole, 10, padding=2, fill=-1.0))[0]
    np.testing.assert_array_equal(padded[2:-2, 2:-2], image)
    assert (padded[[0, 1, -2, -1]] == -1).all()


def test_the_box_is_padding_pixels_from_the_border_of_its_crop():
    """A white box on black, of any aspect, is a white square with a black margin of 16 pixels."""
    image = np.zeros((100, 200, 1), np.float32)
    image[20:50, 30:150] = 1
    crop = warp(image, np.array([[30.0, 20.0, 150.0, 50.0]], np.float32), 227)
    white = np.asarray(crop)[0, ..., 0] > 0.5
    for line in (white[113], white[:, 113]):
        assert np.flatnonzero(line).tolist() == list(range(16, 227 - 16))


def test_without_boxes():
    image, boxes = np.ones((4, 5, 3), np.float32), np.zeros((0, 4), np.float32)
    assert warp(image, boxes, 8, padding=1).shape == (0, 8, 8, 3)


def test_gradients_go_to_the_picture_alone(image):
    image, boxes = np.nan_to_num(image), BOXES

    def total(image, boxes):
        return (warp_rois(image, boxes, SIDE, padding=1, size=SIZE) ** 2).sum()

    of_image, of_boxes = jax.jit(jax.grad(total, argnums=(0, 1)))(image, boxes)
    total = jax.jit(total)
    assert np.isfinite(of_image).all()
    assert not np.asarray(of_image)[SIZE[0] :].any()
    step = 1e-2 * np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
    change = (float(total(image + step, boxes)) - float(total(image - step, boxes))) / 2
    assert change == pytest.approx((np.asarray(of_image) * step).sum(), rel=1e-2)
    np.testing.assert_array_equal(of_boxes, 0)


def test_one_compile_for_any_boxes_and_sizes():
    @jax.jit
    def warp_all(images, boxes, sizes):
        def one(image, boxes, size):
            return warp_rois(image, boxes, 6, padding=1, size=(size[0], size[1]))

        return jax.vmap(one)(images, boxes, sizes)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        images = rng.normal(size=(2, 9, 8, 1)).astype(np.float32)
        boxes = rng.uniform(0, 8, (2, 4, 4)).astype(np.float32)
        sizes = rng.integers(1, 8, (2, 2)).astype(np.int32)
        crops = np.asarray(warp_all(images, boxes, sizes))
        alone = warp(images[1], boxes[1], 6, padding=1, size=tuple(sizes[1].tolist()))
        np.testing.assert_allclose(crops[1], alone, atol=1e-5)
    assert warp_all._cache_size() == 1


def test_more_padding_than_crop_is_refused():
    with pytest.raises(ValueError, match="padding below half of 16, got 8"):
        warp_rois(jnp.zeros((4, 4, 3)), jnp.zeros((1, 4)), 16, padding=8)
