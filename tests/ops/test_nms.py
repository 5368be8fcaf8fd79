"""nms and batched_nms against slow NumPy: the same indices in the same order, always."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import batched_nms, nms
from jaxvision.ops.nms import greedy_nms

# Compiled whole: operation by operation takes ten times as long.
compiled_nms = jax.jit(nms, static_argnums=(2, 3))
nms_at_any_threshold = jax.jit(nms, static_argnums=3)
compiled_batched_nms = jax.jit(batched_nms, static_argnums=(3, 4))

THRESHOLDS = [0.0, 0.1, 0.3, 0.5, 2 / 3, 1.0]
TRIALS, COUNT = 2000, 24


def hostile_problems(trials, count, seed=0):
    """Returns boxes [t, n, 4], scores [t, n], labels [t, n] and valid [t, n].

    Each trial mixes whole numbers, whose IoUs are equal to thresholds and to each other, with
    repeated, empty, turned and huge boxes; scores with ties, NaN, infinities and two zeros.
    """
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-5, 20, (trials, count, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(8, corner.shape)], axis=-1)
    boxes = boxes.astype(np.float32)
    whole = rng.random((trials, 1, 1)) < 0.5
    boxes = np.where(whole, np.round(boxes / 3), boxes)
    scores = rng.random((trials, count)).astype(np.float32)
    tied = rng.random((trials, 1)) < 0.5
    scores = np.where(tied, np.round(scores * 4) / 4, scores)

    def somewhere(share):
        return rng.random((trials, count)) < share * (rng.random((trials, 1)) < 0.3)

    repeated = rng.integers(0, count, (trials, count))
    copies = np.take_along_axis(boxes, repeated[..., None], axis=1)
    boxes = np.where(somewhere(0.5)[..., None], copies, boxes)
    boxes = np.where(somewhere(0.3)[..., None], boxes[..., [2, 1, 0, 3]], boxes)
    boxes = np.where(somewhere(0.3)[..., None], boxes[..., [2, 3, 0, 1]], boxes)
    boxes = np.where(somewhere(0.3)[..., None], boxes[..., [0, 1, 0, 3]], boxes)
    boxes = np.where(somewhere(0.3)[..., None], boxes[..., [0, 1, 0, 1]], boxes)
    factors = rng.choice(np.array([1, 1e12, 1e25], np.float32), scores.shape)
    boxes = np.where(somewhere(0.4)[..., None], boxes * factors[..., None], boxes)
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        boxes = np.where(somewhere(0.2)[..., None] & (rng.random(boxes.shape) < 0.4), value, boxes)
        scores = np.where(somewhere(0.3), value, scores)
    scores = np.where(somewhere(0.3), rng.choice([0.0, -0.0], scores.shape), scores)
    labels = rng.integers(-1, 3, (trials, count))
    valid = ~somewhere(0.7) & (rng.random((trials, 1)) > 0.02)
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32), valid


def slow_nms(boxes, scores, labels, iou_threshold, valid):
    """Greedy suppression of all trials side by side; returns the kept indices of each.

    Float32 as in torchvision's kernel, which compares the IoU with the threshold in float64.
    """
    count = boxes.shape[1]
    # The last key comes first: padding at the end, then NaN before all numbers, then descending.
    order = np.lexsort((-scores, ~np.isnan(scores), ~valid))
    boxes = np.take_along_axis(boxes, order[..., None], axis=1)
    alive, labels = (np.take_along_axis(x, order, axis=1) for x in (valid, labels))
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    with np.errstate(all="ignore"):
        area = (x2 - x1) * (y2 - y1)
        for i in range(count):
            one = slice(i, i + 1)
            w = np.minimum(x2[:, one], x2) - np.maximum(x1[:, one], x1)
            h = np.minimum(y2[:, one], y2) - np.maximum(y1[:, one], y1)
            shared = np.maximum(w, 0) * np.maximum(h, 0)
            iou = shared / (area[:, one] + area - shared)
            assert iou.dtype == np.float32
            suppressed = (iou.astype(np.float64) > iou_threshold) & (labels[:, one] == labels)
            suppressed &= alive[:, one] & (np.arange(count) > i)
            alive = alive & ~suppressed
    return [o[a] for o, a in zip(order, alive, strict=True)]


@partial(jax.jit, static_argnames=("max_outputs", "static_threshold"))
def suppress(boxes, scores, labels, threshold, valid, max_outputs, static_threshold=None):
    """All trials at once; the threshold is traced, so that one compile serves all of them."""
    if static_threshold is not None:
        threshold = static_threshold

    def one(boxes, scores, labels, valid):
        if labels is None:
            return nms(boxes, scores, threshold, max_outputs, valid)
        return batched_nms(boxes, scores, labels, threshold, max_outputs, valid)

    return jax.vmap(one)(boxes, scores, labels, valid)


def float32_at_most(threshold):
    nearest = np.float32(threshold)
    return np.nextafter(nearest, np.float32(-1)) if float(nearest) > threshold else nearest


def assert_same(result, expected, max_outputs):
    """The first `max_outputs` of the expected indices, then zeros that are not valid."""
    indices, valid = map(np.asarray, result)
    assert indices.dtype == np.int32
    wanted = np.zeros((len(expected), max_outputs), np.int32)
    is_kept = np.zeros(wanted.shape, bool)
    for row, kept in enumerate(expected):
        kept = kept[:max_outputs]
        wanted[row, : len(kept)], is_kept[row, : len(kept)] = kept, True
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(valid, is_kept)


def test_by_hand():
    boxes = [[0, 0, 10, 10], [0, 1, 10, 11], [20, 0, 30, 10], [0, 0, 10, 9.0]]
    boxes, scores = np.array(boxes, np.float32), np.array([0.7, 0.9, 0.1, 0.8], np.float32)
    indices, valid = nms_at_any_threshold(boxes, scores, 0.5, 3)
    assert indices.tolist() == [1, 2, 0]
    assert valid.tolist() == [True, True, False]
    # The best box, 1, has IoUs of 90 / 110 and 80 / 110 with boxes 0 and 3.
    assert nms_at_any_threshold(boxes, scores, 0.75, 3)[0].tolist() == [1, 3, 2]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_nms_of_hostile_problems(threshold):
    boxes, scores, _, valid = hostile_problems(TRIALS, COUNT, seed=int(1000 * threshold))
    expected = slow_nms(boxes, scores, np.zeros(scores.shape), threshold, valid)
    for most in (COUNT, 5):
        result = suppress(boxes, scores, None, float32_at_most(threshold), valid, most)
        assert_same(result, expected, most)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_batched_nms_of_hostile_problems(threshold):
    boxes, scores, labels, valid = hostile_problems(TRIALS, COUNT, seed=int(999 * threshold))
    expected = slow_nms(boxes, scores, labels, threshold, valid)
    most = COUNT + 3
    result = suppress(boxes, scores, labels, float32_at_most(threshold), valid, most)
    assert_same(result, expected, most)


def test_thresholds_are_compared_as_doubles():
    """An IoU of 1 / 10 in float32 is above the double 0.1: boxes of whole numbers are like that."""
    boxes = np.array([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 1.0, 1.0]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert compiled_nms(boxes, scores, 0.1, 2)[1].tolist() == [True, False]
    problems = boxes, scores, labels, valid = hostile_problems(TRIALS, COUNT, seed=7)
    for threshold in (0.3, 1):
        expected = slow_nms(*problems[:3], threshold, valid)
        result = suppress(boxes, scores, labels, None, valid, COUNT, static_threshold=threshold)
        assert_same(result, expected, COUNT)


def crowd(count, seed=0):
    """Boxes about a few objects, and between them: what a detector gives."""
    rng = np.random.default_rng(seed)
    objects = rng.uniform(0, 300, (12, 2)), rng.uniform(20, 90, (12, 2))
    centre, side = (values[rng.integers(0, 12, count)] for values in objects)
    centre, side = centre + 9 * rng.normal(size=centre.shape), side * rng.uniform(0.6, 1.6, 2)
    boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1).astype(np.float32)
    scores = np.round(rng.random(count), 2).astype(np.float32)
    return boxes, scores, rng.integers(0, 3, count).astype(np.int32), rng.random(count) < 0.8


def chain(count):
    """Each box overlaps its neighbours only: which ones are kept is known last at the end."""
    left = np.arange(count, dtype=np.float32)[:, None] * 4
    boxes = np.concatenate([left, left * 0, left + 7, left * 0 + 5], axis=1)
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    return boxes, scores, np.zeros(count, np.int32), np.ones(count, bool)


@pytest.mark.parametrize("block", [32, 1024])
@pytest.mark.parametrize("problem", [crowd(300), chain(300)], ids=["crowd", "chain"])
def test_block_by_block(problem, block):
    """More boxes than a block has, or fewer; all of the results, or those up to within a block."""
    boxes, scores, labels, valid = problem
    expected = slow_nms(*(x[None] for x in (boxes, scores, labels)), 0.25, valid[None])
    assert 40 < len(expected[0]) < 300
    for most in (700, 37):
        run = jax.jit(greedy_nms, static_argnums=(4, 6))
        result = run(boxes, scores, labels, 0.25, most, valid, block)
        assert_same([np.asarray(x)[None] for x in result], expected, most)


def test_padding_may_hold_anything():
    boxes, scores, labels, _ = crowd(64)
    valid = np.arange(64) % 3 != 1
    rows = np.flatnonzero(valid)
    kept = slow_nms(
        boxes[None, rows], scores[None, rows], labels[None, rows], 0.5, valid[None, rows]
    )
    for poison in (np.nan, np.inf, 0.0):
        padded = np.where(valid[:, None], boxes, np.float32(poison))
        bad_scores = np.where(valid, scores, np.float32(poison))
        result = compiled_batched_nms(
            padded, bad_scores, np.where(valid, labels, 99), 0.5, 64, valid
        )
        assert_same([np.asarray(x)[None] for x in result], [rows[kept[0]]], 64)


def test_nothing_valid_nothing_there_and_nothing_asked_for():
    boxes, scores, labels, valid = crowd(8)
    for result in (
        compiled_nms(boxes, scores, 0.5, 3, np.zeros(8, bool)),
        compiled_nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5, 3),
    ):
        assert [x.tolist() for x in result] == [[0, 0, 0], [False] * 3]
    none = compiled_batched_nms(boxes, scores, labels, 0.5, 0, valid)
    assert [x.shape for x in none] == [(0,), (0,)]


def test_one_compile_for_any_number_of_boxes():
    traces = []

    @jax.jit
    def run(boxes, scores, labels, valid):
        traces.append(1)
        return batched_nms(boxes, scores, labels, 0.5, 10, valid)

    boxes, scores, labels, _ = crowd(40)
    for n in range(0, 41, 10):
        kept = run(boxes, scores, labels, np.arange(40) < n)[1]
        assert bool(np.asarray(kept).any()) == (n > 0)
    assert len(traces) == run._cache_size() == 1


def test_scores_that_are_picked_have_gradients_and_boxes_have_none():
    boxes, scores, _, valid = crowd(40)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(boxes, scores):
        indices, kept = nms(boxes, scores, 0.5, 12, valid)
        return jnp.where(kept, scores[indices], 0).sum() + boxes.sum()

    on_boxes, on_scores = gradients(boxes, scores)
    one = (x[None] for x in (boxes, scores, np.zeros(40)))
    expected = np.zeros(40)
    expected[slow_nms(*one, 0.5, valid[None])[0][:12]] = 1
    np.testing.assert_array_equal(on_scores, expected)
    np.testing.assert_array_equal(on_boxes, 1)


def test_bfloat16_is_compared_in_float32():
    boxes, scores, labels, valid = crowd(200)
    narrow = boxes.astype(jnp.bfloat16), scores.astype(jnp.bfloat16)
    wide = [x.astype(np.float32)[None] for x in narrow]
    expected = slow_nms(*wide, labels[None], 0.5, valid[None])
    result = compiled_batched_nms(*narrow, labels, 0.5, 200, valid)
    assert_same([np.asarray(x)[None] for x in result], expected, 200)
