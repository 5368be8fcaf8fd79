"""Choosing what a detector reports, against a slow and obvious version of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops

# One program a set of options: outside of jit each operator is compiled on its own.
OPTIONS = ("score_threshold", "iou_threshold", "max_detections", "multi_label", "max_candidates")
select_detections = jax.jit(ops.select_detections, static_argnames=OPTIONS)

BOXES = np.array(
    [[0, 0, 10, 10], [0, 1, 10, 11], [20, 0, 30, 10], [20, 0, 30, 9], [50, 50, 60, 60]], np.float32
)
# In several tests, so that they are the same programs.
COMMON = {"score_threshold": 0.2, "iou_threshold": 0.5, "max_detections": 8}
SCORES = np.array([[0.6, 0.3], [0.9, 0.1], [0.2, 0.8], [0.2, 0.2], [0.4, 0.0]], np.float32)


def rows_of(found):
    """The valid detections as (score, label, box), after a check that the rest is zeros."""
    valid = np.asarray(found.valid)
    assert (np.diff(valid.astype(int)) <= 0).all(), "what is found comes first"
    for part in found[:3]:
        assert not np.asarray(part)[~valid].any()
    return [
        (round(float(s), 4), int(k), tuple(np.asarray(b).tolist()))
        for b, s, k in zip(*(np.asarray(part)[valid] for part in found[:3]), strict=True)
    ]


def test_by_hand():
    found = rows_of(select_detections(BOXES, SCORES, **COMMON, multi_label=True))
    assert [(s, k, b[:2]) for s, k, b in found] == [
        (0.9, 0, (0, 1)),  # suppresses box 0 as class 0, not as class 1
        (0.8, 1, (20, 0)),  # suppresses box 3 as class 1
        (0.4, 0, (50, 50)),
        (0.3, 1, (0, 0)),
        (0.2, 0, (20, 0)),  # box 2, the first of two equals, suppresses box 3 as class 0
    ]
    found = rows_of(select_detections(BOXES, SCORES, **COMMON, multi_label=False))
    # Box 3 has equal scores, so it is of class 0, which nobody else there is.
    assert [(s, k) for s, k, _ in found] == [(0.9, 0), (0.8, 1), (0.4, 0), (0.2, 0)]


def test_only_the_best_candidates_and_no_more_than_asked_for():
    three = select_detections(BOXES, SCORES, score_threshold=0.0, max_detections=3)
    assert [s for s, _, _ in rows_of(three)] == pytest.approx([0.9, 0.8, 0.4])
    few = select_detections(BOXES, SCORES, score_threshold=0.0, max_candidates=2)
    assert [s for s, _, _ in rows_of(few)] == pytest.approx([0.9, 0.8])
    assert few.boxes.shape == (100, 4)


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_candidate(multi_label, bad):
    options = {**COMMON, "multi_label": multi_label}
    clean = rows_of(select_detections(BOXES, SCORES, **options))
    boxes = np.concatenate([BOXES, np.float32([[0, bad, 9, 9], [1, 1, 1, 5], [9, 9, 5, 5]])])
    scores = np.concatenate([SCORES, np.ones((3, 2), np.float32)])
    assert rows_of(select_detections(boxes, scores, **options)) == clean
    boxes, scores = boxes.copy(), scores.copy()
    boxes[-1], scores[-1] = [70, 70, 80, 80], [bad, 0.5]
    found = rows_of(select_detections(boxes, scores, **options))
    assert (0.5, 1, (70, 70, 80, 80)) in found
    assert len(found) == len(clean) + 1


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (2, 3)])
def test_nothing_found_is_zeros(shape):
    boxes = np.tile(np.array([[0.0, 0.0, 5.0, 5.0]], np.float32), (shape[0], 1))
    scores = np.zeros(shape, np.float32)
    found = select_detections(boxes, scores, score_threshold=0.1, max_detections=7)
    assert rows_of(found) == []
    assert found.labels.shape == (7,)
    assert found.labels.dtype == jnp.int32


def slowly(boxes, scores, score_threshold, iou_threshold, most, multi_label, most_candidates):
    """The definition, pair by pair."""
    pairs = []
    for i, row in enumerate(scores):
        row = np.where(np.isfinite(row), row, -np.inf)
        for k, score in enumerate(row):
            if multi_label or k == int(row.argmax()):
                pairs.append((i, k, score))
    usable = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    pairs = [p for p in pairs if usable[p[0]] and p[2] >= score_threshold]
    pairs = sorted(pairs, key=lambda p: -p[2])[:most_candidates]  # stable: of equals the first
    kept = []
    for i, k, score in pairs:
        if len(kept) == most:
            break
        if not any(k == m and iou(boxes[i], boxes[j]) > iou_threshold for j, m, _ in kept):
            kept.append((i, k, score))
    return [(round(float(s), 4), k, tuple(boxes[i].tolist())) for i, k, s in kept]


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = np.float32(max(w, 0)) * np.float32(max(h, 0))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return float(shared / union)  # float32, compared with the threshold as a double: see nms


@pytest.mark.parametrize("multi_label", [True, False])
def test_against_the_definition_with_one_compile(multi_label):
    rng = np.random.default_rng(0)
    trials, n, k = 200, 24, 3
    corners = rng.integers(0, 24, (trials, n, 2))
    boxes = np.concatenate([corners, corners + rng.integers(-1, 16, (trials, n, 2))], axis=-1)
    boxes = boxes.astype(np.float32)
    scores = (rng.integers(0, 12, (trials, n, k)) / 11).astype(np.float32)  # many ties
    boxes[rng.random((trials, n)) < 0.05, 2] = np.nan
    scores[rng.random((trials, n, k)) < 0.05] = np.nan
    compiled = []

    @jax.jit
    def select(boxes, scores):
        compiled.append(1)
        return jax.vmap(
            lambda b, s: select_detections(
                b,
                s,
                score_threshold=0.25,
                iou_threshold=0.4,
                max_detections=10,
                multi_label=multi_label,
                max_candidates=20,
            )
        )(boxes, scores)

    for half in (slice(0, 100), slice(100, 200)):
        found = jax.tree.map(np.asarray, select(boxes[half], scores[half]))
        for t in range(100):
            expected = slowly(boxes[half][t], scores[half][t], 0.25, 0.4, 10, multi_label, 20)
            assert rows_of(jax.tree.map(lambda part, t=t: part[t], found)) == expected
    assert len(compiled) == 1


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least one detection"):
        select_detections(BOXES, SCORES, max_detections=0)
