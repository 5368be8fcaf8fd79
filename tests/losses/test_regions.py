"""R-CNN's targets by hand, with hostile input, and the loss of its fine-tuning."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.losses import regions
from jaxvision.losses.regions import NO_CLASS, region_classification_loss
from jaxvision.ops import decode_boxes, warp_rois

targets_of = partial(jax.jit, static_argnames=("iou_threshold",))
finetuning_targets = targets_of(regions.finetuning_targets)
box_regression_targets = targets_of(regions.box_regression_targets)
svm_targets = jax.jit(regions.svm_targets, static_argnames=("num_labels", "iou_threshold"))
warp = jax.jit(warp_rois, static_argnums=2, static_argnames="padding")

# Two objects of 10 x 10, of classes 1 and 0, and the same class again far away.
BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [60, 60, 70, 70]], np.float32)
LABELS = np.array([1, 0, 1], np.int32)
# IoUs with the first: 1, 0.6, 0.5, 0.3, 0.2; with the second 0.7; with none; one pixel; not valid.
REGIONS = np.array(
    [
        [0, 0, 10, 10],
        [0, 0, 10, 6],
        [0, 0, 10, 5],
        [0, 0, 10, 3],
        [0, 0, 2, 10],
        [20, 0, 30, 7],
        [40, 40, 50, 50],
        [4, 4, 5, 5],
        [np.nan] * 4,
    ],
    np.float32,
)
VALID = np.arange(9) < 8
THERE = np.ones(3, bool)
SCENE = (REGIONS, VALID, BOXES, LABELS, THERE)


def test_finetuning_takes_what_overlaps_by_half():
    classes = finetuning_targets(*SCENE)
    assert classes.tolist() == [2, 2, 2, 0, 0, 1, 0, 0, NO_CLASS]
    assert finetuning_targets(*SCENE, iou_threshold=0.25).tolist()[3:5] == [2, 0]


def test_svms_take_objects_alone_and_leave_out_what_overlaps_by_a_third():
    targets = svm_targets(*SCENE, num_labels=3)
    of_regions, of_objects = targets.tolist()[:9], targets.tolist()[9:]
    assert of_regions == [
        [-1, 0, -1],
        [-1, 0, -1],
        [-1, 0, -1],
        [-1, 0, -1],  # exactly 0.3 is not below it
        [-1, -1, -1],
        [0, -1, -1],
        [-1, -1, -1],
        [-1, -1, -1],
        [0, 0, 0],
    ]
    assert of_objects == [[-1, 1, -1], [1, -1, -1], [-1, 1, -1]]


def test_boxes_are_learnt_from_regions_that_are_nearly_right():
    labels, deltas = box_regression_targets(*SCENE)
    assert labels.tolist() == [1, 1, -1, -1, -1, 0, -1, -1, -1]
    deltas = np.asarray(deltas)
    assert not deltas[[0, 2, 3, 4, 6, 7, 8]].any()
    moved = jax.jit(decode_boxes)(deltas[[1, 5]], REGIONS[[1, 5]])
    np.testing.assert_allclose(moved, BOXES[:2], atol=1e-5)
    # dy = (5 - 3) / 6 and dh = log(10 / 6).
    np.testing.assert_allclose(deltas[1], [0, 2 / 6, 0, np.log(10 / 6)], atol=1e-6)


def test_of_two_objects_the_one_that_overlaps_more():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8]], np.float32)
    region, there = np.array([[0, 0, 10, 7]], np.float32), np.ones(2, bool)
    labels, deltas = box_regression_targets(region, there[:1], boxes, LABELS[:2], there)
    assert labels.tolist() == [0]
    expected = [[0, 0.5 / 7, 0, np.log(8 / 7)]]
    np.testing.assert_allclose(deltas, expected, atol=1e-6)


@pytest.mark.parametrize("slots", [0, 2])
def test_without_objects_everything_is_background(slots):
    boxes, labels = np.full((slots, 4), np.nan, np.float32), np.zeros(slots, np.int32)
    nothing = (REGIONS, VALID, boxes, labels, np.zeros(slots, bool))
    assert finetuning_targets(*nothing).tolist() == [0] * 8 + [NO_CLASS]
    targets = svm_targets(*nothing, num_labels=2)
    assert targets.tolist() == [[-1, -1]] * 8 + [[0, 0]] * (1 + slots)
    labels, deltas = box_regression_targets(*nothing)
    assert labels.tolist() == [NO_CLASS] * 9
    assert not np.asarray(deltas).any()


def test_without_regions_the_objects_are_left():
    none = (np.zeros((0, 4), np.float32), np.zeros(0, bool), BOXES, LABELS, THERE)
    assert finetuning_targets(*none).shape == (0,)
    assert svm_targets(*none, num_labels=2).tolist() == [[-1, 1], [1, -1], [-1, 1]]
    assert box_regression_targets(*none)[1].shape == (0, 4)


def test_an_object_without_area_counts_nothing():
    flat = BOXES.copy()
    flat[0, 2] = 0
    assert finetuning_targets(REGIONS, VALID, flat, LABELS, THERE).tolist()[:3] == [0, 0, 0]
    targets = svm_targets(REGIONS, VALID, flat, LABELS, THERE, num_labels=3)
    assert targets.tolist()[9] == [0, 0, 0]


# ------------------------------------------------------------------------------- fine-tuning
class MeanColour(nn.Module):
    """Logits of three classes: a linear function of a crop's mean."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(3, name="fc")(x.mean(axis=(1, 2)))


def scene_batch(poison=0.0):
    """One picture whose object is white and the rest black, an empty one, and padding."""
    image = np.zeros((3, 24, 24, 3), np.float32)
    image[0, 4:12, 4:12] = 1
    boxes, box_valid = np.zeros((3, 2, 4), np.float32), np.zeros((3, 2), bool)
    boxes[0, 0], box_valid[0, 0] = [4, 4, 12, 12], True
    boxes[0, 1] = boxes[2] = proposals_padding = poison
    proposals = np.full((3, 4, 4), proposals_padding, np.float32)
    proposals[:2, 0], proposals[:2, 1] = [4, 4, 12, 11], [14, 12, 22, 20]
    proposal_valid = np.zeros((3, 4), bool)
    proposal_valid[:2, :2] = True
    image[2] = poison
    return {
        "image": image,
        "boxes": boxes,
        "labels": np.array([[1, 0], [0, 0], [1, 1]], np.int32),
        "box_valid": box_valid,
        "proposals": proposals,
        "proposal_valid": proposal_valid,
        "size": np.full((3, 2), 24, np.int32),
        "valid": np.array([True, True, False]),
    }


@pytest.fixture(scope="module")
def finetuning():
    model = MeanColour()
    params = random_variables(model, (8, 8, 3))["params"]
    loss_fn = region_classification_loss(model, crop_size=8, padding=0, num_regions=8)
    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True), static_argnums=4)
    return params, lambda batch, key=0: step(params, {}, batch, jax.random.key(key), True)


def test_the_loss_is_cross_entropy_of_the_drawn_crops(finetuning):
    """Two have an object, of which at most a quarter of eight is drawn; three have none."""
    params, step = finetuning
    batch = scene_batch()
    (loss, (_, metrics)), _ = step(batch)
    drawn = [(0, [4, 4, 12, 11], 2), (0, [4, 4, 12, 12], 2), (0, [14, 12, 22, 20], 0)]
    drawn += [(1, [4, 4, 12, 11], 0), (1, [14, 12, 22, 20], 0)]
    apply = partial(MeanColour().apply, {"params": params})
    log_probabilities, losses = jax.jit(lambda crop: jax.nn.log_softmax(apply(crop))), []
    for picture, box, target in drawn:
        crop = warp(batch["image"][picture], np.array([box], np.float32), 8, padding=0)
        losses.append(-float(np.asarray(log_probabilities(crop))[0, target]))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert 0 <= float(metrics["accuracy"]) <= 1


@pytest.mark.parametrize("poison", [1e9, np.nan])
def test_padding_changes_neither_loss_nor_gradient(finetuning, poison):
    _, step = finetuning
    (loss, _), gradient = step(scene_batch())
    (poisoned, _), poisoned_gradient = step(scene_batch(poison))
    assert float(loss) == float(poisoned)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(poisoned_gradient), strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_proposal_and_no_object_is_a_loss_of_zero(finetuning):
    _, step = finetuning
    batch = scene_batch()
    batch["proposal_valid"][:] = batch["box_valid"][:] = False
    (loss, _), gradient = step(batch)
    assert float(loss) == 0
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(gradient))
