"""roi_align and the levels of a pyramid against torchvision's, masks against its Mask R-CNN's."""

import math
from functools import partial

import jax
import numpy as np
import pytest
import torch

from jaxvision.ops import assign_levels, crop_masks, paste_masks, roi_align

from .tensors import from_nchw, to_nchw, to_torch
from .torchvision_cpu import torchvision

# torchvision's operator in Python; its wrapper compiles it with a C++ compiler first.
TORCH_ROI_ALIGN = torchvision.ops.roi_align.__globals__["_roi_align"].__wrapped__
NUMBER, ADAPTIVE = 1000, 250
"""Boxes; with adaptive samples the Python form takes as many a bin as the map has pixels."""


def boxes_of(number, height, width, seed, feature=1.0):
    """Boxes whose samples are within a feature of the map: what torchvision's Python form gets
    right. Further outside it repeats the border, where its compiled one gives zeros, as we do."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (number, 2, 2)), axis=1)
    corners[::5, 1] = np.minimum(corners[::5, 0] + rng.uniform(0, 0.05, (len(corners[::5]), 2)), 1)
    corners[1::5, 1] = corners[1::5, 0]  # empty
    boxes = corners.reshape(number, 4) * [width, height, width, height]
    boxes[2::5] = np.round(boxes[2::5])
    boxes[3::5] = np.clip(boxes[3::5] * 1.4 - 0.2 * width, 0, [width, height, width, height])
    # A box is stretched to one feature, which shall be inside as well.
    boxes[:, :2] = np.minimum(boxes[:, :2], np.array([width, height]) - feature)
    return boxes.astype(np.float32)


@partial(jax.jit, static_argnames=("output_size", "scale", "ratio", "aligned"))
def align_with_gradient(features, boxes, cotangent, output_size, scale, ratio, aligned):
    y, vjp = jax.vjp(lambda f: roi_align(f, boxes, output_size, scale, ratio, aligned), features)
    return y, vjp(cotangent)[0]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("size", "output_size", "scale", "ratio"),
    [
        ((13, 17), (7, 7), 1 / 4, 2),  # the box head's
        ((13, 17), (14, 14), 1 / 16, 2),  # the mask head's
        ((9, 12), (7, 7), 1 / 8, -1),
        ((9, 12), (3, 2), 1.0, 3),
        ((16, 10), (2, 3), 1 / 7, -1),
        ((11, 11), (1, 4), 1 / 32, 1),
    ],
)
def test_roi_align(size, output_size, scale, ratio, aligned):
    """8 times 1,000 boxes, and 4 times 250."""
    number = NUMBER if ratio > 0 else ADAPTIVE
    rng = np.random.default_rng(ratio + 1)
    features = rng.normal(size=(*size, 2)).astype(np.float32)
    boxes = boxes_of(number, size[0] / scale, size[1] / scale, size[0], 1 / scale)
    theirs = to_nchw(features[None]).requires_grad_()
    rois = torch.cat([torch.zeros(number, 1), to_torch(boxes)], dim=1)
    expected = TORCH_ROI_ALIGN(theirs, rois, scale, *output_size, ratio, aligned)
    cotangent = rng.normal(size=(number, *output_size, 2)).astype(np.float32)
    expected.backward(to_nchw(cotangent))
    y, gradient = align_with_gradient(
        features, boxes, cotangent, output_size, scale, ratio, aligned
    )
    np.testing.assert_allclose(y, from_nchw(expected), atol=1e-5)
    largest = theirs.grad.abs().max().item()
    np.testing.assert_allclose(gradient / largest, from_nchw(theirs.grad)[0] / largest, atol=1e-5)


def test_levels():
    from torchvision.ops.poolers import LevelMapper

    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(0, 7, (10_000, 2)))
    sides[:100] = 2.0 ** rng.integers(2, 10, (100, 1)) * 7  # on the borders between levels
    start = rng.uniform(0, 500, (10_000, 2)).round()
    boxes = np.concatenate([start, start + sides], axis=1).astype(np.float32)
    boxes[::50, 2:] = boxes[::50, :2]
    for first, last in ((2, 5), (3, 4)):
        expected = LevelMapper(first, last)([to_torch(boxes)])
        np.testing.assert_array_equal(
            jax.jit(partial(assign_levels, first_level=first, last_level=last))(boxes), expected
        )


def test_masks_are_cropped_to_boxes_as_mask_rcnn_does():
    rng = np.random.default_rng(0)
    blobs = rng.normal(size=(5, 6, 8)).repeat(4, axis=1).repeat(4, axis=2) > 0  # [5, 24, 32]
    boxes, matched = boxes_of(15, 24, 32, seed=1), rng.integers(0, 5, 15)
    rois = torch.cat([to_torch(matched)[:, None].float(), to_torch(boxes)], dim=1)
    expected = TORCH_ROI_ALIGN(to_torch(blobs)[:, None].float(), rois, 1.0, 28, 28, -1, False)[:, 0]
    targets = jax.jit(partial(crop_masks, size=28))(blobs, boxes, matched)
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_masks_are_pasted_as_mask_rcnn_does():
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    rng = np.random.default_rng(0)
    size, number = (40, 56), 300
    boxes = boxes_of(number, *size, seed=2)
    boxes[::3] += rng.uniform(-30, 30, (100, 1)).astype(np.float32)  # partly or all outside
    masks = rng.uniform(size=(number, 28, 28)).astype(np.float32)
    inside = [_touches(box, size) for box in boxes]
    boxes, masks = boxes[inside], masks[inside]  # torchvision fails on a box all outside
    expected = paste_masks_in_image(to_torch(masks)[:, None], to_torch(boxes), size)[:, 0].numpy()
    pasted = paste_masks(masks, boxes, size, threshold=None)
    np.testing.assert_allclose(pasted, expected, atol=1e-5)
    clear = np.abs(expected - 0.5) > 1e-5
    np.testing.assert_array_equal(paste_masks(masks, boxes, size)[clear], (expected > 0.5)[clear])


def _touches(box, size):
    """Whether the box, grown by a mask's border, has a pixel inside the picture."""
    half, centre = (box[2:] - box[:2]) / 2 * 30 / 28, (box[2:] + box[:2]) / 2
    first, last = np.trunc(centre - half), np.trunc(centre + half)
    return bool((last >= 0).all() and (first < size[::-1]).all() and math.isfinite(box.sum()))
