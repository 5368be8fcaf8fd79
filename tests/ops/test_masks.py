"""Masks: crops against roi_align, pasting by hand, run lengths there and back."""

import tracemalloc
from functools import partial

import jax
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.ops import BoxMasks, crop_masks, decode_masks, encode_masks, paste_masks, roi_align

crop = jax.jit(crop_masks, static_argnames="size")


def blobs(number, h, w, seed=0):
    return np.random.default_rng(seed).random((number, h, w)) > 0.5


def test_a_crop_is_roi_align_of_its_mask():
    rng = np.random.default_rng(0)
    masks, matched = blobs(3, 12, 17), rng.integers(0, 3, 40).astype(np.int32)
    corners = rng.uniform(-5, 22, (40, 2, 2)).astype(np.float32)
    corners[:30].sort(axis=1)  # the rest are turned round
    boxes = corners.reshape(40, 4)
    boxes[7], boxes[9] = np.nan, np.inf
    got = np.asarray(crop(masks, boxes, matched, size=(5, 4)))
    align = jax.jit(partial(roi_align, output_size=(5, 4)))
    aligned = align(masks.transpose(1, 2, 0).astype(np.float32), boxes)
    expected = np.asarray(aligned)[np.arange(40), :, :, matched]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not got[[7, 9]].any()
    assert got.max() > 0.9
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    of_none = crop(masks.astype(np.float32), *none, size=3)
    assert of_none.shape == (0, 3, 3)


def test_a_picture_in_a_larger_array_is_cropped_as_alone():
    """What is sampled at its border is the border's own pixel, and not the padding beside it."""
    mask = np.zeros((1, 12, 16), bool)
    mask[:, 4:9, 5:11] = True
    boxes = np.array([[5.0, 4.0, 11.0, 9.0], [2.0, 1.0, 11.0, 9.0]], np.float32)
    first = np.zeros(2, np.int32)
    alone = crop(mask[:, :9, :11], boxes, first, size=28)
    inside, of_all = (
        np.asarray(crop(mask, boxes, first, size=28, picture_size=size))
        for size in ((9, 11), (12, 16))
    )
    np.testing.assert_allclose(inside, alone, atol=1e-6)
    np.testing.assert_allclose(inside[0], 1, atol=1e-6)
    assert of_all[0, -1, -1] < 0.3


def test_crops_under_vmap_compile_once_and_have_no_gradient():
    masks, matched = blobs(2, 12, 16).reshape(2, 1, 12, 16), np.zeros((2, 2), np.int32)
    boxes = np.full((2, 2, 4), 2, np.float32)
    boxes[..., 2:] = 7

    @jax.jit
    @jax.vmap
    def run(masks, boxes, matched):
        y, vjp = jax.vjp(lambda b: crop_masks(masks, b, matched, 28), boxes)
        return y, vjp(y)[0]

    y, gradient = (np.asarray(x) for x in run(masks, boxes, matched))
    alone = crop(masks[1], boxes[1], matched[1], size=28, picture_size=(12, 16))
    np.testing.assert_allclose(y[1], alone, atol=1e-6)
    run(masks, boxes + 1, matched)
    assert run._cache_size() == 1
    assert y.any()
    assert not gradient.any()


def test_a_pasted_mask_fills_its_box():
    boxes = np.array([[10.0, 5.0, 30.0, 25.0]], np.float32)
    (mask,) = paste_masks(np.ones((1, 28, 28), np.float32), boxes, (40, 50))
    expected = np.zeros((40, 50), bool)
    expected[5:25, 10:30] = True
    # torchvision's box has its last pixel inside, which can add one.
    assert (mask ^ expected).sum() <= 2 * 21
    assert mask[6:24, 11:29].all()
    half = np.zeros((1, 28, 28), np.float32)
    half[:, :, 14:] = 1
    (mask,) = paste_masks(half, boxes, (40, 50))
    assert mask[8:22, 22:28].all()
    assert not mask[:, :19].any()


@pytest.mark.parametrize(
    "box",
    [
        [60.0, 5.0, 90.0, 25.0],
        [-90.0, -50.0, -60.0, -25.0],
        [np.nan, 5.0, 30.0, 25.0],
        [0.0, 0.0, np.inf, 9.0],
    ],
)
def test_boxes_outside_or_with_nan_leave_nothing(box):
    pasted = paste_masks(np.ones((1, 4, 4), np.float32), np.array([box], np.float32), (30, 40))
    assert not pasted.any()


def test_odd_boxes_are_pasted_too():
    boxes = np.array(
        [[5, 5, 5, 5], [9, 9, 3, 3], [-1e6, -1e6, 1e6, 1e6], [-3, -2, 4, 5]], np.float32
    )
    pasted = paste_masks(np.ones((4, 4, 4), np.float32), boxes, (12, 10), threshold=None)
    assert pasted.shape == (4, 12, 10)
    assert np.isfinite(pasted).all()
    assert (pasted[2] == 1).all()
    assert pasted[3, 0, 0] == pytest.approx(1, abs=1e-5)
    empty = paste_masks(np.ones((0, 4, 4), np.float32), np.zeros((0, 4), np.float32), (12, 10))
    assert empty.shape == (0, 12, 10)


@pytest.mark.parametrize("number", [0, 1, 5])
def test_run_lengths_there_and_back(number):
    masks = blobs(number, 7, 9)
    if number > 2:
        masks[0], masks[1] = False, True
    encoded = encode_masks(masks)
    assert len(encoded) == number
    decoded = decode_masks(encoded, (7, 9))
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, masks)


def test_run_lengths_of_another_size_are_named():
    encoded = encode_masks(blobs(2, 7, 9))
    with pytest.raises(
        UserError, match=r"expected .* 9 x 7 pixels \(h x w\), got number 0 of 7 x 9"
    ):
        decode_masks(encoded, (9, 7))


# ---------------------------------------------------------------------- masks of detections
def box_masks(number, size, seed=0):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (number, 2, 2)), axis=1) * np.array([size[1], size[0]])
    boxes = corners.reshape(number, 4).astype(np.float32)
    return BoxMasks(rng.uniform(size=(number, 28, 28)).astype(np.float32), boxes, size)


def test_masks_of_detections_are_pasted_one_by_one():
    masks = box_masks(5, (40, 50))
    expected = paste_masks(masks.probabilities, masks.boxes, masks.size)
    np.testing.assert_array_equal(np.asarray(masks), expected)
    assert masks.shape == expected.shape == (5, 40, 50)
    none = np.asarray(masks.select(np.zeros(5, bool)))
    assert (none.shape, none.dtype) == ((0, 40, 50), bool)
    assert expected.any(axis=(1, 2)).all()
    assert len(masks) == 5
    np.testing.assert_array_equal(np.stack(list(masks)), expected)
    np.testing.assert_array_equal(masks[-1], expected[-1])
    np.testing.assert_array_equal(decode_masks(masks.run_lengths(), (40, 50)), expected)
    chosen = masks.select(np.array([True, False, False, True, False]))
    np.testing.assert_array_equal(np.stack(list(chosen)), expected[[0, 3]])
    twice = masks.resized((80, 100))[0]
    assert twice.shape == (80, 100)
    assert abs(twice.mean() - expected[0].mean()) < 0.1


def test_a_hundred_masks_of_a_large_picture_take_little_memory():
    """Twelve million pixels each: as arrays they would take 1.2 GB."""
    masks = box_masks(100, (3000, 4000))
    tracemalloc.start()
    encoded = masks.select(np.arange(3)).run_lengths()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [each["size"] for each in encoded] == [[3000, 4000]] * 3
    assert peak < 150e6
    assert sum(x.nbytes for x in (masks.probabilities, masks.boxes)) < 1e6


def test_several_masks_are_selected():
    masks = BoxMasks(np.ones((3, 28, 28), np.float32), np.tile([[0.0, 0, 8, 8]], (3, 1)), (9, 9))
    for several in (slice(2), np.array([True, False, True]), [0, 1]):
        with pytest.raises(TypeError, match="`select` takes several"):
            masks[several]
    assert masks[-1].shape == masks[np.int64(2)].shape == (9, 9)
    assert len(masks.select(np.array([0, 1]))) == 2
