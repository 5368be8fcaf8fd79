"""Proposals and detections of the R-CNN family against plain loops, and what bounds a picture."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import decode_boxes, decode_rcnn, select_proposals, zero_outside
from jaxvision.ops.rcnn import BOX_WEIGHTS

SIZE = (40, 60)
LEVELS = (30, 12, 3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def iou(a, b):
    w, h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(w, 0) * max(h, 0)
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def greedy(boxes, scores, groups, threshold):
    """Returns the indices that are kept, best first."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        others = (j for j in kept if groups[j] == groups[i])
        if all(iou(boxes[i], boxes[j]) <= threshold for j in others):
            kept.append(i)
    return kept


def clipped(boxes):
    return np.clip(boxes, 0, [SIZE[1], SIZE[0]] * 2)


def anchors_and_outputs(seed):
    rng = np.random.default_rng(seed)
    anchors, logits, deltas = [], [], []
    for count in LEVELS:
        corner = rng.uniform(-10, 50, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(2, 30, (count, 2))], axis=1)
        anchors.append(boxes.astype(np.float32))
        logits.append(rng.normal(scale=2, size=count).astype(np.float32))
        deltas.append(rng.normal(scale=0.3, size=(count, 4)).astype(np.float32))
    return logits, deltas, anchors


OPTIONS = {"pre_nms_top_n": 20, "post_nms_top_n": 15, "iou_threshold": 0.4, "score_threshold": 0.2}

# Compiled whole: operation by operation takes ten times as long.
decode = jax.jit(decode_boxes, static_argnums=2)
decode_detections = jax.jit(
    decode_rcnn, static_argnames=("size", "score_threshold", "max_detections")
)


@jax.jit
def select(logits, deltas, anchors, size):
    return select_proposals(logits, deltas, anchors, size, **OPTIONS)


@pytest.mark.parametrize("seed", range(3))
def test_proposals_equal_plain_loops(seed):
    logits, deltas, anchors = anchors_and_outputs(seed)
    boxes, scores, levels = [], [], []
    decoded = clipped(np.asarray(decode(*map(np.concatenate, (deltas, anchors)))))
    decoded = np.split(decoded, np.cumsum(LEVELS)[:-1])
    for level, (x, of_level) in enumerate(zip(logits, decoded, strict=True)):
        for i in np.argsort(-x)[:20]:
            box = of_level[i]
            if (box[2:] - box[:2] < 1e-3).any() or sigmoid(x[i]) < 0.2:
                continue
            boxes.append(box)
            scores.append(sigmoid(x[i]))
            levels.append(level)
    boxes, scores = np.array(boxes), np.array(scores)
    kept = greedy(boxes, scores, levels, 0.4)[:15]
    found = jax.tree.map(np.asarray, select(logits, deltas, anchors, SIZE))
    assert found.boxes.shape == (15, 4)
    assert int(found.valid.sum()) == len(kept) > 5
    np.testing.assert_allclose(found.boxes[: len(kept)], boxes[kept], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.scores[: len(kept)], scores[kept], rtol=1e-5)
    assert not found.boxes[len(kept) :].any()


def test_proposals_are_never_more_than_anchors_and_have_no_gradient():
    logits, deltas, anchors = anchors_and_outputs(0)
    options = {"pre_nms_top_n": 1000, "post_nms_top_n": 1000}

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient_of(deltas):
        boxes = select_proposals(logits, deltas, anchors, SIZE, **options).boxes
        return boxes.sum(), boxes

    gradient, boxes = gradient_of(deltas)
    assert len(boxes) == sum(LEVELS)
    assert not any(np.asarray(g).any() for g in gradient)


def test_a_picture_of_nothing_has_no_proposals_and_nan_is_none():
    logits, deltas, anchors = anchors_and_outputs(0)
    assert not np.asarray(select(logits, deltas, anchors, (0, 0)).valid).any()
    deltas[0] = np.full_like(deltas[0], np.nan)
    found = select(logits, deltas, anchors, SIZE)
    assert np.isfinite(found.boxes).all()
    assert np.asarray(found.valid).any()


def heads(seed, n=40, k=6):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-5, 50, (n, 2))
    rois = np.concatenate([corner, corner + rng.uniform(2, 25, (n, 2))], axis=1)
    logits, deltas = rng.normal(scale=2, size=(n, k)), rng.normal(size=(n, k, 4))
    return [x.astype(np.float32) for x in (logits, deltas, rois)]


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.0])
def test_detections_equal_plain_loops(threshold):
    logits, deltas, rois = heads(seed=1)
    valid = np.arange(len(rois)) % 5 > 0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    boxes, scores, labels = [], [], []
    decoded = clipped(np.asarray(decode(deltas, rois[:, None], BOX_WEIGHTS)))
    for i in np.flatnonzero(valid):
        for c in range(1, logits.shape[1]):
            box = decoded[i, c]
            if probabilities[i, c] > threshold and (box[2:] - box[:2] >= 1e-2).all():
                boxes.append(box)
                scores.append(probabilities[i, c])
                labels.append(c - 1)
    boxes, scores, labels = map(np.array, (boxes, scores, labels))
    kept = greedy(boxes, scores, labels, 0.5)[:30]
    options = {"size": SIZE, "score_threshold": threshold, "max_detections": 30}
    found = decode_detections(logits, deltas, rois, valid=valid, **options)
    found = jax.tree.map(np.asarray, found)
    assert int(found.valid.sum()) == len(kept) > 5
    np.testing.assert_array_equal(found.labels[: len(kept)], labels[kept])
    np.testing.assert_allclose(found.scores[: len(kept)], scores[kept], rtol=1e-5)
    np.testing.assert_allclose(found.boxes[: len(kept)], boxes[kept], rtol=1e-4, atol=1e-4)


def test_what_is_left_over_is_zeros_and_poison_is_not_seen():
    outputs = logits, deltas, rois = heads(seed=2, n=8)
    valid = np.arange(8) < 5
    clean = jax.tree.map(np.asarray, decode_detections(*outputs, SIZE, valid=valid))
    spoilt = [
        np.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan) for x in (logits, deltas, rois)
    ]
    found = decode_detections(*spoilt, SIZE, valid=valid)
    for ours, theirs in zip(found, clean, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not np.asarray(ours)[int(clean.valid.sum()) :].any()
    assert 0 < int(clean.valid.sum()) < 100


def test_a_sure_background_is_nothing():
    logits = np.array([[9.0, 0.0, 0.0]], np.float32)
    boxes = np.array([[0.0, 0.0, 9.0, 9.0]], np.float32)
    found = decode_detections(logits, np.zeros((1, 3, 4), np.float32), boxes, SIZE)
    assert not np.asarray(found.valid).any()


def test_pictures_stand_on_zeros():
    images = np.full((2, 5, 6, 3), np.nan, np.float32)
    images[0, :4, :3], images[1] = 1, 2
    sizes = np.array([[4, 3], [5, 6]], np.int32)

    @jax.jit
    def with_gradient(images):
        y, vjp = jax.vjp(lambda x: zero_outside(x, sizes, 4), images)
        return y, vjp(jnp.ones_like(y))[0]

    result, gradient = with_gradient(images)
    assert result.shape == (2, 8, 8, 3)
    expected = np.zeros((2, 8, 8, 3))
    expected[0, :4, :3], expected[1, :5, :6] = 1, 2
    np.testing.assert_array_equal(result, expected)
    assert np.asarray(gradient).sum() == 3 * (4 * 3 + 5 * 6)
    assert math.isfinite(np.asarray(gradient).sum())
