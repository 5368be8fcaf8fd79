"""Box regression and the localisation metrics by hand, with poison in the padding; the task."""

from functools import cache

import flax.linen as nn
import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from random_variables import random_variables

from jaxvision import losses
from jaxvision.losses import localization_loss
from jaxvision.ops.boxes import encode_boxes
from jaxvision.ops.iou import box_iou

# Compiled whole: operation by operation takes ten times as long.
box_regression_loss = jax.jit(losses.box_regression_loss, static_argnames=("size", "kind"))
box_loss_and_gradient = jax.jit(
    jax.value_and_grad(losses.box_regression_loss), static_argnames=("size", "kind")
)
cell_cross_entropy = jax.jit(losses.cell_cross_entropy, static_argnames="size")
cell_loss_and_gradient = jax.jit(
    jax.value_and_grad(losses.cell_cross_entropy), static_argnames="size"
)
decode_picture_boxes = jax.jit(losses.decode_picture_boxes, static_argnames="size")
localization_metrics = jax.jit(losses.localization_metrics)

POISON = [0.0, 1e9, np.nan]
KINDS = ["smooth_l1", "giou"]
SIZE = (40, 60)
KEY = jax.random.key(1)


def examples(n=6, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform((0, 0), (30, 20), (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (n, 2))], axis=1)
    deltas = rng.normal(scale=0.3, size=(n, 4)) - [0, 0, 1, 1]
    valid = np.arange(n) % 3 != 1
    return floats(deltas), floats(boxes), valid


def floats(values):
    return np.asarray(values, np.float32)


def test_smooth_l1_by_hand():
    # A box of half the width, in the middle: dw is log(1/2), the three others are 0.
    boxes = floats([[15, 0, 45, 40]])
    loss = box_regression_loss(floats([[0, 0, 0, 0]]), boxes, SIZE)
    assert float(loss) == pytest.approx(np.log(2) - 1 / 18, rel=1e-5)
    loss = box_regression_loss(floats([[0, 0.1, np.log(0.5), 0]]), boxes, SIZE)
    assert float(loss) == pytest.approx(0.5 * 0.1**2 * 9, rel=1e-4)


def test_giou_by_hand_and_that_the_units_do_not_matter():
    boxes = floats([[0, 0, 30, 40], [0, 0, 60, 10]])
    loss = box_regression_loss(np.zeros_like(boxes), boxes, SIZE, kind="giou")
    assert float(loss) == pytest.approx((0.5 + 0.75) / 2, rel=1e-5)
    deltas, boxes, _ = examples()
    once, larger = (
        box_regression_loss(deltas, boxes * k, (SIZE[0] * k, SIZE[1] * k), kind="giou")
        for k in (1, 64)
    )
    np.testing.assert_allclose(once, larger, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_box_costs_nothing_and_decodes_to_itself(kind):
    _, boxes, _ = examples()
    deltas = jax.jit(encode_boxes)(boxes, np.broadcast_to(floats([0, 0, 60, 40]), boxes.shape))
    np.testing.assert_allclose(decode_picture_boxes(deltas, SIZE), boxes, atol=1e-4)
    assert float(box_regression_loss(deltas, boxes, SIZE, kind=kind)) < 1e-5


def test_decoded_boxes_stay_within_the_picture():
    deltas = floats(3 * np.random.default_rng(0).normal(size=(40, 4)))
    boxes = np.asarray(decode_picture_boxes(deltas, SIZE))
    assert boxes.min() >= 0
    assert boxes[:, [0, 2]].max() == 60
    assert boxes[:, [1, 3]].max() == 40


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind):
    deltas, boxes, valid = examples()
    _, gradient = box_loss_and_gradient(deltas, boxes, SIZE, valid, kind=kind)
    direction = floats(np.random.default_rng(1).normal(size=deltas.shape))
    up, down = (
        float(box_loss_and_gradient(deltas + step, boxes, SIZE, valid, kind=kind)[0])
        for step in (1e-3 * direction, -1e-3 * direction)
    )
    slope = (np.asarray(gradient) * direction).sum()
    np.testing.assert_allclose((up - down) / 2e-3, slope, rtol=0.05, atol=1e-2)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_neither_loss_nor_gradient(kind, poison):
    deltas, boxes, valid = examples()
    kept, kept_gradient = box_loss_and_gradient(deltas[valid], boxes[valid], SIZE, kind=kind)
    poisoned = (np.where(valid[:, None], x, floats(poison)) for x in (deltas, boxes))
    loss, gradient = box_loss_and_gradient(*poisoned, SIZE, valid, kind=kind)
    gradient = np.asarray(gradient)
    np.testing.assert_allclose(loss, kept, rtol=1e-6)
    np.testing.assert_allclose(gradient[valid], kept_gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[~valid], 0)
    all_poison, nobody = np.full_like(deltas, poison), np.zeros_like(valid)
    none, zero = box_loss_and_gradient(all_poison, boxes, SIZE, nobody, kind=kind)
    assert float(none) == 0
    np.testing.assert_array_equal(zero, 0)


def test_cells_by_hand():
    # Pictures of 40 x 60 (h x w) in 2 x 3 cells of 20 x 20.
    logits = floats(np.random.default_rng(0).normal(size=(1, 2, 3)))
    surprise = np.log(np.exp(logits).sum()) - logits.reshape(6)
    for box, shares in (
        ((2, 3, 12, 13), [1, 0, 0, 0, 0, 0]),
        ((20, 0, 40, 20), [0, 1, 0, 0, 0, 0]),  # a cell, from line to line
        ((10, 15, 25, 35), [1 / 6, 1 / 12, 0, 1 / 2, 1 / 4, 0]),
        ((50, 10, 90, 20), [0, 0, 1, 0, 0, 0]),  # what is outside the picture does not count
        ((0, 0, 60, 40), [1 / 6] * 6),
        ((70, 10, 90, 20), [0] * 6),  # nothing is inside
        ((5, 5, 5, 9), [0] * 6),
        ((9, 5, 5, 9), [0] * 6),
    ):
        loss = cell_cross_entropy(logits, floats([box]), SIZE)
        np.testing.assert_allclose(loss, (surprise * np.array(shares)).sum(), rtol=1e-5)


@pytest.mark.parametrize("poison", POISON)
def test_padding_changes_no_cell_loss(poison):
    _, boxes, valid = examples()
    logits, poison = floats(np.random.default_rng(3).normal(size=(6, 2, 3))), floats(poison)
    kept, kept_gradient = cell_loss_and_gradient(logits[valid], boxes[valid], SIZE)
    logits = np.where(valid[:, None, None], logits, poison)
    boxes = np.where(valid[:, None], boxes, poison)
    loss, gradient = cell_loss_and_gradient(logits, boxes, SIZE, valid)
    gradient = np.asarray(gradient)
    np.testing.assert_allclose(loss, kept, rtol=1e-6)
    np.testing.assert_allclose(gradient[valid], kept_gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[~valid], 0)


def test_an_unknown_kind_is_refused():
    deltas, boxes, _ = examples()
    with pytest.raises((ValueError, TypeCheckError), match="'ciou'"):
        box_regression_loss(deltas, boxes, SIZE, kind="ciou")


def test_metrics_by_hand():
    truth = np.tile(floats([0, 0, 10, 10]), (5, 1))
    predicted = floats(
        [
            [0, 0, 10, 10],  # right
            [0, 0, 10, 5],  # IoU of exactly 0.5: right
            [0, 0, 10, 4.9],  # in the wrong place
            [0, 0, 10, 10],  # of the wrong class
            [20, 20, 30, 30],  # padding
        ]
    )
    logits = floats([[1, 0]] * 3 + [[0, 1]] + [[np.nan, 0]])
    valid = np.array([True, True, True, True, False])
    labels = np.zeros(5, np.int32)
    metrics = localization_metrics(logits, predicted, labels, truth, valid)
    assert float(metrics["accuracy"]) == 0.75
    assert float(metrics["iou"]) == pytest.approx((1 + 0.5 + 0.49 + 1) / 4)
    assert float(metrics["localization_error"]) == 0.5
    everything = localization_metrics(logits, predicted, labels, truth)
    assert float(everything["localization_error"]) == pytest.approx(0.6)  # NaN is never right


def test_iou_equals_the_pairwise_one_and_is_zero_of_nothing():
    deltas, boxes, _ = examples(40)
    predicted = decode_picture_boxes(deltas, SIZE)
    logits, labels = np.zeros((40, 2), np.float32), np.zeros(40, np.int32)
    metrics = localization_metrics(logits, predicted, labels, boxes)
    expected = np.diagonal(jax.jit(box_iou)(predicted, boxes)).mean()
    np.testing.assert_allclose(metrics["iou"], expected, rtol=1e-5)
    empty = np.zeros_like(boxes)
    nothing = localization_metrics(logits, empty, labels, empty)
    assert float(nothing["iou"]) == 0


class TwoHeads(nn.Module):
    cells: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        outputs = {"logits": nn.Dense(3)(x), "box_deltas": nn.Dense(4)(x)}
        if self.cells:
            outputs["cell_logits"] = nn.Dense(6)(x).reshape(-1, 2, 3)
        return outputs


@cache
def built(kind="smooth_l1"):
    """Returns (model, loss_fn, variables); only with "giou" are there cells."""
    model = TwoHeads(cells=kind == "giou")
    options = {"mean": 0.4, "std": 0.2, "box_weight": 3.0, "cell_weight": 0.5, "box_loss": kind}
    loss_fn = jax.jit(localization_loss(model, **options), static_argnames="train")
    return model, loss_fn, random_variables(model, (*SIZE, 3))


@cache
def built_with_gradients():
    """Returns (value_and_grad of a loss_fn, variables)."""
    model = TwoHeads()
    grad = jax.jit(jax.value_and_grad(localization_loss(model), has_aux=True))
    return grad, random_variables(model, (*SIZE, 3))


def task_batch():
    _, boxes, valid = examples()
    rng = np.random.default_rng(2)
    return {
        "image": rng.integers(0, 256, (6, *SIZE, 3), dtype=np.uint8),
        "boxes": np.stack([boxes, boxes + 1], axis=1),  # a second object, not to be looked at
        "labels": rng.integers(0, 3, (6, 2)).astype(np.int32),
        "valid": valid,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_task_adds_its_losses(kind):
    model, loss_fn, variables = built(kind)
    batch, cells = task_batch(), kind == "giou"
    loss, (_, metrics) = loss_fn(
        variables["params"], variables["batch_stats"], batch, KEY, train=False
    )
    images = np.float32((batch["image"] / 255 - 0.4) / 0.2)
    outputs = jax.jit(model.apply)(variables, images)
    labels, boxes, valid = batch["labels"][:, 0], batch["boxes"][:, 0], batch["valid"]
    deltas = outputs["box_deltas"]
    class_loss = float(jax.jit(losses.cross_entropy)(outputs["logits"], labels, valid))
    distance = float(box_regression_loss(deltas, boxes, SIZE, valid, kind=kind))
    expected = class_loss + 3 * distance
    assert ("cell_loss" in metrics) == cells
    if cells:
        cell_loss = float(cell_cross_entropy(outputs["cell_logits"], boxes, SIZE, valid))
        np.testing.assert_allclose(metrics["cell_loss"], cell_loss, rtol=1e-4)
        expected = expected + 0.5 * cell_loss
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["class_loss"], class_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["box_loss"], distance, rtol=1e-4)
    predicted = decode_picture_boxes(deltas, SIZE)
    expected = localization_metrics(outputs["logits"], predicted, labels, boxes, valid)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("poison", POISON)
def test_padded_pictures_change_neither_loss_nor_gradient_nor_statistics(poison):
    grad, variables = built_with_gradients()
    batch = task_batch()
    valid, results = batch["valid"], []
    for filling in (0.25, poison):
        padded = dict(batch)
        image = np.where(valid[:, None, None, None], batch["image"] / 255, filling)
        padded["image"] = image.astype(np.float32)
        padded["boxes"] = np.where(valid[:, None, None], batch["boxes"], filling)
        results.append(grad(variables["params"], variables["batch_stats"], padded, KEY))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results[1]))


def test_a_picture_whose_object_was_cut_away_adds_nothing():
    """Its picture is still one of those that batch normalisation sees."""
    _, loss_fn, variables = built("giou")
    batch = task_batch()
    del batch["valid"]
    there = np.array([[True, True], [False, False], *[[True, True]] * 4])
    poisoned = {**batch, "boxes": np.where(there[..., None], batch["boxes"], np.nan)}
    wanted, _ = loss_fn(
        variables["params"],
        variables["batch_stats"],
        {**batch, "valid": there[:, 0]},
        KEY,
        train=False,
    )
    found, _ = loss_fn(
        variables["params"],
        variables["batch_stats"],
        {**poisoned, "box_valid": there},
        KEY,
        train=False,
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
