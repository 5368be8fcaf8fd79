"""Mask R-CNN's losses by hand, poison in the padding, and batches without any object."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision import losses
from jaxvision.losses import keypoint_rcnn_loss, mask_rcnn_loss
from jaxvision.losses.rcnn import Sampling
from jaxvision.models.faster_rcnn import FasterRCNN
from jaxvision.models.fpn import DetectionBackbone
from jaxvision.models.keypoint_rcnn import (
    KeypointRCNN,
    KeypointRCNNPredictor,
    KeypointRoIHeads,
)
from jaxvision.models.layers import BatchNorm, Conv, Norm
from jaxvision.models.mask_rcnn import with_masks
from jaxvision.models.roi_heads import RoIHeads, TwoMLPHead
from jaxvision.models.rpn import RegionProposalNetwork

# Compiled whole: operation by operation takes ten times as long.
keypoint_targets = jax.jit(losses.keypoint_targets, static_argnums=2)
mask_head_loss = jax.jit(losses.mask_head_loss)
mask_loss_and_gradient = jax.jit(jax.value_and_grad(losses.mask_head_loss))
keypoint_loss_and_gradient = jax.jit(jax.value_and_grad(losses.keypoint_head_loss))

POISON = [0.0, 1e9, np.nan]
SIDE, STRIDE = 32, 4
FEW = Sampling(num_anchors=32, num_rois=12, roi_positive_fraction=0.5)


def test_only_the_mask_of_ones_own_class_counts():
    logits, targets = np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 4, 4), np.float32)
    logits[0, ..., 1], logits[0, ..., 2] = 2, 99
    targets[0, :2] = 1
    classes = np.array([1, 0], np.int32)
    one = mask_head_loss(logits, classes, targets, np.array([True, False]))
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    np.testing.assert_allclose(one, (right + wrong) / 2, rtol=1e-6)
    both = mask_head_loss(logits, classes, targets, np.array([True, True]))
    np.testing.assert_allclose(both, ((right + wrong) / 2 + np.log(2)) / 2, rtol=1e-6)


@pytest.mark.parametrize("poison", POISON)
def test_padding_adds_nothing(poison):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 4, 3)).astype(np.float32)
    valid, classes = np.array([True, False, True]), np.array([1, 1, 0], np.int32)
    targets = rng.uniform(size=(3, 4, 4)).astype(np.float32)
    spoilt, spoilt_targets = logits.copy(), targets.copy()
    spoilt[1] = spoilt_targets[1] = poison
    found, gradient = mask_loss_and_gradient(spoilt, classes, spoilt_targets, valid)
    gradient = np.asarray(gradient)
    expected = mask_head_loss(logits[::2], classes[::2], targets[::2], valid[::2])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not gradient[1].any()
    assert np.isfinite(gradient).all()
    nobody = np.zeros(3, bool)
    assert mask_loss_and_gradient(np.full_like(logits, poison), classes, targets, nobody)[0] == 0

    logits = logits[..., :2]
    cells = np.array([[3, 1], [0, 0], [9, 2]], np.int32)
    there = np.array([[1, 0], [0, 0], [1, 1]], bool)
    spoilt = logits.copy()
    spoilt[1] = spoilt[0, :, :, 1] = poison
    found, gradient = keypoint_loss_and_gradient(spoilt, cells, there)
    gradient = np.asarray(gradient)
    flat = logits.reshape(3, 16, 2)
    surprises = np.log(np.exp(flat).sum(axis=1, keepdims=True)) - flat
    wanted = [surprises[i, c, k] for i, k, c in ((0, 0, 3), (2, 0, 9), (2, 1, 2))]
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-6)
    assert not gradient[1].any()
    assert not gradient[0, :, :, 1].any()
    assert np.isfinite(gradient).all()
    assert keypoint_loss_and_gradient(spoilt, cells, np.zeros((3, 2), bool))[0] == 0


def test_keypoints_fall_into_cells():
    """Scale 2; on the far border in the last cell; outside, or not annotated, in none."""
    box = np.array([[10, 20, 12, 24]], np.float32)
    points = [(10, 20, 1), (11.9, 23.9, 2), (12, 24, 1), (9.9, 21, 1), (11, 24.1, 1), (11, 21, 0)]
    cells, valid = keypoint_targets(np.array([points], np.float32), box, 4)
    assert valid.tolist() == [[True, True, True, False, False, False]]
    assert cells.tolist() == [[0, 15, 15, 0, 0, 0]]


# ------------------------------------------------------------------------------- whole losses
class Cells(nn.Module):
    """The smallest backbone: one map of stride 4."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(8, (STRIDE, STRIDE), stride=STRIDE, name="conv")(x)
        return {"map": nn.relu(BatchNorm(name="bn")(x, train=train))}


def small(kind):
    backbone = DetectionBackbone(Cells(), ("map",))
    rpn = RegionProposalNetwork(
        ((8, 16),), stride=STRIDE, pre_nms_top_n=(20, 20), post_nms_top_n=(8, 8)
    )
    box_head = TwoMLPHead(8)
    if kind == "masks":
        heads = RoIHeads(3, box_head, (STRIDE,))
        return with_masks(FasterRCNN(backbone, rpn, heads), Norm())
    heads = KeypointRoIHeads(3, box_head, (STRIDE,), num_keypoints=2, head_depth=2)
    return KeypointRCNN(backbone, rpn, heads)


def scenes(poison):
    """Two pictures: one with an object and a slot of poison, one that is padding."""
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    image[1] = poison
    boxes = np.full((2, 2, 4), poison, np.float32)
    boxes[0, 0] = 4, 6, 20, 26
    masks = np.full((2, 2, SIDE, SIDE), poison, np.float32)
    masks[0, 0] = 0
    masks[0, 0, 6:20, 4:20] = 1
    keypoints = np.full((2, 2, 2, 3), poison, np.float32)
    keypoints[0, 0] = [(6, 8, 1), (30, 30, 1)]
    return {
        "image": image,
        "boxes": boxes,
        "labels": np.zeros((2, 2), np.int32),
        "box_valid": np.array([[True, False], [True, True]]),
        "size": np.full((2, 2), SIDE, np.int32),
        "masks": masks,
        "keypoints": keypoints,
        "valid": np.array([True, False]),
    }


@pytest.mark.parametrize("kind", ["masks", pytest.param("keypoints", marks=pytest.mark.slow)])
def test_padding_and_empty_scenes(kind):
    model = small(kind)
    variables = random_variables(model, (SIDE, SIDE, 3))
    make = mask_rcnn_loss if kind == "masks" else keypoint_rcnn_loss
    loss_fn = make(model, sampling=FEW)
    grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    state = variables["params"], variables.get("batch_stats", {})
    term = {"masks": "loss_mask", "keypoints": "loss_keypoint"}[kind]
    results = [grad(*state, scenes(poison), jax.random.key(1)) for poison in POISON]
    (_, (_, metrics)), gradient = results[0]
    chance = np.log(2) if kind == "masks" else np.log(56 * 56)
    assert 0.3 * chance < metrics[term] < 3 * chance
    terms = [value for name, value in metrics.items() if name != "loss"]
    assert len(terms) == 5
    np.testing.assert_allclose(metrics["loss"], sum(terms), rtol=1e-6)
    branch = gradient["roi_heads"]["mask_predictor" if kind == "masks" else "keypoint_predictor"]
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(branch))
    for other in results[1:]:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), other, results[0])
    empty = scenes(0.0) | {"box_valid": np.zeros((2, 2), bool)}
    (_, (_, metrics)), gradient = grad(*state, empty, jax.random.key(1))
    assert metrics[term] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, gradient)))
    assert grad._cache_size() == 1


def test_another_number_of_keypoints_is_an_error():
    logits, there = np.zeros((3, 4, 4, 17), np.float32), np.ones((3, 1), bool)
    with pytest.raises(ValueError, match="has 17 keypoints an object and the batch 1: build it"):
        losses.keypoint_head_loss(logits, np.zeros((3, 1), np.int32), there)


def test_keypoints_are_enlarged_in_float32():
    predictor, key = KeypointRCNNPredictor(2, dtype=jnp.bfloat16), jax.random.key(0)
    maps = jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.bfloat16)
    logits, variables = jax.eval_shape(predictor.init_with_output, key, maps)
    assert (logits.shape, logits.dtype) == ((1, 16, 16, 2), jnp.float32)
    text = jax.jit(predictor.apply).lower(variables, maps).as_text()
    assert "x2xbf16>" in text  # what is learnt is computed in bfloat16
