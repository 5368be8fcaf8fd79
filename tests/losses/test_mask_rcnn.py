"""Mask R-CNN's losses by hand, poison in the padding, and batches without any object."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.losses import (
    keypoint_head_loss,
    keypoint_rcnn_loss,
    keypoint_targets,
    mask_head_loss,
    mask_rcnn_loss,
)
from jaxvision.losses.rcnn import Sampling
from jaxvision.models.faster_rcnn import FasterRCNN
from jaxvision.models.fpn import DetectionBackbone
from jaxvision.models.keypoint_rcnn import (
    KeypointRCNN,
    KeypointRCNNPredictor,
    KeypointRoIHeads,
)
from jaxvision.models.layers import Norm
from jaxvision.models.mask_rcnn import with_masks
from jaxvision.models.roi_heads import RoIHeads, TwoMLPHead
from jaxvision.models.rpn import RegionProposalNetwork
from jaxvision.models.vgg import vgg11

POISON = [0.0, 1e9, np.nan]
SIDE, STRIDE = 32, 8
FEW = Sampling(num_anchors=32, num_rois=12, roi_positive_fraction=0.5)


def test_only_the_mask_of_ones_own_class_counts():
    logits = jnp.zeros((2, 2, 2, 3)).at[0, :, :, 1].set(2.0).at[0, :, :, 2].set(99.0)
    targets = jnp.zeros((2, 2, 2)).at[0, 0].set(1.0)
    one = mask_head_loss(logits, jnp.array([1, 0]), targets, jnp.array([True, False]))
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    np.testing.assert_allclose(one, (right + wrong) / 2, rtol=1e-6)
    both = mask_head_loss(logits, jnp.array([1, 0]), targets, jnp.array([True, True]))
    np.testing.assert_allclose(both, ((right + wrong) / 2 + np.log(2)) / 2, rtol=1e-6)


@pytest.mark.parametrize("poison", POISON)
def test_padding_adds_nothing(poison):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 4, 4, 2)), jnp.float32)
    valid, classes = jnp.array([True, False, True]), jnp.array([1, 1, 0])
    targets = jnp.asarray(rng.uniform(size=(3, 4, 4)), jnp.float32)
    loss = functools.partial(mask_head_loss, classes=classes, valid=valid)
    found, gradient = jax.jit(jax.value_and_grad(loss))(
        logits.at[1].set(poison), targets=targets.at[1].set(poison)
    )
    expected = mask_head_loss(logits[::2], classes[::2], targets[::2], valid[::2])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not gradient[1].any()
    assert np.isfinite(gradient).all()

    cells, there = jnp.array([[3, 1], [0, 0], [9, 2]]), jnp.array([[1, 0], [0, 0], [1, 1]], bool)
    loss = functools.partial(keypoint_head_loss, cells=cells, valid=there)
    spoilt = logits.at[1].set(poison).at[0, :, :, 1].set(poison)
    found, gradient = jax.jit(jax.value_and_grad(loss))(spoilt)
    wanted = [
        -jax.nn.log_softmax(logits[i, :, :, k].ravel())[c]
        for i, k, c in ((0, 0, 3), (2, 0, 9), (2, 1, 2))
    ]
    np.testing.assert_allclose(found, np.mean(wanted), rtol=1e-6)
    assert not gradient[1].any()
    assert not gradient[0, :, :, 1].any()
    assert np.isfinite(gradient).all()
    nobody = jnp.zeros(3, bool)
    assert mask_head_loss(spoilt, classes, targets, nobody) == 0
    assert keypoint_head_loss(spoilt, cells, jnp.zeros((3, 2), bool)) == 0


def test_keypoints_fall_into_cells():
    """Scale 2; on the far border in the last cell; outside, or not annotated, in none."""
    box = jnp.array([[10.0, 20.0, 12.0, 24.0]])
    points = [(10, 20, 1), (11.9, 23.9, 2), (12, 24, 1), (9.9, 21, 1), (11, 24.1, 1), (11, 21, 0)]
    cells, valid = keypoint_targets(jnp.array([points], jnp.float32), box, 4)
    assert valid.tolist() == [[True, True, True, False, False, False]]
    assert cells.tolist() == [[0, 15, 15, 0, 0, 0]]


# ------------------------------------------------------------------------------- whole losses
def small(kind):
    body = vgg11(features_only=True, widths=(4, 4, 4, 8, 8))
    backbone = DetectionBackbone(body, ("stage4",))
    rpn = RegionProposalNetwork(
        ((8, 16),), stride=STRIDE, pre_nms_top_n=(20, 20), post_nms_top_n=(8, 8)
    )
    box_head = TwoMLPHead(8)
    if kind == "masks":
        heads = RoIHeads(3, box_head, (STRIDE,))
        return with_masks(FasterRCNN(backbone, rpn, heads), Norm())
    heads = KeypointRoIHeads(3, box_head, (STRIDE,), num_keypoints=2)
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
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
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
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(branch))
    for other in results[1:]:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), other, results[0])
    empty = scenes(0.0) | {"box_valid": np.zeros((2, 2), bool)}
    (_, (_, metrics)), gradient = grad(*state, empty, jax.random.key(1))
    assert metrics[term] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, gradient)))
    assert grad._cache_size() == 1


def test_another_number_of_keypoints_is_an_error():
    logits, there = jnp.zeros((3, 4, 4, 17)), jnp.ones((3, 1), bool)
    with pytest.raises(ValueError, match="has 17 keypoints an object and the batch 1: build it"):
        keypoint_head_loss(logits, jnp.zeros((3, 1), jnp.int32), there)


def test_keypoints_are_enlarged_in_float32():
    predictor, key = KeypointRCNNPredictor(2, dtype=jnp.bfloat16), jax.random.key(0)
    maps = jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.bfloat16)
    logits, variables = jax.eval_shape(predictor.init_with_output, key, maps)
    assert (logits.shape, logits.dtype) == ((1, 16, 16, 2), jnp.float32)
    text = jax.jit(predictor.apply).lower(variables, maps).as_text()
    assert "x2xbf16>" in text  # what is learnt is computed in bfloat16
