"""Fast R-CNN's loss: which background it draws, by hand from what it draws, hostile batches."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.losses import box_head_loss, fast_rcnn_loss, sample_rois
from jaxvision.losses.fast_rcnn import RoISampling
from jaxvision.models.fast_rcnn import FastRCNN
from jaxvision.models.fpn import DetectionBackbone
from jaxvision.models.layers import BatchNorm, Conv
from jaxvision.models.roi_heads import RoIHeads, TwoMLPHead
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd

KEY = jax.random.key(0)
TERMS = ("loss_classifier", "loss_box_reg")
OBJECT = np.array([[0, 0, 10, 10]], np.float32)
PROPOSALS = np.array(
    [[0, 0, 10, 16], [0, 0, 10, 40], [8, 0, 18, 10], [50, 50, 60, 60], [np.nan] * 4], np.float32
)  # IoU 10/16, 1/4, 1/9 and 0 with the object; the last is none
USABLE = np.array([True, True, True, True, False])


draw = jax.jit(sample_rois, static_argnames=("size", "background_iou"))


def drawn_background(boxes, box_valid, background_iou):
    labels = np.zeros(len(boxes), np.int32)
    options = {"size": 16, "background_iou": background_iou}
    sample = draw(KEY, PROPOSALS, USABLE, boxes, labels, box_valid, **options)
    background = np.asarray(sample.valid) & (np.asarray(sample.classes) == 0)
    return {tuple(box) for box in np.asarray(sample.boxes)[background].tolist()}


def test_background_that_is_far_from_any_object_is_not_drawn():
    there = np.array([True])
    near, far = (0, 0, 10, 40), (50, 50, 60, 60)
    assert drawn_background(OBJECT, there, 0.0) == {near, (8, 0, 18, 10), far}
    assert drawn_background(OBJECT, there, 0.1) == {near, (8, 0, 18, 10)}
    assert drawn_background(OBJECT, there, 0.2) == {near}


@pytest.mark.parametrize("boxes", [OBJECT, np.full((1, 4), np.nan, np.float32)])
def test_without_objects_every_proposal_is_background(boxes):
    found = drawn_background(boxes, np.array([False]), 0.1)
    assert found == {tuple(box) for box in PROPOSALS[:4].tolist()}


# ------------------------------------------------------------------------------------ the task
class Cells(nn.Module):
    """The smallest backbone: one map of stride 4."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(16, (4, 4), stride=4, name="conv")(x)
        return {"map": nn.relu(BatchNorm(name="bn")(x, train=train))}


MODEL = FastRCNN(DetectionBackbone(Cells(), ("map",)), RoIHeads(4, TwoMLPHead(16), (4,)))
SIDE, ROOM, GIVEN = 32, 300, 40
SAMPLING = RoISampling(num_rois=24)
LOSS_FN = fast_rcnn_loss(MODEL, mean=0.5, std=0.25, sampling=SAMPLING)
TX = sgd(1e-2)


def batch_of(kind="plain", padding=0.0, seed=0):
    rng = np.random.default_rng(seed)
    boxes, counts = np.full((2, ROOM, 4), padding, np.float32), (2, 1)
    counts = {"none": (0, 0), "many": (ROOM, ROOM)}.get(kind, (2, 1))
    for row, count in zip(boxes, counts, strict=True):
        sides = 1 if kind == "pixels" else rng.uniform(3, 14, (count, 2))
        corner = np.floor(rng.uniform(0, SIDE - 16, (count, 2)))
        row[:count] = np.concatenate([corner, corner + sides], axis=1)
    box_valid = np.arange(ROOM) < np.array(counts)[:, None]
    corner = rng.uniform(0, SIDE - 16, (2, GIVEN, 2))
    proposals = np.concatenate([corner, corner + rng.uniform(1, 16, (2, GIVEN, 2))], axis=2)
    proposal_valid = np.arange(GIVEN) < np.array([30, 0 if kind == "many" else 20])[:, None]
    return {
        "image": rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8),
        "boxes": boxes,
        "labels": np.where(box_valid, rng.integers(0, 3, (2, ROOM)), 9**9).astype(np.int32),
        "box_valid": box_valid,
        "size": np.array([[SIDE, SIDE], [SIDE, 20]], np.int32),
        "valid": np.array([True, kind != "one"]),
        "proposals": np.where(proposal_valid[..., None], proposals, padding).astype(np.float32),
        "proposal_valid": proposal_valid,
    }


@functools.cache
def variables():
    return random_variables(MODEL, (SIDE, SIDE, 3))


@functools.cache
def train_step():
    return make_train_step(LOSS_FN, TX)


def test_the_loss_is_that_of_the_drawn_rois():
    batch, params = batch_of(), variables()["params"]
    evaluate = jax.jit(functools.partial(LOSS_FN, train=False))
    loss, (_, metrics) = evaluate(params, variables()["batch_stats"], batch, None)
    roi_key, _ = jax.random.split(jax.random.key(0))
    rows = [
        draw(key, *picture, size=24, background_iou=0.1)
        for key, *picture in zip(
            jax.random.split(roi_key, 2),
            *(batch[name] for name in ("proposals", "proposal_valid")),
            *(batch[name] for name in ("boxes", "labels", "box_valid")),
            strict=True,
        )
    ]
    rois = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(rows))
    assert ((rois.classes > 0).sum(axis=1) <= 6).all()
    images = (batch["image"] / np.float32(255) - 0.5) / 0.25
    outputs = jax.jit(MODEL.apply)(variables(), images, batch["size"], rois.boxes)
    expected = jax.jit(box_head_loss)(*outputs, rois.classes, rois.target_deltas, rois.valid)
    np.testing.assert_allclose([metrics[term] for term in TERMS], expected, rtol=1e-5)
    assert float(loss) == pytest.approx(sum(map(float, expected)), rel=1e-5)


def test_hostile_batches_train_without_nan_and_without_another_compile():
    state = create_state(variables(), TX)
    for kind in ("plain", "none", "pixels", "many", "one"):
        state, metrics = train_step()(state, batch_of(kind))
        assert all(np.isfinite(float(metrics[name])) for name in (*TERMS, "loss", "grad_norm"))
        assert (float(metrics["loss_box_reg"]) > 0) == (kind != "none")
        assert float(metrics["loss_classifier"]) > 0
    nobody = {**batch_of(), "valid": np.zeros(2, bool)}
    state, metrics = train_step()(state, nobody)
    assert float(metrics["loss"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.batch_stats)))
    assert train_step()._cache_size() == 1


def test_what_is_padding_adds_nothing():
    """Objects, proposals, pictures of the batch."""
    clean, spoilt = batch_of("one"), batch_of("one", padding=np.nan)
    spoilt["image"] = clean["image"].copy()
    spoilt["image"][1] = 255
    spoilt["boxes"][1] = spoilt["proposals"][1] = np.nan
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
