"""YOLOX's cells and boxes by hand; SimOTA by hand and against a loop over objects and cells."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops
from jaxvision.ops import simota
from jaxvision.ops.yolox import decode_cells, grid_cells

SIZES, STRIDES = [(8, 8), (4, 4), (2, 2)], (8, 16, 32)  # of a picture of 64 x 64
CELLS, SIDES = grid_cells(SIZES, STRIDES)
POINTS = (CELLS + 0.5) * SIDES[:, None]
CLASSES, OBJECTS = 4, 6
# Compiled whole: operation by operation takes ten times as long.
decode_yolox = jax.jit(ops.decode_yolox, static_argnums=1)
decode = jax.jit(lambda raw: decode_cells(raw, CELLS, SIDES))
assign = jax.jit(jax.vmap(simota, in_axes=(0, 0, 0, None, None, 0, 0, 0)))


# ------------------------------------------------------------------------------------- decoding
def test_a_cell_by_hand():
    outputs = [np.zeros((1, 2, 3, 7), np.float32), np.zeros((1, 1, 1, 7), np.float32)]
    outputs[0][0, 1, 2] = [0.25, 0.5, math.log(2), math.log(4), 0.0, math.log(3), -math.log(3)]
    boxes, scores = map(np.asarray, decode_yolox(outputs, (8, 16)))
    assert boxes.shape == (1, 7, 4)
    np.testing.assert_allclose(boxes[0, 5], [18 - 8, 12 - 16, 18 + 8, 12 + 16], atol=1e-5)
    np.testing.assert_allclose(scores[0, 5], [0.5 * 0.75, 0.5 * 0.25], atol=1e-6)
    np.testing.assert_allclose(boxes[0, 6], [-8, -8, 8, 8])  # the other level's only cell


def test_levels_follow_one_another_row_by_row():
    assert CELLS[:9].tolist() == [[x, 0] for x in range(8)] + [[0, 1]]
    assert CELLS[64 + 16 :].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert [(s == SIDES).sum() for s in STRIDES] == [64, 16, 4]
    with pytest.raises(ValueError, match="a stride for each of 2 levels"):
        grid_cells([(2, 2), (1, 1)], (8,))


def test_decoding_bfloat16_is_in_float32_and_has_gradients():
    @jax.jit
    def with_gradient(outputs):
        decoded, vjp = jax.vjp(lambda x: ops.decode_yolox([x], (8,)), outputs)
        return *decoded, *vjp(jax.tree.map(jnp.ones_like, decoded))

    boxes, scores, gradient = with_gradient(np.full((2, 2, 2, 6), 1.5, jnp.bfloat16))
    assert {boxes.dtype, scores.dtype} == {jnp.dtype("float32")}
    # The sum of corners knows no sides.
    passed = (np.abs(np.asarray(gradient)) > 0).all(axis=(0, 1, 2))
    assert passed.tolist() == [True, True, False, False, True, True]


# --------------------------------------------------------------------------- SimOTA by hand
ROW = np.stack([8 * np.arange(8) + 4, np.full(8, 4)], axis=1).astype(np.float32)
"""The middles of a row of 8 cells of 8 pixels."""
EACH_ITSELF = np.concatenate([ROW - 4, ROW + 4], axis=1)
AWAY = [500.0, 500.0, 510.0, 510.0]


@functools.partial(jax.jit, static_argnames="center_radius")
def choose(boxes, classes, objects, labels, valid, center_radius):
    sides = jnp.full(8, 8.0)
    none = jnp.zeros(8)
    return simota(
        boxes, none, classes, ROW, sides, objects, labels, valid, center_radius=center_radius
    )


def chosen(boxes, objects, labels=(0, 0), classes=None, center_radius=2.5):
    """What the 8 cells learn; there is room for 2 objects."""
    classes = np.zeros((8, 2)) if classes is None else classes
    room = np.concatenate([objects, np.full((2 - len(objects), 4), np.nan)])
    valid = np.arange(2) < len(objects)
    arrays = (np.asarray(x, np.float32) for x in (boxes, classes, room))
    found = choose(*arrays, np.array(labels, np.int32), valid, center_radius)
    return jax.tree.map(np.asarray, found)


def test_k_is_the_sum_of_the_best_ious():
    # The IoUs with the object are 1, 1/2, 1/2 and 0 elsewhere: k is 2. Cell 3 alone is inside of
    # the object; the others pay 100,000, and among them the best IoU wins.
    boxes = np.tile(AWAY, (8, 1))
    boxes[3:6] = [[24, 0, 32, 4], [24, 0, 32, 8], [24, 4, 32, 8]]
    matched, iou = chosen(boxes, [[24, 0, 32, 8]])
    assert matched.tolist() == [-1, -1, -1, 0, 0, -1, -1, -1]
    np.testing.assert_allclose(iou, [0, 0, 0, 0.5, 1, 0, 0, 0])
    boxes[5] = AWAY  # now the sum is 1.5, and k is 1
    assert chosen(boxes, [[24, 0, 32, 8]]).matched.tolist() == [-1, -1, -1, 0, -1, -1, -1, -1]


def test_of_equal_costs_the_first_cell_and_the_first_object_win():
    boxes = np.tile(AWAY, (8, 1))
    boxes[[2, 3]] = [16, 0, 32, 4]  # both cells are inside of it, at an IoU of 1/2: k is 1
    matched, _ = chosen(boxes, [[16, 0, 32, 8]] * 2)
    assert matched.tolist() == [-1, -1, 0, -1, -1, -1, -1, -1]


def test_a_contested_cell_goes_to_the_object_for_which_it_is_cheaper():
    matched, iou = chosen(EACH_ITSELF, [[2, 0, 10, 8], [0, 0, 8, 8]])
    assert matched.tolist() == [1] + [-1] * 7  # and object 0 has none: so it is in SimOTA
    assert float(iou[0]) == 1


def test_the_class_counts_in_the_cost():
    boxes, classes = EACH_ITSELF.copy(), np.zeros((8, 2))
    boxes[1] = boxes[0]
    classes[0], classes[1] = [-3, 3], [3, -3]
    for label, cell in ((0, 1), (1, 0)):
        # Both cells are inside of the object, at an IoU of 1/2.
        matched, _ = chosen(boxes, [[0, 0, 16, 8]], (label, 0), classes)
        assert matched.tolist().index(0) == cell
        # Of this one only cell 0 is inside, and no class makes up for that.
        assert chosen(boxes, [[0, 0, 9, 8]], (label, 0), classes).matched[0] == 0


def test_an_object_with_no_cell_in_it_has_the_cells_near_its_centre():
    thin = [[15.5, 0.0, 16.5, 8.0]]  # between the middles of cells 1 and 2
    assert chosen(EACH_ITSELF, thin).matched.tolist() == [-1, 0] + [-1] * 6
    assert chosen(EACH_ITSELF, thin, center_radius=0.4).matched.tolist() == [-1] * 8
    assert chosen(EACH_ITSELF, [AWAY]).matched.tolist() == [-1] * 8


# ---------------------------------------------------------------- SimOTA against plain loops
def slow_simota(boxes, objectness, classes, points, sides, objects, labels):
    """Section 2.3 of the paper, one object and one cell after another, in float64."""
    a, m = len(boxes), len(objects)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    cost, ious = np.full((m, a), np.inf), np.zeros((m, a))
    both, some = np.zeros((m, a), bool), np.zeros(a, bool)
    for i, (x1, y1, x2, y2) in enumerate(objects):
        for j, (x, y) in enumerate(points):
            inside = x1 < x < x2 and y1 < y < y2
            reach = 2.5 * sides[j]
            near = abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach
            both[i, j] = inside and near
            some[j] |= inside or near
    for i, (x1, y1, x2, y2) in enumerate(objects):
        for j in np.flatnonzero(some):
            u1, v1, u2, v2 = boxes[j]
            shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
            ious[i, j] = shared / union
            cost[i, j] = 0 if both[i, j] else 100_000
            cost[i, j] -= 3 * math.log(ious[i, j] + 1e-8)
            for c, logit in enumerate(classes[j]):
                p = math.sqrt(sigmoid(logit) * sigmoid(objectness[j]))
                cost[i, j] -= math.log(p if c == labels[i] else 1 - p)
    takers = [[] for _ in range(a)]
    for i in range(m):
        k = max(1, int(np.sort(ious[i])[-10:].sum()))
        for j in np.argsort(cost[i], kind="stable")[:k]:
            if np.isfinite(cost[i, j]):
                takers[j].append(i)
    matched = [
        -1 if not t else t[0] if len(t) == 1 else cost[:, j].argmin() for j, t in enumerate(takers)
    ]
    return np.array(matched), np.array([0 if i < 0 else ious[i, j] for j, i in enumerate(matched)])


def objects_of(kind, rng):
    if kind == "none":
        return np.zeros((0, 4))
    count = rng.integers(1, OBJECTS + 1)
    sides = {
        "any": rng.uniform(5, 50, (count, 2)),
        "tiny": rng.uniform(0.01, 2, (count, 2)),
        "narrow": rng.permuted(rng.uniform([1, 30], [4, 60], (count, 2)), axis=1),
        "huge": rng.uniform(60, 150, (count, 2)),
        "overlapping": rng.uniform(20, 30, (count, 2)),
    }[kind]
    spread = 3 if kind == "overlapping" else 30
    centre = rng.uniform(32 - spread, 32 + spread, (count, 2))
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)


def scene(kind, seed, spoilt=np.nan):
    """One picture's predictions, of which most are near an object, and its padded objects."""
    rng = np.random.default_rng(seed)
    objects, a = objects_of(kind, rng), len(POINTS)
    labels = rng.integers(0, CLASSES, len(objects))
    raw = rng.normal(size=(a, 4))
    boxes = np.asarray(decode(raw.astype(np.float32)))
    if len(objects):
        target = objects[rng.integers(len(objects), size=a)]
        sides = np.tile(target[:, 2:] - target[:, :2], 2)
        close = target + rng.normal(scale=0.15, size=(a, 4)) * sides
        boxes = np.where(rng.random((a, 1)) < 0.7, close, boxes)
        boxes = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:], boxes[:, :2] + 0.01)], 1)
    padded = np.full((OBJECTS, 4), spoilt)
    padded[: len(objects)] = objects
    numbers = np.full(OBJECTS, -7)
    numbers[: len(objects)] = labels
    return {
        "boxes": boxes.astype(np.float32),
        "objectness": rng.normal(scale=2, size=a).astype(np.float32),
        "classes": rng.normal(scale=2, size=(a, CLASSES)).astype(np.float32),
        "objects": padded.astype(np.float32),
        "labels": numbers.astype(np.int32),
        "valid": np.arange(OBJECTS) < len(objects),
    }


KINDS = ["any", "tiny", "narrow", "huge", "overlapping", "none"]


def scenes(spoilt=np.nan):
    made = [scene(kind, seed, spoilt) for seed in range(5) for kind in KINDS]
    return {name: np.stack([s[name] for s in made]) for name in made[0]}


def assigned(batch):
    predicted = (batch[name] for name in ("boxes", "objectness", "classes"))
    objects = (batch[name] for name in ("objects", "labels", "valid"))
    return assign(*predicted, POINTS, SIDES, *objects)


def test_equal_to_plain_loops_and_compiled_once():
    batch = scenes()
    matched, iou = map(np.asarray, assigned(batch))
    assert assign._cache_size() == 1
    several = 0
    for i in range(len(matched)):
        s = {name: array[i] for name, array in batch.items()}
        count = s["valid"].sum()
        wanted, ious = slow_simota(
            s["boxes"].astype(np.float64),
            s["objectness"],
            s["classes"],
            POINTS,
            SIDES,
            s["objects"][:count].astype(np.float64),
            s["labels"][:count],
        )
        different = np.flatnonzero(matched[i] != wanted)
        assert not len(different), (KINDS[i % len(KINDS)], i, different)
        np.testing.assert_allclose(iou[i], ious, atol=2e-3 if KINDS[i % 6] == "tiny" else 1e-5)
        several += (np.bincount(wanted[wanted >= 0], minlength=1) > 1).sum()
    assert several > 20  # k is not 1 everywhere


@pytest.mark.parametrize("spoilt", [0.0, 1e9, -np.inf])
def test_padding_is_no_object(spoilt):
    clean, other = assigned(scenes()), assigned(scenes(spoilt))
    np.testing.assert_array_equal(clean.matched, other.matched)
    np.testing.assert_array_equal(clean.iou, other.iou)
    none = np.arange(len(clean.matched)) % len(KINDS) == KINDS.index("none")
    assert (np.asarray(clean.matched)[none] == -1).all()


def test_the_order_of_objects_does_not_matter():
    batch = scenes(0.0)
    order = np.random.default_rng(0).permutation(OBJECTS)
    shuffled = {**batch, **{name: batch[name][:, order] for name in ("objects", "labels", "valid")}}
    clean, other = assigned(batch), assigned(shuffled)
    back = np.where(np.asarray(other.matched) < 0, -1, order[np.asarray(other.matched)])
    np.testing.assert_array_equal(back, clean.matched)


def test_no_gradient_and_no_objects_at_all():
    batch = scenes(0.0)
    gradient = jax.jit(jax.grad(lambda boxes: assigned({**batch, "boxes": boxes}).iou.sum()))
    assert not np.asarray(gradient(batch["boxes"])).any()
    nothing = assigned(
        {
            **batch,
            "objects": batch["objects"][:, :0],
            **{name: batch[name][:, :0] for name in ("labels", "valid")},
        }
    )
    assert (np.asarray(nothing.matched) == -1).all()
    assert not np.asarray(nothing.iou).any()
