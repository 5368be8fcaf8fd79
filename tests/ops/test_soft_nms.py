"""soft_nms against loops in float64: picks, scores, labels, padding, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision import ops

# Compiled whole: operation by operation takes ten times as long.
STATIC = ("method", "iou_threshold", "sigma")
soft_nms = jax.jit(ops.soft_nms, static_argnums=2, static_argnames=STATIC)

OPTIONS = {
    "linear": {"method": "linear", "iou_threshold": 0.25},
    "gaussian": {"method": "gaussian", "sigma": 0.4},
}


def problems(trials=300, count=20, seed=0):
    """Returns boxes, scores, labels, valid; some boxes are whole numbers, repeated or empty."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (trials, count, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(8, corner.shape)], axis=-1)
    boxes[::2] = np.round(boxes[::2] / 4)
    boxes[::3, 1], boxes[::4, 2], boxes[::5, 3, 2] = boxes[::3, 0], boxes[::4, 0], -1
    scores = np.round(rng.random((trials, count)), 2)
    labels, valid = rng.integers(0, 2, scores.shape), rng.random(scores.shape) < 0.8
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32), valid


def slow_soft_nms(boxes, scores, labels, valid, most, method, iou_threshold=0.3, sigma=0.5):
    """Returns the picked indices and their scores, of one picture."""
    boxes, scores = boxes.astype(np.float64), scores.astype(np.float64)
    left, picked, values = list(np.flatnonzero(valid)), [], []
    while left and len(picked) < most:
        best = max(left, key=lambda i: (scores[i], -i))
        if scores[best] < 0.001:
            break
        left.remove(best)
        picked.append(best)
        values.append(scores[best])
        for i in left:
            low, high = np.maximum(boxes[i], boxes[best])[:2], np.minimum(boxes[i], boxes[best])[2:]
            shared = np.prod(np.maximum(high - low, 0))
            if shared == 0 or labels[i] != labels[best]:
                continue
            areas = sum(np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, best))
            iou = shared / (areas - shared)
            if method == "gaussian":
                scores[i] *= np.exp(-(iou**2) / sigma)
            elif iou >= iou_threshold:
                scores[i] *= 1 - iou
    return picked, values


@partial(jax.jit, static_argnames=("most", "method", "iou_threshold", "sigma"))
def run(boxes, scores, labels, valid, most, **options):
    def one(boxes, scores, labels, valid):
        return ops.soft_nms(boxes, scores, most, labels=labels, valid=valid, **options)

    return jax.vmap(one)(boxes, scores, labels, valid)


@pytest.mark.parametrize("method", OPTIONS)
def test_picks_and_scores(method):
    boxes, scores, labels, valid = problems()
    boxes[~valid], scores[~valid] = np.nan, np.nan
    results = run(boxes, scores, labels, valid, 15, **OPTIONS[method])
    fewer = 0
    for trial, result in enumerate(zip(*map(np.asarray, results), strict=True)):
        indices, values, found = result
        problem = (x[trial] for x in (boxes, scores, labels, valid))
        picked, expected = slow_soft_nms(*problem, 15, **OPTIONS[method])
        assert found.tolist() == [True] * len(picked) + [False] * (15 - len(picked))
        assert not indices[~found].any()
        assert not values[~found].any()
        # Two scores that are equal but for rounding may change places.
        np.testing.assert_allclose(values[found], expected, atol=1e-6)
        changed = indices[found] != picked
        gaps = np.abs(np.subtract.outer(expected, expected)) + np.eye(len(expected))
        assert not changed.any() or gaps[changed].min(axis=1).max() < 1e-6
        fewer += len(picked) < 15
    assert fewer > 10


def test_by_hand():
    boxes = [[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0], [8.0, 8.0, 9.0, 9.0]]
    boxes, scores = np.array(boxes, np.float32), np.array([0.5, 0.75, 0.25], np.float32)
    indices, values, found = soft_nms(boxes, scores, 4, iou_threshold=0.5)
    assert indices.tolist() == [1, 0, 2, 0]
    assert values.tolist() == [0.75, 0.25, 0.25, 0.0]
    assert found.tolist() == [True, True, True, False]
    indices, values, _ = soft_nms(boxes, scores, 2, method="gaussian", sigma=0.25)
    assert indices.tolist() == [1, 2]
    values = soft_nms(boxes, scores, 3, method="gaussian", sigma=0.25)[1]
    np.testing.assert_allclose(values, [0.75, 0.25, 0.5 / np.e], rtol=1e-6)


def test_what_is_not_finite_is_never_taken():
    boxes = [[0.0, 0.0, 4.0, 4.0], [0.0, np.nan, 4.0, 2.0], [0.0, 0.0, 4.0, 4.0]]
    boxes, scores = np.array(boxes, np.float32), np.array([np.nan, 0.75, 0.25], np.float32)
    indices, values, found = soft_nms(boxes, scores, 2)
    assert (indices.tolist(), values.tolist()) == ([2, 0], [0.25, 0.0])
    assert found.tolist() == [True, False]
    nothing = ops.soft_nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 2)
    assert not np.asarray(nothing[2]).any()


def test_bfloat16():
    boxes, scores, labels, valid = problems()
    narrow = boxes.astype(jnp.bfloat16), scores.astype(jnp.bfloat16)
    wide = (x.astype(np.float32) for x in narrow)
    expected = run(*wide, labels, valid, 15, **OPTIONS["linear"])
    result = run(*narrow, labels, valid, 15, **OPTIONS["linear"])
    for got, want in zip(result, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("method", OPTIONS)
def test_gradients_equal_finite_differences_and_padding_has_none(method):
    # No two scores are close and no IoU is near the threshold, so that nothing changes places.
    boxes = [[0.0, 0, 10, 10], [0, 1, 10, 12], [3, 0, 12, 9], [30, 30, 40, 40]]
    boxes, scores = np.array(boxes, np.float32), np.array([0.9, 0.7, 0.5, 0.3], np.float32)
    valid = np.array([True, True, True, False])

    @jax.jit
    def values(boxes, scores):
        return ops.soft_nms(boxes, scores, 3, valid=valid, **OPTIONS[method])[1]

    check_grads(values, (boxes, scores), order=1, modes=["rev"], eps=1e-2, rtol=2e-2)
    boxes, scores = boxes.copy(), scores.copy()
    boxes[3], scores[3] = np.nan, np.nan
    _, vjp = jax.vjp(values, boxes, scores)
    gradients = [np.asarray(x) for x in vjp(np.ones(3, np.float32))]
    assert np.isfinite(gradients[0]).all()
    assert gradients[0][:3].any()
    assert not gradients[0][3].any()
    assert gradients[1][3] == 0


def test_an_unknown_method_is_an_error():
    with pytest.raises((ValueError, TypeError), match="method"):
        ops.soft_nms(np.zeros((1, 4), np.float32), np.zeros(1, np.float32), 1, method="cubic")
