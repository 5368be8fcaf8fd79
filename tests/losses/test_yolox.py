"""YOLOX's terms by hand and against NumPy; gradients, poison in the padding, scenes of nothing."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_variables import random_variables

from jaxvision.losses import yolox_loss, yolox_terms
from jaxvision.models.layers import BatchNorm, Conv
from jaxvision.ops import simota
from jaxvision.ops.yolox import decode_cells, grid_cells, join_levels
from jaxvision.train import create_state, make_train_step

STRIDES, SIZES, CLASSES = (8, 16), ((4, 4), (2, 2)), 3
CELLS, SIDES = grid_cells(SIZES, STRIDES)
POISON = [0.0, 1e9, np.nan]
ALL = np.ones(4, bool)
LOSSES = ("iou_loss", "objectness_loss", "class_loss", "l1_loss")


def terms_of(raw, objects, valid=None, use_l1=True):
    return yolox_terms(levels(raw), STRIDES, *objects, valid, use_l1=use_l1)


def total_of(raw, objects, valid=None):
    terms = terms_of(raw, objects, valid)
    return sum(terms[name] for name in LOSSES)


def levels(raw):
    """Splits [b, a, c] into the maps of the levels."""
    parts = np.split(np.arange(len(CELLS)), [16])
    return [raw[:, p].reshape(len(raw), *size, -1) for p, size in zip(parts, SIZES, strict=True)]


@jax.jit
def terms_and_gradient(raw, objects, valid):
    return terms_of(raw, objects, valid), jax.grad(total_of)(raw, objects, valid)


def alike(raw, box, label):
    """Four times the same picture, of one object: as large a batch as that of `examples`."""
    boxes, labels = np.zeros((4, 3, 4), np.float32), np.zeros((4, 3), np.int32)
    boxes[:, 0], labels[:, 0] = box, label
    return np.repeat(raw, 4, axis=0), (boxes, labels, np.array([[True, False, False]] * 4))


def examples(seed=0, count=4, padding=0.0):
    """Raw outputs whose boxes are near objects, and the objects, padded to 3."""
    rng = np.random.default_rng(seed)
    centre, sides = rng.uniform(4, 28, (count, 3, 2)), rng.uniform(3, 20, (count, 3, 2))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1)
    box_valid = np.array([[True, True, False], [True] * 3, [False] * 3, [False, True, True]])
    box_valid = np.resize(box_valid, (count, 3))
    labels = rng.integers(0, CLASSES, (count, 3))
    chosen = np.take_along_axis(boxes, rng.integers(0, 3, (count, len(CELLS), 1)), axis=1)
    xy = (chosen[..., :2] + chosen[..., 2:]) / 2 / SIDES[:, None] - CELLS
    wh = np.log((chosen[..., 2:] - chosen[..., :2]) / SIDES[:, None])
    raw = np.concatenate([xy, wh], -1) + rng.normal(scale=0.2, size=(count, len(CELLS), 4))
    raw = np.concatenate([raw, rng.normal(size=(count, len(CELLS), 1 + CLASSES))], axis=-1)
    boxes = np.where(box_valid[..., None], boxes, padding)
    labels = np.where(box_valid, labels, 10**6)
    return raw.astype(np.float32), (
        boxes.astype(np.float32),
        labels.astype(np.int32),
        np.array(box_valid),
    )


# ---------------------------------------------------------------------------------- by hand
def test_one_object_by_hand():
    raw = np.full((1, len(CELLS), 5 + CLASSES), -50.0, np.float32)  # no object, no class, no area
    raw[0, 5] = [0.5, 0.25, 0.0, 0.0, 0.0, 0.0, math.log(3), -50.0]
    # Cell 5 is at column 1, row 1: its box is 8 x 8 around (12, 10). Half of it is the object's.
    raw, objects = alike(raw, box=(8, 6, 16, 10), label=1)
    terms = {name: float(x) for name, x in terms_and_gradient(raw, objects, ALL)[0].items()}
    iou = 0.5
    assert terms["foreground_per_object"] == 1
    assert terms["iou_loss"] == pytest.approx(5 * (1 - iou**2), rel=1e-6)
    assert terms["objectness_loss"] == pytest.approx(math.log(2), rel=1e-6)
    # Class 0 at 1/2 should be 0, class 1 at 3/4 should be the IoU.
    wanted = math.log(2) - iou * math.log(0.75) - (1 - iou) * math.log(0.25)
    assert terms["class_loss"] == pytest.approx(wanted, rel=1e-6)
    # Raw targets: x 12/8 - 1 is right, y 8/8 - 1 is 0.25 less, log w is right, log h log(1/2).
    assert terms["l1_loss"] == pytest.approx(0.25 + math.log(2), rel=1e-5)
    assert "l1_loss" not in jax.eval_shape(functools.partial(terms_of, use_l1=False), raw, objects)


def test_a_perfect_prediction_costs_nothing():
    raw = np.full((1, len(CELLS), 5 + CLASSES), -50.0, np.float32)
    raw[0, 5] = [0.5, 0.5, 0.0, 0.0, 50.0, -50.0, 50.0, -50.0]
    terms, _ = terms_and_gradient(*alike(raw, box=(8, 8, 16, 16), label=1), ALL)
    for name in LOSSES:
        assert float(terms[name]) == pytest.approx(0, abs=1e-6), name


def sigmoid_cross_entropy(logits, target):
    return np.maximum(logits, 0) - logits * target + np.log1p(np.exp(-np.abs(logits)))


@jax.jit
def choose(raw, *objects):
    """Returns the boxes that the cells predict, and which object each learns."""
    boxes, points = decode_cells(raw[..., :4], CELLS, SIDES), (CELLS + 0.5) * SIDES[:, None]
    assign = jax.vmap(simota, in_axes=(0, 0, 0, None, None, 0, 0, 0))
    return boxes, assign(boxes, raw[..., 4], raw[..., 5:], points, SIDES, *objects).matched


def numpy_terms(raw, boxes, labels, box_valid, valid):
    """What `yolox_terms` adds up, picture by picture and cell by cell, with `simota`'s choice."""
    sums, count, total = dict.fromkeys(LOSSES, 0.0), 0, 0
    predicted, choice = (np.asarray(x) for x in choose(raw, boxes, labels, box_valid))
    for i in np.flatnonzero(valid):
        cell, matched = raw[i].astype(np.float64), choice[i]
        sums["objectness_loss"] += sigmoid_cross_entropy(cell[:, 4], matched >= 0).sum()
        total += box_valid[i].sum()
        for j in np.flatnonzero(matched >= 0):
            count += 1
            b, p = (x.astype(np.float64) for x in (boxes[i, matched[j]], predicted[i, j]))
            w, h = np.minimum(b[2:], p[2:]) - np.maximum(b[:2], p[:2])
            shared = max(w, 0) * max(h, 0)
            iou = shared / (np.prod(b[2:] - b[:2]) + np.prod(p[2:] - p[:2]) - shared)
            sums["iou_loss"] += 5 * (1 - iou**2)
            target = iou * (np.arange(CLASSES) == labels[i, matched[j]])
            sums["class_loss"] += sigmoid_cross_entropy(cell[j, 5:], target).sum()
            xy, wh = (b[:2] + b[2:]) / 2 / SIDES[j] - CELLS[j], np.log((b[2:] - b[:2]) / SIDES[j])
            sums["l1_loss"] += np.abs(cell[j, :4] - np.concatenate([xy, wh])).sum()
    terms = {name: value / max(count, 1) for name, value in sums.items()}
    return {**terms, "foreground_per_object": count / max(total, 1)}


@pytest.mark.parametrize("seed", range(3))
def test_terms_equal_plain_loops(seed):
    raw, objects = examples(seed)
    valid = np.array([True, True, True, False])
    terms, _ = terms_and_gradient(raw, objects, valid)
    wanted = numpy_terms(raw, *objects, valid)
    assert set(terms) == set(wanted)
    for name, value in wanted.items():
        assert float(terms[name]) == pytest.approx(value, rel=1e-4), name
        assert value > 0.1


# ------------------------------------------------------------------------- gradients, padding
def test_gradients_equal_finite_differences():
    """Neither the choice of cells nor the IoU as a target of the classes has a gradient."""
    raw, objects = examples()
    jacobian = jax.jacrev(terms_of)
    with jax.enable_x64(True):
        raw, objects = raw.astype(np.float64), (objects[0].astype(np.float64), *objects[1:])
        both = jax.jit(lambda raw, objects: (terms_of(raw, objects), jacobian(raw, objects)))
        gradients = jax.device_get(both(raw, objects)[1])
        for seed in range(3):
            step = 1e-7 * np.random.default_rng(seed).normal(size=raw.shape)
            of_classes = step * (np.arange(raw.shape[-1]) > 4)
            for name in LOSSES:
                small = of_classes if name == "class_loss" else step
                up, down = (float(both(raw + x, objects)[0][name]) for x in (small, -small))
                slope = np.sum(gradients[name] * small)
                assert (up - down) / 2 == pytest.approx(slope, rel=1e-5), name
    assert not gradients["class_loss"][..., :5].any()


@pytest.mark.parametrize("poison", POISON)
def test_padding_changes_neither_losses_nor_gradients(poison):
    raw, objects = examples()
    spoilt = examples(padding=poison)[1]
    valid = np.array([True, True, True, False])
    spoilt_raw = np.where(valid[:, None, None], raw, poison).astype(np.float32)
    clean, first = terms_and_gradient(raw, objects, valid)
    dirty, second = terms_and_gradient(spoilt_raw, spoilt, valid)
    for name in clean:
        assert float(clean[name]) == float(dirty[name]), name
    first = np.asarray(first)
    np.testing.assert_array_equal(first, second)
    assert not first[3].any()
    assert first[:3].any()


def test_nothing_but_empty_pictures():
    raw, (boxes, labels, box_valid) = examples(padding=np.nan)
    nothing = (np.full_like(boxes, np.nan), labels, np.zeros_like(box_valid))
    terms, gradient = jax.device_get(terms_and_gradient(raw, nothing, ALL))
    for name in ("iou_loss", "class_loss", "l1_loss", "foreground_per_object"):
        assert float(terms[name]) == 0
    empty = sigmoid_cross_entropy(raw[..., 4].astype(np.float64), 0).sum()
    assert float(terms["objectness_loss"]) == pytest.approx(empty, rel=1e-5)
    assert np.isfinite(gradient).all()
    assert gradient[..., 4].any()
    assert not gradient[..., 5:].any()
    no_room = (boxes[:, :0], labels[:, :0], box_valid[:, :0])
    for name, value in jax.jit(terms_of)(raw, no_room).items():
        assert float(value) == pytest.approx(float(terms[name]))


def test_bfloat16_outputs_give_float32_losses():
    raw, objects = examples()
    raw = raw.astype(jnp.bfloat16)
    rough = jax.jit(terms_of)(raw, objects)
    exact, _ = terms_and_gradient(raw.astype(np.float32), objects, ALL)
    for name, value in exact.items():
        assert rough[name].dtype == jnp.float32
        assert float(rough[name]) == float(value), name


# ------------------------------------------------------------------------------- the task
class Cells(nn.Module):
    """The smallest network with YOLOX's outputs."""

    strides = STRIDES

    @nn.compact
    def __call__(self, x, *, train=False):
        x = Conv(16, (4, 4), stride=8)(x)  # 8x8 would be larger than its output, and slow there
        x = nn.silu(BatchNorm()(x, train=train))
        coarse = nn.silu(Conv(16, (2, 2), stride=2)(x))
        return Conv(5 + CLASSES, (1, 1))(x), Conv(5 + CLASSES, (1, 1))(coarse)


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    _, (boxes, labels, box_valid) = examples(seed)
    return {
        "image": rng.integers(0, 256, (4, 32, 32, 3), np.uint8),
        "boxes": boxes,
        "labels": labels,
        "box_valid": box_valid,
        "valid": np.array([True, True, True, False]),
    }


def test_the_task_learns_reports_its_terms_and_survives_nothing():
    tx = optax.adam(1e-2)
    state = create_state(random_variables(Cells(), (32, 32, 3)), tx)
    step = make_train_step(yolox_loss(Cells(), mean=0.5, std=0.25, use_l1=True), tx)
    losses = []
    for _ in range(60):
        state, metrics = step(state, batch_of())
        losses.append(float(metrics["loss"]))
    parts = sum(float(metrics[name]) for name in LOSSES)
    assert parts == pytest.approx(losses[-1], rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]
    empty = {**batch_of(), "box_valid": np.zeros((4, 3), bool), "boxes": np.full((4, 3, 4), np.nan)}
    empty["boxes"] = empty["boxes"].astype(np.float32)
    for batch in (empty, {**empty, "valid": np.zeros(4, bool)}):
        state, metrics = step(state, batch)
        assert np.isfinite(float(metrics["loss"]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_pictures_are_normalised_and_evaluated_as_they_are():
    variables = random_variables(Cells(), (32, 32, 3))
    batch = batch_of()
    loss_fn = yolox_loss(Cells(), mean=(0.1, 0.2, 0.3), std=0.5)
    args = (variables["params"], variables["batch_stats"])
    loss, (stats, metrics) = jax.jit(functools.partial(loss_fn, train=False))(*args, batch, None)
    images = (batch["image"] / 255 - np.array([0.1, 0.2, 0.3])) / 0.5
    raw = jax.jit(lambda v, x: join_levels(Cells().apply(v, x)))(variables, np.float32(images))
    objects = (batch[name] for name in ("boxes", "labels", "box_valid"))
    wanted = numpy_terms(np.asarray(raw), *objects, batch["valid"])
    assert float(loss) == pytest.approx(sum(wanted[name] for name in LOSSES[:3]), rel=1e-4)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    assert "l1_loss" not in metrics
