"""Mask R-CNN and Keypoint R-CNN against torchvision's, on ten pictures of several sizes."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxvision.data import Placement
from jaxvision.losses import keypoint_head_loss, keypoint_targets, mask_head_loss, mask_rcnn_loss
from jaxvision.models import get_model
from jaxvision.models.detection import DETECTORS
from jaxvision.models.selection import Selection
from jaxvision.ops import BoxMasks, crop_masks, heatmaps_to_keypoints, normalize_images, paste_masks
from jaxvision.predict.preparation import Prepared
from jaxvision.predict.tasks import TASKS
from jaxvision.types import PaddedInstances, PaddedPoses
from jaxvision.weights import from_torch

from . import test_faster_rcnn_training as faster
from .tensors import from_nchw, to_nchw, to_torch
from .test_faster_rcnn import MEAN, STD, blobs, to_chw
from .torch_detectors import (
    _operators_in_python,  # noqa: F401
    detection,
    padded,
    state_of,
)
from .torch_instances import CASES, found_by, torch_instances

# The shorter side is what torchvision is told to resize to: it leaves them as they are.
SIZES = [(64, w) for w in (64, 70, 81, 96, 100)] + [(h, 64) for h in (66, 75, 88, 90, 96)]
TOP = {"pre_nms_top_n": (100, 60), "post_nms_top_n": (60, 40)}
SETTINGS = {
    **faster.SETTINGS,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 40,
    "box_detections_per_img": 12,
}
MASKS = ["mask", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"]
KEYPOINTS = ["keypoint", "keypointrcnn_resnet50_fpn"]
roi_heads = detection.roi_heads


def pictures():
    return blobs(SIZES)


@functools.cache
def made(case):
    _, name, options = CASES[case]
    theirs = torch_instances(case, to_chw(pictures()[3:4]), **SETTINGS)
    variables = from_torch(name, state_of(theirs), **options)
    model = get_model(name, **options)
    return theirs, model.clone(rpn=model.rpn.clone(**TOP)), jax.device_put(variables)


@functools.cache
def both(case):
    """Returns what torchvision's heads say, what comes out in the end, and what we find."""
    theirs, model, variables = made(case)
    raw, final = found_by(theirs, to_chw(pictures()))
    find = functools.partial(DETECTORS[type(model)], model, selection=Selection(max_detections=12))

    @jax.jit
    def say(variables, images, sizes):
        return find(variables, normalize_images(images, MEAN, STD), sizes=sizes)

    return raw, final, jax.device_get(say(variables, *padded(pictures())))


def cases(names):
    marked = [
        name if name == names[0] else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]
    return pytest.mark.parametrize("case", marked)


def check_boxes(raw, found):
    assert len(raw) == 10
    for i, theirs in enumerate(raw):
        count = int(found.valid[i].sum())
        assert count == len(theirs["boxes"]) > 4
        np.testing.assert_array_equal(found.labels[i, :count] + 1, theirs["labels"].numpy())
        np.testing.assert_allclose(found.scores[i, :count], theirs["scores"].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.boxes[i, :count], theirs["boxes"].numpy(), atol=1e-2)


@cases(MASKS)
def test_boxes_and_masks(case):
    raw, final, found = both(case)
    assert isinstance(found, PaddedInstances)
    check_boxes(raw, found)
    for i, (theirs, pasted) in enumerate(zip(raw, final, strict=True)):
        count = len(theirs["boxes"])
        masks = theirs["masks"][:, 0].numpy()
        assert masks.shape[1:] == found.masks.shape[2:] == (28, 28)
        assert masks.std() > 0.1
        np.testing.assert_allclose(found.masks[i, :count], masks, atol=1e-3)
        assert not found.masks[i, count:].any()
        ours = paste_masks(found.masks[i, :count], found.boxes[i, :count], SIZES[i], None)
        np.testing.assert_allclose(ours, pasted["masks"][:, 0].numpy(), atol=1e-3)


@cases(KEYPOINTS)
def test_boxes_and_keypoints(case):
    raw, final, found = both(case)
    assert isinstance(found, PaddedPoses)
    check_boxes(raw, found)
    for i, (theirs, last) in enumerate(zip(raw, final, strict=True)):
        count = len(theirs["boxes"])
        for each in (theirs, last):
            np.testing.assert_allclose(
                found.keypoints[i, :count], each["keypoints"][..., :2].numpy(), atol=1e-2
            )
        scores = theirs["keypoints_scores"].numpy()
        np.testing.assert_allclose(found.keypoint_scores[i, :count], scores, atol=1e-3)


def test_keypoints_of_boxes_of_any_size():
    """From less than a pixel to several tiles, whole sides and others, and equal logits."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(-5, 60, (12, 2))
    sides = np.concatenate([rng.uniform(0, 2, (3, 2)), rng.uniform(2, 190, (7, 2))])
    sides = np.concatenate([sides, [[64, 128], [65, 56]]])
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    maps = rng.normal(size=(12, 56, 56, 3)).astype(np.float32)
    maps[4, :, :, 1] = 0.5  # all the same: the first pixel
    keypoints, scores = jax.jit(heatmaps_to_keypoints)(maps, boxes)
    expected, values = roi_heads.heatmaps_to_keypoints(to_nchw(maps), to_torch(boxes))
    # Of equal logits rounding decides, in torch too.
    same = np.ones((12, 3), bool)
    same[4, 1] = False
    np.testing.assert_allclose(keypoints[same], expected[..., :2].numpy()[same], atol=1e-2)
    np.testing.assert_allclose(scores, values.numpy(), atol=1e-4)


# ------------------------------------------------------------------------- in the picture's pixels
def test_what_is_found_in_a_resized_picture_lies_in_its_own_pixels():
    rng = np.random.default_rng(1)
    size, resized = (37, 50), (80, 108)
    corners = rng.uniform(0, [60, 50], (6, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 30, (6, 2))], axis=1)
    boxes = boxes.astype(np.float32)
    masks = rng.uniform(size=(6, 28, 28)).astype(np.float32)
    keypoints = rng.uniform(0, 90, (6, 5, 2)).astype(np.float32)
    visible = np.concatenate([keypoints, np.ones((6, 5, 1), np.float32)], axis=2)
    wanted = {"boxes": to_torch(boxes), "masks": to_torch(masks)[:, None]}
    wanted["keypoints"] = to_torch(visible)
    transform = detection.transform.GeneralizedRCNNTransform(80, 200, [0.0] * 3, [1.0] * 3).eval()
    (wanted,) = transform.postprocess([wanted], [resized], [size])
    prepared = Prepared(np.zeros((96, 128, 3), np.uint8), Placement(size, resized, (96, 128)))
    scores, labels, valid = np.linspace(1, 0.5, 6), np.zeros(6, np.int64), np.ones(6, bool)
    of_image = (boxes, scores, labels, valid)
    to_result = TASKS["detection"].to_result
    found = to_result(PaddedInstances(*of_image, masks), prepared, size, ("a",))
    np.testing.assert_allclose(found.boxes, wanted["boxes"].numpy(), atol=1e-3)
    assert isinstance(found.masks, BoxMasks)
    theirs = wanted["masks"][:, 0].numpy()
    clear = np.abs(theirs - 0.5) > 1e-4
    np.testing.assert_array_equal(np.stack(list(found.masks))[clear], (theirs > 0.5)[clear])
    poses = PaddedPoses(*of_image, keypoints, keypoints[..., 0])
    found = to_result(poses, prepared, size, ("a",))
    np.testing.assert_allclose(found.keypoints, wanted["keypoints"][..., :2].numpy(), atol=1e-3)


# ------------------------------------------------------------------------------------- losses
def test_mask_loss_and_its_gradient():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(9, 28, 28, 4)).astype(np.float32)
    gt_masks = rng.uniform(size=(3, 40, 50)) > 0.4
    corners = rng.uniform(0, [30, 20], (9, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 20, (9, 2))], 1).astype(np.float32)
    labels, matched = np.array([1, 3, 2]), rng.integers(0, 3, 9)
    theirs = to_nchw(logits).requires_grad_()
    wanted = roi_heads.maskrcnn_loss(
        theirs, [to_torch(boxes)], [to_torch(gt_masks)], [to_torch(labels)], [to_torch(matched)]
    )
    wanted.backward()

    @jax.jit
    @jax.value_and_grad
    def loss(logits, classes, valid):
        return mask_head_loss(logits, classes, crop_masks(gt_masks, boxes, matched, 28), valid)

    found, gradient = loss(logits, labels[matched].astype(np.int32), np.ones(9, bool))
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, from_nchw(theirs.grad), atol=1e-7)


def test_keypoint_loss_and_its_gradient():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(7, 56, 56, 4)).astype(np.float32)
    corners = rng.uniform(0, 15, (7, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(15, 40, (7, 2))], 1).astype(np.float32)
    keypoints = np.concatenate(
        [rng.uniform(0, 45, (2, 4, 2)), rng.integers(0, 3, (2, 4, 1))], axis=2
    ).astype(np.float32)
    matched = rng.integers(0, 2, 7)
    keypoints[matched[0], 0] = [*boxes[0, 2:], 2]  # on the border
    theirs = to_nchw(logits).requires_grad_()
    wanted = roi_heads.keypointrcnn_loss(
        theirs, [to_torch(boxes)], [to_torch(keypoints)], [to_torch(matched)]
    )
    wanted.backward()

    @jax.jit
    def loss(logits, keypoints, boxes):
        cells, valid = keypoint_targets(keypoints, boxes, 56)
        return valid, jax.value_and_grad(keypoint_head_loss)(logits, cells, valid)

    valid, (found, gradient) = jax.device_get(loss(logits, keypoints[matched], boxes))
    assert 3 < valid.sum() < 28
    assert valid[0, 0]
    np.testing.assert_allclose(found, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, from_nchw(theirs.grad), atol=1e-7)


@pytest.mark.slow  # the mask's is compared above, and the other four with Faster R-CNN's
def test_all_five_losses_on_the_same_targets():
    _, name, options = CASES["mask"]
    theirs, _, variables = made("mask")
    theirs = copy.deepcopy(theirs)
    images, targets = faster.torch_batch()
    batch = faster.our_batch()
    masks = np.zeros((3, 4, *batch["image"].shape[1:3]), bool)
    rng = np.random.default_rng(4)
    for i, target in enumerate(targets):
        h, w = images[i].shape[1:]
        count = len(target["boxes"])
        masks[i, :count, :h, :w] = rng.uniform(size=(count, h, w)) > 0.3
        target["masks"] = torch.tensor(masks[i, :count, :h, :w])
    wanted = {name: x.item() for name, x in theirs.double().train()(images, targets).items()}
    with jax.enable_x64(True):
        model = get_model(name, **options, **faster.TOP, dtype="float64")
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        loss_fn = mask_rcnn_loss(model, mean=MEAN, std=STD, sampling=faster.EVERYTHING)
        state = variables["params"], variables["batch_stats"]
        batch = jax.tree.map(jnp.asarray, {**batch, "masks": masks})
        _, (_, found) = jax.jit(loss_fn)(*state, batch, jax.random.key(0))
    assert set(found) == {"loss", *wanted} == {"loss", *faster.TERMS, "loss_mask"}
    for term, value in wanted.items():
        np.testing.assert_allclose(found[term], value, rtol=1e-4)
    np.testing.assert_allclose(found["loss"], sum(wanted.values()), rtol=1e-4)
