"""Matching, balanced sampling and YOLO's cells, by hand and against loops."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxvision import ops
from jaxvision.ops.matching import BELOW_LOW_THRESHOLD, BETWEEN_THRESHOLDS

box_iou = jax.jit(ops.box_iou)
match = jax.jit(ops.match, static_argnums=(1, 2, 3))
sample_balanced = jax.jit(ops.sample_balanced, static_argnums=(3, 4))
assign_to_cells = jax.jit(ops.assign_to_cells, static_argnums=2)


# ---------------------------------------------------------------------------------------- match
def slow_match(iou, high, low, allow_low_quality):
    """One picture without padding, one box after the other."""
    m, n = iou.shape
    matched = np.full(n, BELOW_LOW_THRESHOLD)
    for box in range(n):
        best = max(range(m), key=lambda i: (iou[i, box], -i), default=None)
        if best is None:
            continue
        wanted = any(iou[i, box] == iou[i].max() for i in range(m))
        if iou[best, box] >= high or (allow_low_quality and wanted):
            matched[box] = best
        elif iou[best, box] >= low:
            matched[box] = BETWEEN_THRESHOLDS
    return matched


@partial(jax.jit, static_argnames=("high", "low", "allow_low_quality"))
def run_match(iou, valid, high, low, allow_low_quality):
    return jax.vmap(lambda iou, valid: match(iou, high, low, allow_low_quality, valid))(iou, valid)


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize(("high", "low"), [(0.7, 0.3), (0.5, 0.5), (0.25, 0.0)])
@pytest.mark.parametrize("poison", [np.nan, 1.0])
def test_match_equals_loops(high, low, allow_low_quality, poison):
    """Quarters give ties and IoUs equal to thresholds; padded objects hold poison."""
    rng = np.random.default_rng(0)
    iou = np.round(rng.random((500, 5, 12)) * 4) / 4
    iou = np.where(rng.random((500, 1, 1)) < 0.5, iou, rng.random(iou.shape)).astype(np.float32)
    valid = rng.random((500, 5)) < 0.6
    padded = np.where(valid[..., None], iou, np.float32(poison))
    got = np.asarray(run_match(padded, valid, high, low, allow_low_quality))
    assert got.dtype == np.int32
    for trial in range(500):
        rows = np.flatnonzero(valid[trial])
        expected = slow_match(iou[trial, rows], high, low, allow_low_quality)
        expected = np.where(expected >= 0, np.append(rows, -1)[expected], expected)
        np.testing.assert_array_equal(got[trial], expected)


def test_match_by_hand():
    objects = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    boxes = [[0, 0, 10, 10], [0, 0, 10, 5], [1, 0, 10, 2], [26, 0, 30, 10]]
    boxes = np.array(boxes, np.float32)
    iou = box_iou(objects, boxes)  # 1.0, 0.5, 0.18 of the first; 0.4 of the second
    assert match(iou, 0.7, 0.3).tolist() == [0, -2, -1, -2]
    assert match(iou, 0.7, 0.3, True).tolist() == [0, -2, -1, 1]
    only_first = np.array([True, False])
    assert match(iou, 0.7, 0.3, True, only_first).tolist() == [0, -2, -1, -1]


def test_without_objects_all_boxes_are_background():
    assert match(np.zeros((0, 3), np.float32), 0.7, 0.3, True).tolist() == [-1, -1, -1]
    alike, nothing = np.ones((2, 3), np.float32), np.zeros(2, bool)
    assert match(alike, 0.7, 0.0, True, nothing).tolist() == [-1, -1, -1]


def test_of_equal_objects_the_first_and_of_nan_the_nan():
    iou = np.array([[0.8, 0.1, 0.9], [0.8, np.nan, 0.9]], np.float32)
    assert match(iou, 0.7, 0.3).tolist() == [0, 1, 0]


def test_thresholds_must_be_in_order():
    with pytest.raises(ValueError, match=r"in order, got 0\.7 and 0\.5"):
        match(np.ones((1, 1), np.float32), 0.5, 0.7)


def test_match_compiles_once_for_any_number_of_objects():
    run = jax.jit(lambda iou, valid: ops.match(iou, 0.7, 0.3, True, valid))
    for count in range(4):
        run(np.ones((3, 5), np.float32), np.arange(3) < count)
    assert run._cache_size() == 1


# ------------------------------------------------------------------------------------- sampling
@partial(jax.jit, static_argnames=("size", "fraction"))
def run_sampling(keys, positive, negative, size, fraction):
    def one(key, positive, negative):
        return sample_balanced(key, positive, negative, size, fraction)

    return jax.vmap(one)(keys, positive, negative)


@pytest.mark.parametrize(("size", "fraction"), [(8, 0.25), (9, 0.5), (30, 0.5), (6, 0.0), (6, 1.0)])
def test_counts_are_torchvisions_and_no_box_comes_twice(size, fraction):
    rng = np.random.default_rng(0)
    kind = rng.choice(3, (200, 20), p=[0.2, 0.5, 0.3])
    kind[:20], kind[20:40], kind[40:60] = 0, 1, 2
    positive, negative = kind == 0, kind == 1
    keys = jax.random.split(jax.random.key(1), 200)
    samples = jax.tree.map(np.asarray, run_sampling(keys, positive, negative, size, fraction))
    for trial in range(200):
        indices, is_positive, valid = (x[trial] for x in samples)
        num_positive = min(positive[trial].sum(), int(size * fraction))
        num_negative = min(negative[trial].sum(), size - num_positive)
        assert is_positive.tolist() == [True] * num_positive + [False] * (size - num_positive)
        assert valid.sum() == valid[: num_positive + num_negative].sum()
        assert valid.sum() == num_positive + num_negative
        assert positive[trial, indices[is_positive]].all()
        assert negative[trial, indices[valid & ~is_positive]].all()
        assert len(set(indices[valid])) == valid.sum()
        assert not indices[~valid].any()


def test_each_candidate_is_as_likely():
    positive = np.arange(10) < 4
    negative = (np.arange(10) >= 4) & (np.arange(10) != 7)
    keys = jax.random.split(jax.random.key(0), 4000)
    repeat = partial(np.broadcast_to, shape=(4000, 10))
    samples = run_sampling(keys, repeat(positive), repeat(negative), 4, 0.5)
    share = np.bincount(np.ravel(samples.indices), minlength=10) / 4000
    expected = np.array([0.5] * 4 + [0.4] * 3 + [0] + [0.4] * 2)
    np.testing.assert_allclose(share, expected, atol=5 * np.sqrt(0.25 / 4000))


def test_the_key_is_all_that_sampling_depends_on():
    positive = np.arange(50) < 25
    draw = jax.jit(lambda key: sample_balanced(key, positive, ~positive, 10, 0.5).indices)
    first, again, other = (draw(jax.random.key(seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_of_nothing_nothing_is_drawn():
    none = np.zeros(0, bool)
    sample = sample_balanced(jax.random.key(0), none, none, 3, 0.5)
    assert [x.tolist() for x in sample] == [[0] * 3, [False] * 3, [False] * 3]


# ---------------------------------------------------------------------------------- YOLO's cells
def boxes_about(*centres):
    return np.array([[x - 4, y - 4, x + 4, y + 4] for x, y in centres], np.float32)


@pytest.mark.parametrize(
    ("centre", "cell"),
    [
        ((0, 0), (0, 0)),
        ((63.75, 0), (0, 0)),
        ((64, 0), (0, 1)),  # on a line: the cell to its right
        ((10, 128), (2, 0)),
        ((447.5, 447.5), (6, 6)),
        ((448, 448), (6, 6)),  # on the border
        ((448.5, 10), None),
        ((10, -0.5), None),
        ((np.nan, 10), None),
        ((np.inf, 10), None),
    ],
)
def test_the_cell_with_the_centre_is_responsible(centre, cell):
    assigned = np.asarray(assign_to_cells(boxes_about(centre), (448, 448), (7, 7)))
    expected = np.full((7, 7), -1)
    if cell is not None:
        expected[cell] = 0
    np.testing.assert_array_equal(assigned, expected)


def test_lines_between_cells_are_exact_for_any_size():
    """A centre on line k belongs to cell k, although size / cells has no exact float32."""

    @partial(jax.jit, static_argnums=1)
    def cells(boxes, size):
        return assign_to_cells(boxes, (size, size), (7, 7))

    for size in (7 * 61, 448, 7 * 1021):
        lines = np.arange(1, 7) * size // 7
        boxes = boxes_about(*zip(lines, lines, strict=True))
        assert np.diagonal(cells(boxes, size)).tolist() == [-1, 0, 1, 2, 3, 4, 5]


def test_of_two_in_one_cell_the_first_wins_and_padding_has_none():
    boxes = boxes_about((1, 1), (9, 1), (10, 2), (1, 11))
    valid = np.array([False, True, True, True])
    assert assign_to_cells(boxes, (12, 16), (2, 2), valid).tolist() == [[-1, 1], [3, -1]]
    poisoned = np.where(valid[:, None], boxes, np.float32(np.nan))
    assert assign_to_cells(poisoned, (12, 16), (2, 2), valid).tolist() == [[-1, 1], [3, -1]]
    nothing = np.zeros((0, 4), np.float32)
    assert assign_to_cells(nothing, (12, 16), (1, 3)).tolist() == [[-1, -1, -1]]


def test_sizes_and_pictures_may_be_batched():
    boxes = boxes_about((6, 6), (6, 6)).reshape(2, 1, 4)
    sizes = np.array([[8, 8], [16, 8]], np.int32)
    assign = jax.jit(jax.vmap(lambda boxes, size: assign_to_cells(boxes, tuple(size), (2, 2))))
    assert assign(boxes, sizes).tolist() == [[[-1, -1], [-1, 0]], [[-1, 0], [-1, -1]]]
