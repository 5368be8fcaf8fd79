"""Faster R-CNN's targets and losses by hand; poison in the padding; hostile batches."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables

from jaxvision import losses
from jaxvision.losses import faster_rcnn_loss
from jaxvision.losses.rcnn import Sampling
from jaxvision.models.faster_rcnn import FasterRCNN
from jaxvision.models.fpn import DetectionBackbone
from jaxvision.models.layers import BatchNorm, Conv
from jaxvision.models.roi_heads import RoIHeads, TwoMLPHead
from jaxvision.models.rpn import RegionProposalNetwork
from jaxvision.train import create_state, make_train_step

# Compiled whole: operation by operation takes ten times as long.
sample_anchors = jax.jit(losses.sample_anchors, static_argnames=("size", "positive_fraction"))
sample_rois = jax.jit(losses.sample_rois, static_argnames="size")
rpn_loss, box_head_loss = jax.jit(losses.rpn_loss), jax.jit(losses.box_head_loss)

KEY = jax.random.key(0)
POISON = [0.0, 1e9, np.nan]
TERMS = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


def floats(values):
    return np.asarray(values, np.float32)


# ------------------------------------------------------------------------------------- targets
ANCHORS = floats(
    [
        [0, 0, 10, 10],  # the first object
        [0, 0, 10, 20],  # half of it is the first object: neither
        [0, 0, 10, 34],  # IoU 10/34 with it: background
        [50, 50, 60, 60],  # IoU 1/4 with the second object, and the best there is
        [80, 80, 90, 90],
    ]
)
OBJECTS = floats([[0, 0, 10, 10], [55, 50, 65, 70], [np.nan] * 4])
IS_OBJECT = np.array([True, True, False])


def test_anchors_by_hand():
    sample = sample_anchors(KEY, ANCHORS, OBJECTS, IS_OBJECT, size=8, positive_fraction=0.5)
    indices, positive, valid = (np.asarray(x) for x in (sample[0], sample[1], sample[3]))
    assert set(indices[positive]) == {0, 3}
    assert set(indices[valid & ~positive]) == {2, 4}
    assert valid.sum() == 4
    targets = {
        int(i): t for i, t, p in zip(indices, sample.target_deltas, positive, strict=True) if p
    }
    np.testing.assert_allclose(targets[0], 0, atol=1e-6)
    # From the anchor's centre (55, 55) and 10 x 10 to (60, 60) and 10 x 20.
    np.testing.assert_allclose(targets[3], [0.5, 0.5, 0, math.log(2)], rtol=1e-6)
    assert np.isfinite(sample.target_deltas).all()


def test_anchors_are_drawn_at_random_and_balanced():
    anchors = np.tile(ANCHORS[:1], (40, 1))
    anchors[20:] += 100

    @jax.jit
    def draw(key):
        options = {"size": 12, "positive_fraction": 0.25}
        return jax.vmap(
            lambda key: losses.sample_anchors(key, anchors, OBJECTS[:1], IS_OBJECT[:1], **options)
        )(jax.random.split(key, 50))

    sample = jax.device_get(draw(KEY))
    assert (sample.positive.sum(axis=1) == 3).all()
    assert (sample.valid.sum(axis=1) == 12).all()
    assert len(np.unique(sample.indices)) == 40  # over fifty draws everything came


def test_rois_by_hand():
    proposals = floats([[0, 0, 10, 10], [0, 0, 10, 21], [55, 50, 65, 68], [np.nan] * 4, [0] * 4])
    usable = np.array([True, True, True, False, True])
    labels = np.array([4, 0, 9**9], np.int32)
    sample = sample_rois(KEY, proposals, usable, OBJECTS, labels, IS_OBJECT, size=16)
    rows = {
        tuple(box): (int(c), delta, int(m))
        for box, c, delta, m, v in zip(*map(np.asarray, sample), strict=True)
        if v
    }
    # Two of the proposals and the objects themselves are foreground; 4 of 16 at most.
    assert {box: row[0] for box, row in rows.items()} == {
        (0, 0, 10, 10): 5,
        (0, 0, 10, 21): 0,
        (55, 50, 65, 68): 1,
        (55, 50, 65, 70): 1,
        (0, 0, 0, 0): 0,
    }
    assert np.asarray(sample.valid).sum() == 6  # the first object's box is there twice
    _, delta, matched = rows[55, 50, 65, 68]
    assert matched == 1
    np.testing.assert_allclose(delta, [0, 10 / 18, 0, 5 * math.log(20 / 18)], rtol=1e-5, atol=1e-6)
    assert np.isfinite(sample.target_deltas).all()


@pytest.mark.parametrize("room", [0, 3])
def test_without_objects_all_is_background(room):
    boxes, there = np.full((room, 4), np.nan, np.float32), np.zeros(room, bool)
    anchors = jax.device_get(
        sample_anchors(KEY, ANCHORS, boxes, there, size=8, positive_fraction=0.5)
    )
    assert anchors.valid.sum() == 5
    assert not anchors.positive.any()
    labels = np.full(room, 9**9, np.int32)
    rois = jax.device_get(
        sample_rois(KEY, ANCHORS, np.ones(5, bool), boxes, labels, there, size=16)
    )
    assert rois.valid.sum() == 5
    assert not rois.classes.any()
    for leaf in (*anchors, *rois):
        assert np.isfinite(leaf).all()


def test_an_object_without_area_is_none():
    flat, there = OBJECTS.copy(), np.array([True, False, False])
    flat[0, 3] = 0
    sample = sample_anchors(KEY, ANCHORS, flat, there, size=8, positive_fraction=0.5)
    assert not np.asarray(sample.positive).any()
    labels = np.zeros(3, np.int32)
    rois = sample_rois(KEY, ANCHORS, np.zeros(5, bool), flat, labels, there, size=16)
    assert not np.asarray(rois.valid).any()


# -------------------------------------------------------------------------------------- losses
def test_losses_of_anchors_by_hand():
    objectness = floats([0.0, math.log(3), 7.0])
    deltas = floats([[1.0, 0.0, 0.0, 1 / 18], [9.0] * 4, [9.0] * 4])
    positive = np.array([True, False, False])
    valid = np.array([True, True, False])
    both = rpn_loss(objectness, deltas, positive, np.zeros((3, 4), np.float32), valid)
    # Half sure of an object, three quarters sure of one where there is none.
    assert float(both[0]) == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    # Smooth L1 with beta 1/9: 1 - 1/18, and 0.5 * (1/18)^2 * 9.
    assert float(both[1]) == pytest.approx((17 / 18 + 4.5 / 324) / 2, rel=1e-6)


def test_losses_of_rois_by_hand():
    logits = np.log(floats([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [1.0, 1.0, 1.0]]))
    deltas = np.full((3, 3, 4), 100, np.float32)
    deltas[1, 1] = 2, 1, 1, 1
    valid = np.array([True, True, False])
    classes, targets = np.array([0, 1, 2], np.int32), np.ones((3, 4), np.float32)
    both = box_head_loss(logits, deltas, classes, targets, valid)
    assert float(both[0]) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, rel=1e-5)
    assert float(both[1]) == pytest.approx((17 / 18) / 2, rel=1e-6)
    # Leading axes do not matter.
    batched = box_head_loss(*(x[None] for x in (logits, deltas, classes, targets, valid)))
    np.testing.assert_allclose(batched, both, rtol=1e-6)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
def total_and_gradients(objectness, deltas, logits, class_deltas, targets, flag, classes, valid):
    first = losses.rpn_loss(objectness, deltas, flag, targets, valid)
    return sum(first) + sum(losses.box_head_loss(logits, class_deltas, classes, targets, valid))


@pytest.mark.parametrize("poison", POISON)
def test_padding_changes_neither_losses_nor_gradients(poison):
    rng = np.random.default_rng(0)
    valid = np.array([True, True, False, False])
    flag = np.array([True, False, True, False])
    shapes = ((4, 4), (4,), (4, 4), (4, 3), (4, 3, 4))
    targets, *numbers = (floats(rng.normal(size=shape)) for shape in shapes)
    classes = np.array([2, 0, 1, 0], np.int32)
    spoilt = [
        np.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, floats(poison))
        for x in (*numbers, targets)
    ]
    expected, gradients = total_and_gradients(*numbers, targets, flag, classes, valid)
    value, spoilt_gradients = total_and_gradients(*spoilt, flag, classes, valid)
    assert float(value) == float(expected)
    for ours, theirs in zip(*jax.device_get((spoilt_gradients, gradients)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not ours[2:].any()
        assert ours[:2].any()


def test_bfloat16_gives_float32_losses():
    logits, deltas = np.ones(2, jnp.bfloat16), np.ones((2, 4), jnp.bfloat16)
    yes, targets = np.ones(2, bool), np.zeros((2, 4), np.float32)
    both = jax.eval_shape(losses.rpn_loss, logits, deltas, yes, targets, yes)
    assert {x.dtype for x in both} == {jnp.dtype("float32")}


# ------------------------------------------------------------------------------------ the task
class Cells(nn.Module):
    """The smallest backbone: one map of stride 4."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(16, (4, 4), stride=4, name="conv")(x)
        return {"map": nn.relu(BatchNorm(name="bn")(x, train=train))}


MODEL = FasterRCNN(
    DetectionBackbone(Cells(), ("map",)),
    RegionProposalNetwork(((8, 16),), 4, pre_nms_top_n=(40, 40), post_nms_top_n=(20, 20)),
    RoIHeads(4, TwoMLPHead(16), (4,)),
)
SIDE, ROOM = 32, 300
LOSS_FN = faster_rcnn_loss(MODEL, mean=0.5, std=0.25, sampling=Sampling(32, 0.5, 24, 0.25))
TX = optax.sgd(1e-2)


def batch_of(kind="plain", padding=0.0, seed=0):
    rng = np.random.default_rng(seed)
    boxes = np.full((2, ROOM, 4), padding, np.float32)
    counts = {"none": (0, 0), "many": (ROOM, ROOM)}.get(kind, (2, 1))
    for row, count in zip(boxes, counts, strict=True):
        sides = 1 if kind == "pixels" else rng.uniform(3, 14, (count, 2))
        corner = np.floor(rng.uniform(0, SIDE - 16, (count, 2)))
        row[:count] = np.concatenate([corner, corner + sides], axis=1)
    box_valid = np.arange(ROOM) < np.array(counts)[:, None]
    return {
        "image": rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8),
        "boxes": boxes,
        "labels": np.where(box_valid, rng.integers(0, 3, (2, ROOM)), 9**9).astype(np.int32),
        "box_valid": box_valid,
        "size": np.array([[SIDE, SIDE], [SIDE, 20]], np.int32),
        "valid": np.array([True, kind != "one"]),
    }


@functools.cache
def variables():
    return random_variables(MODEL, (SIDE, SIDE, 3))


@functools.cache
def train_step():
    return make_train_step(LOSS_FN, TX)


@functools.cache
def evaluate():
    return jax.jit(functools.partial(LOSS_FN, train=False))


def evaluated(batch):
    loss, (stats, metrics) = evaluate()(
        variables()["params"], variables()["batch_stats"], batch, None
    )
    assert float(loss) == pytest.approx(sum(float(metrics[t]) for t in TERMS), rel=1e-5)
    return float(loss), stats


def test_hostile_batches_train_without_nan_and_without_another_compile():
    state = create_state(variables(), TX)
    for kind in ("plain", "none", "pixels", "many", "one"):
        state, metrics = train_step()(state, batch_of(kind))
        assert all(np.isfinite(float(metrics[name])) for name in (*TERMS, "loss", "grad_norm"))
        assert sum(float(metrics[name]) for name in TERMS) == pytest.approx(float(metrics["loss"]))
        assert (float(metrics["loss_box_reg"]) > 0) == (kind != "none")
    nobody = {**batch_of(), "valid": np.zeros(2, bool)}
    state, metrics = train_step()(state, nobody)
    assert float(metrics["loss"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.batch_stats)))
    assert train_step()._cache_size() == 1


def test_what_is_padding_adds_nothing():
    """Objects, pictures of the batch, and what is beside a picture in its array."""
    clean = batch_of("one")
    spoilt = batch_of("one", padding=np.nan)
    spoilt["image"] = clean["image"].copy()
    spoilt["image"][1] = 255
    spoilt["boxes"][1] = np.nan
    for batch in (clean, spoilt):  # the first picture is smaller than its array
        batch["size"] = np.array([[24, 28], [0, 0]], np.int32)
    spoilt["image"][0, 24:], spoilt["image"][0, :, 28:] = 7, 200
    (first, metrics), (second, spoilt_metrics) = (
        train_step()(create_state(variables(), TX), batch) for batch in (clean, spoilt)
    )
    assert float(metrics["loss"]) > 0
    ours, theirs = map(jax.tree.leaves, ((first, metrics), (second, spoilt_metrics)))
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)
    before, after = map(jax.tree.leaves, (variables()["params"], jax.device_get(first.params)))
    moved = [(x != y).any() for x, y in zip(before, after, strict=True)]
    assert moved.count(False) <= 1  # the bias that batch normalisation takes out again


def test_evaluation_leaves_the_statistics_and_needs_no_key():
    loss, stats = evaluated(batch_of())
    assert loss == evaluated(batch_of())[0] > 0
    jax.tree.map(np.testing.assert_array_equal, stats, variables()["batch_stats"])


def test_without_masks_and_sizes_all_counts():
    full = batch_of("many")
    full["size"] = np.full((2, 2), SIDE, np.int32)
    short = {name: full[name] for name in ("image", "boxes", "labels")}
    assert evaluated(short)[0] == pytest.approx(evaluated(full)[0])
