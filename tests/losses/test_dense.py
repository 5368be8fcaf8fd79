"""RetinaNet's, FCOS's and SSD's targets and losses by hand; poison in the padding; hostile batches.

Focal loss by hand too. That values and gradients are torchvision's is tests/parity's.
"""

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
from jaxvision.losses import dense, fcos_loss, retinanet_loss, ssd_loss
from jaxvision.models.dense import DenseOutputs
from jaxvision.models.fcos import FCOSOutputs
from jaxvision.models.layers import BatchNorm, Conv
from jaxvision.ops.anchors import anchors_of_levels, default_boxes
from jaxvision.train import create_state, make_train_step

# Compiled whole: operation by operation takes ten times as long.
sigmoid_focal_loss = jax.jit(losses.sigmoid_focal_loss, static_argnames=("alpha", "gamma"))
targets_of = jax.jit(dense.targets_of)
retinanet_terms = jax.jit(losses.retinanet_terms, static_argnums=4)
ssd_terms = jax.jit(losses.ssd_terms)

TERMS = ("classification", "bbox_regression")


def floats(values):
    return np.asarray(values, np.float32)


def ints(values):
    return np.asarray(values, np.int32)


# ------------------------------------------------------------------------------------- focal loss
def test_focal_loss_by_hand():
    # A probability of 3/4: 1/16 of -log(3/4) where it is right, 9/16 of -log(1/4) where not.
    logits, targets = floats([math.log(3)] * 2), floats([1, 0])
    right, wrong = -math.log(0.75) / 16, -math.log(0.25) * 9 / 16
    np.testing.assert_allclose(
        sigmoid_focal_loss(logits, targets), [0.25 * right, 0.75 * wrong], rtol=1e-5
    )
    np.testing.assert_allclose(
        sigmoid_focal_loss(logits, targets, alpha=None), [right, wrong], rtol=1e-5
    )
    cross_entropy = sigmoid_focal_loss(logits, targets, alpha=None, gamma=0.0)
    np.testing.assert_allclose(cross_entropy, [-math.log(0.75), -math.log(0.25)], rtol=1e-5)
    rough = jax.eval_shape(sigmoid_focal_loss, logits.astype(jnp.bfloat16), targets)
    assert rough.dtype == jnp.float32


@functools.partial(jax.jit, static_argnames="gamma")
@jax.value_and_grad
def focal_sum(logits, targets, gamma):
    return losses.sigmoid_focal_loss(logits, targets, gamma=gamma).sum()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_extreme_logits_is_finite(gamma):
    logits = floats([-1e4, -90, 0, 90, 1e4])
    for target in (0.0, 1.0):
        loss, gradient = focal_sum(logits, np.full(5, target, np.float32), gamma=gamma)
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
        assert loss > 2000


# ----------------------------------------------------------------------------------------- by hand
ANCHORS = floats([[0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60]])


def test_retinanets_terms_by_hand():
    # The first anchor has object 0, of label 1, the second is neither, the third background.
    targets = targets_of(ints([0, -2, -1]), ANCHORS, floats([[0, 0, 20, 10]]), ints([1]))
    assert targets.classes.tolist() == [2, 0, 0]
    logits = floats([[0, 0, math.log(3)], [50, 50, 50], [math.log(3), 0, 0]])
    deltas = floats([[1, 0, 0, 0], [7] * 4, [7] * 4])
    classes, boxes = retinanet_terms(logits, deltas, ANCHORS, targets)
    half = 0.75 * math.log(2) / 4  # half sure of what is not there
    hit, miss = 0.25 * -math.log(0.75) / 16, 0.75 * -math.log(0.25) * 9 / 16
    assert float(classes) == pytest.approx(4 * half + hit + miss, rel=1e-5)
    assert float(boxes) == pytest.approx(0.5 + math.log(2), rel=1e-5)  # of dx 1/2, of dw log 2
    # By generalised IoU: the box is the anchor 10 further right, half of the object.
    assert float(retinanet_terms(logits, deltas, ANCHORS, targets, "giou")[1]) == pytest.approx(0.5)


def test_ssd_learns_from_the_three_hardest_backgrounds_of_an_object():
    matched, deltas = ints([0, -1, -1, -1, -1, -1]), np.full((6, 4), 2, np.float32)
    boxes = np.tile(ANCHORS[:1], (6, 1))
    targets = targets_of(matched, boxes, boxes[:1], ints([0]))
    wrong = floats([0.5, 0.9, 0.1, 0.6, 0.7, 0.2])  # the probability of class 1
    logits = np.stack([np.log1p(-wrong), np.log(wrong)], axis=1)
    box_loss, class_loss = ssd_terms(logits, deltas, boxes, targets)
    hardest = -sum(math.log(x) for x in (0.1, 0.4, 0.3))
    assert float(class_loss) == pytest.approx(math.log(2) + hardest, rel=1e-5)
    assert float(box_loss) == pytest.approx(4 * 1.5)
    none = targets_of(np.full(6, -1, np.int32), boxes, boxes[:1], ints([0]))
    assert [float(x) for x in ssd_terms(logits, deltas, boxes, none)] == [0, 0]


# ------------------------------------------------------------------------------------ the task
SIDE, ROOM, CLASSES = 32, 40, 4


class Cells(nn.Module):
    """The smallest network of each kind: one map of stride 4."""

    kind: str
    box_loss: str = "giou"

    @nn.compact
    def __call__(self, images, sizes=None, *, train=False):
        size = images.shape[1:3]
        x = Conv(8, (4, 4), stride=4, name="conv")(images)
        x = nn.relu(BatchNorm(name="bn")(x, train=train))
        grid, b = x.shape[1:3], len(images)
        if self.kind == "ssd":
            anchors = default_boxes([grid], size, (0.3, 0.6), [[2]])
        else:
            anchors = anchors_of_levels([grid], size, [[8]], (1.0,))
        n = len(anchors[0])
        numbers = CLASSES + 4 + (self.kind == "fcos")
        y = Conv(n // (grid[0] * grid[1]) * numbers, (1, 1), name="head")(x).reshape(b, n, -1)
        logits, deltas = (y[..., :CLASSES],), (y[..., CLASSES : CLASSES + 4],)
        if self.kind == "fcos":
            return FCOSOutputs(logits, (nn.relu(deltas[0]),), (y[..., -1],), tuple(anchors))
        return DenseOutputs(logits, deltas, tuple(anchors))


LOSSES = {"retinanet": retinanet_loss, "fcos": fcos_loss, "ssd": ssd_loss}
every_kind = pytest.mark.parametrize("kind", LOSSES)
TX = optax.sgd(1e-2)


@functools.cache
def made(kind):
    model = Cells(kind)
    loss_fn = LOSSES[kind](model, mean=0.5, std=0.25)
    variables = random_variables(model, (SIDE, SIDE, 3))
    return variables, make_train_step(loss_fn, TX), jax.jit(functools.partial(loss_fn, train=False))


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
        "size": np.full((2, 2), SIDE, np.int32),
        "valid": np.array([True, kind != "one"]),
    }


@every_kind
def test_hostile_batches_train_without_nan_and_without_another_compile(kind):
    variables, step, _ = made(kind)
    state = create_state(variables, TX)
    for batch_kind in ("plain", "none", "pixels", "many", "one"):
        state, metrics = step(state, batch_of(batch_kind))
        terms = {name: float(x) for name, x in metrics.items() if name not in ("loss", "grad_norm")}
        assert set(terms) == {*TERMS, *(["bbox_ctrness"] if kind == "fcos" else [])}
        assert all(np.isfinite(x) for x in terms.values())
        assert sum(terms.values()) == pytest.approx(float(metrics["loss"]), rel=1e-5)
        # No place of FCOS is inside an object of a pixel's size.
        nothing = batch_kind == "none" or (batch_kind, kind) == ("pixels", "fcos")
        assert (terms["bbox_regression"] > 0) is not nothing
    flat = batch_of()
    flat["boxes"][..., 3] = flat["boxes"][..., 1]  # without area
    state, metrics = step(state, flat)
    assert float(metrics["bbox_regression"]) == 0
    state, metrics = step(state, {**batch_of(), "valid": np.zeros(2, bool)})
    assert float(metrics["loss"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.batch_stats)))
    assert step._cache_size() == 1


@every_kind
def test_what_is_padding_adds_nothing(kind):
    """Objects that are none, and pictures of the batch."""
    variables, step, _ = made(kind)
    clean, spoilt = batch_of("one"), batch_of("one", padding=np.nan)
    spoilt["image"] = clean["image"].copy()
    spoilt["image"][1], spoilt["boxes"][1] = 255, np.nan
    (first, metrics), (second, spoilt_metrics) = (
        step(create_state(variables, TX), batch) for batch in (clean, spoilt)
    )
    assert float(metrics["loss"]) > 0
    ours, theirs = map(jax.tree.leaves, ((first, metrics), (second, spoilt_metrics)))
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)


def test_evaluation_leaves_the_statistics_and_masks_are_by_default_all():
    variables, _, evaluate = made("fcos")
    full = {**batch_of("many"), "valid": np.ones(2, bool)}
    arguments = (variables["params"], variables["batch_stats"])
    loss, (stats, _) = evaluate(*arguments, full, None)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    short = {name: full[name] for name in ("image", "boxes", "labels")}
    assert float(evaluate(*arguments, short, None)[0]) == pytest.approx(float(loss), rel=1e-6)
    assert loss > 0


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_label_that_the_network_does_not_have_makes_the_loss_nan(kind):
    variables, _, evaluate = made(kind)
    arguments = (variables["params"], variables["batch_stats"])
    batch = batch_of("many")
    assert np.isfinite(evaluate(*arguments, batch, None)[0])
    batch["labels"][0] = CLASSES - 1  # one class is the background
    assert np.isnan(evaluate(*arguments, batch, None)[0])
    assert np.isfinite(evaluate(*arguments, {**batch, "valid": np.array([False, True])}, None)[0])
