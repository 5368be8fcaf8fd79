"""nms and batched_nms against torchvision's, index by index.

torchvision's compiled kernel does not load beside a CPU-only PyTorch; in its place the helper
declares the same loop in NumPy. `batched_nms`, with its two ways to keep classes apart, is the
genuine one.
"""

import jax
import numpy as np
import pytest

from jaxvision import ops

from .tensors import to_torch
from .torchvision_cpu import torchvision

# The kernel compares float32 IoUs with a double, its stand-in with a float32. These are float32
# numbers, so that it is the same; tests/ops/test_nms.py has the others.
THRESHOLDS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture(autouse=True)
def _declared_operators(monkeypatch):
    """torchvision refuses to call `nms` where its compiled operators are missing."""
    monkeypatch.setattr(torchvision.ops.boxes, "_assert_has_ops", lambda: None)


def problems(kind, trials, count, seed=0):
    """Returns boxes [t, n, 4], scores [t, n] and labels [t, n]."""
    rng = np.random.default_rng(seed)
    centre, side = rng.uniform(20, 100, (trials, count, 2)), rng.uniform(5, 40, (trials, count, 2))
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=-1)
    scores = rng.random((trials, count))
    if kind != "random":
        # Whole numbers make IoUs equal to thresholds; scores tie.
        boxes, scores = np.round(boxes / 10), np.round(scores * 3) / 3
    if kind == "hostile":
        boxes[:, ::3] = boxes[:, :1]
        boxes[:, 1::5, 2] = boxes[:, 1::5, 0]
        boxes[:, 2::7] = boxes[:, 2::7][..., [2, 3, 0, 1]]
        boxes[:, 4, 1], scores[:, 5::6], scores[:, 6], scores[:, 7] = (
            np.nan,
            np.nan,
            np.inf,
            -np.inf,
        )
    labels = rng.integers(0, 3, scores.shape)
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)


@jax.jit
def suppress(boxes, scores, labels, threshold):
    count = scores.shape[1]
    if labels is None:
        return jax.vmap(lambda b, s: ops.nms(b, s, threshold, count))(boxes, scores)
    run = jax.vmap(lambda b, s, k: ops.batched_nms(b, s, k, threshold, count))
    return run(boxes, scores, labels)


def compare(result, reference, *problems):
    for indices, valid, *problem in zip(*map(np.asarray, result), *problems, strict=True):
        expected = reference(*map(to_torch, problem))
        np.testing.assert_array_equal(indices[valid], expected.numpy())
        assert valid[: len(expected)].all()


def class_by_class(boxes, scores, labels):
    """The way that batched_nms takes for more than 1,000 boxes; equal scores in order.

    It sorts what all classes kept once more, and leaves the order of equal scores to chance.
    """
    kept = torchvision.ops.boxes._batched_nms_vanilla(boxes, scores, labels, 0.5)
    kept = kept.sort().values
    return kept[scores[kept].sort(descending=True, stable=True).indices]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("kind", ["random", "whole", "hostile"])
def test_nms(kind, threshold):
    boxes, scores, _ = problems(kind, trials=120, count=16)
    result = suppress(boxes, scores, None, threshold)
    compare(result, lambda b, s: torchvision.ops.nms(b, s, threshold), boxes, scores)


@pytest.mark.parametrize("kind", ["random", "whole", "hostile"])
def test_batched_nms_class_by_class(kind):
    boxes, scores, labels = problems(kind, trials=100, count=24)
    compare(suppress(boxes, scores, labels, 0.5), class_by_class, boxes, scores, labels)


def test_batched_nms_of_many_boxes():
    boxes, scores, labels = problems("random", trials=1, count=1100)
    result = suppress(boxes, scores, labels, 0.5)
    compare(result, lambda *p: torchvision.ops.batched_nms(*p, 0.5), boxes, scores, labels)


def test_batched_nms_of_few_boxes_where_moving_classes_apart_is_exact():
    boxes, scores, labels = problems("whole", trials=100, count=24)
    result = suppress(boxes, scores, labels, 0.25)
    compare(result, lambda *p: torchvision.ops.batched_nms(*p, 0.25), boxes, scores, labels)


def test_batched_nms_of_few_boxes_differs_at_most_by_the_rounding_of_moved_boxes():
    """Where the results are not equal, some IoU is as close to the threshold as rounding goes."""
    boxes, scores, labels = problems("random", trials=100, count=24)
    boxes[:50] = boxes[:50] * np.float32(0.37) + 1
    # Every other box is a copy of the one before, cut to an IoU of the threshold or nearly so.
    share = 0.5 + np.random.default_rng(1).choice([0, 3e-8, 1e-3, -1e-3], boxes[:, ::2, 0].shape)
    boxes[:, 1::2] = boxes[:, ::2]
    boxes[:, 1::2, 2] = boxes[:, ::2, 0] + share * (boxes[:, ::2, 2] - boxes[:, ::2, 0])
    labels[:, 1::2] = labels[:, ::2]
    indices, valid = map(np.asarray, suppress(boxes, scores, labels, 0.5))
    different, box_iou = 0, jax.jit(ops.box_iou)
    for trial in range(100):
        problem = [to_torch(x[trial]) for x in (boxes, scores, labels)]
        theirs = torchvision.ops.batched_nms(*problem, 0.5).tolist()
        ours = indices[trial][valid[trial]].tolist()
        if ours != theirs:
            different += 1
            iou = np.asarray(box_iou(boxes[trial], boxes[trial]))
            assert np.abs(iou[set_difference(ours, theirs)] - 0.5).min() < 1e-5
    assert 0 < different < 100


def set_difference(first, second):
    return sorted(set(first) ^ set(second))


def test_classes_stay_apart_where_moving_them_fails():
    """Coordinates below zero reach into the place of the class before: torchvision suppresses."""
    # In arrays as large as those above; boxes without area suppress nothing.
    boxes, scores, labels = map(np.zeros_like, problems("random", trials=100, count=24))
    boxes[:, :2], scores[:, :2] = [[0, 0, 10, 10], [-11, -11, -1, -1]], [0.9, 0.8]
    labels[:, 1] = 1
    two = [to_torch(x[0, :2]) for x in (boxes, scores, labels)]
    assert torchvision.ops.batched_nms(*two, 0.5).tolist() == [0]
    indices, valid = map(np.asarray, suppress(boxes, scores, labels, 0.5))
    assert (indices[:, :2] == [0, 1]).all()
    assert valid.all()


def test_torch_sorts_scores_as_we_do():
    """NaN first, then descending; equal ones, such as the two zeros, as they come."""
    rng = np.random.default_rng(0)
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-38, -1e-38, 1.0, -1.0]
    scores = np.where(rng.random(600) < 0.5, rng.choice(special, 600), rng.normal(size=600))
    scores = scores.astype(np.float32)
    apart = np.arange(600, dtype=np.float32)[:, None] * 2 + np.array([0, 0, 1, 1], np.float32)
    indices, valid = jax.jit(ops.nms, static_argnums=(2, 3))(apart, scores, 0.5, 600)
    assert np.asarray(valid).all()
    expected = to_torch(scores).sort(descending=True, stable=True).indices
    np.testing.assert_array_equal(indices, expected.numpy())
