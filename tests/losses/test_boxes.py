"""Box losses by hand, against the pairwise measures, with poison in the padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import losses, ops
from jaxvision.losses import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

# Compiled whole: operation by operation takes ten times as long.
smooth_l1 = jax.jit(losses.smooth_l1, static_argnames="beta")
slope_of_smooth_l1 = jax.jit(
    jax.grad(lambda errors, beta: losses.smooth_l1(errors, beta).sum()), static_argnums=1
)

LOSSES = {
    generalized_box_iou_loss: ops.generalized_box_iou,
    distance_box_iou_loss: ops.distance_box_iou,
    complete_box_iou_loss: ops.complete_box_iou,
}


def random_boxes(count, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], axis=1)
    return boxes.astype(np.float32)


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
def loss_and_gradients(loss, boxes1, boxes2, valid):
    """Returns ((sum, losses), gradients)."""
    values = loss(boxes1, boxes2, valid)
    return values.sum(), values


@pytest.mark.parametrize(("beta", "expected"), [(1.0, [2.5, 0.125, 0, 0.5]), (0, [3, 0.5, 0, 1])])
def test_smooth_l1_by_hand(beta, expected):
    errors = np.array([-3, 0.5, 0, 1], np.float32)
    assert smooth_l1(errors, beta).tolist() == expected


def test_smooth_l1_is_smooth_at_beta_and_keeps_shapes():
    beta = 1 / 9
    around = np.array([[beta - 1e-4, beta + 1e-4]], np.float32)
    values, slopes = np.asarray(smooth_l1(around, beta)), slope_of_smooth_l1(around, beta)
    assert values.shape == (1, 2)
    np.testing.assert_allclose(values[0, 1] - values[0, 0], 2e-4, rtol=1e-2)
    np.testing.assert_allclose(slopes, 1, rtol=2e-3)
    assert slope_of_smooth_l1(0.0, 1.0) == 0
    assert slope_of_smooth_l1(0.0, 0) == 0
    rough = jax.eval_shape(losses.smooth_l1, jax.ShapeDtypeStruct((2,), jnp.bfloat16))
    assert rough.dtype == jnp.float32
    with pytest.raises(ValueError, match="beta of at least 0, got -1"):
        losses.smooth_l1(around, -1.0)


def test_by_hand():
    boxes1 = np.array([[0, 0, 4, 4]] * 3, np.float32)
    boxes2 = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4]], np.float32)
    generalized, distance, complete = jax.jit(lambda *boxes: [loss(*boxes) for loss in LOSSES])(
        boxes1, boxes2
    )
    np.testing.assert_allclose(generalized, [0, 1 - (4 / 28 - 8 / 36), 1], atol=1e-6)
    expected = [0, 1 - (4 / 28 - 8 / 72), 1 + 16 / 80]
    np.testing.assert_allclose(distance, expected, atol=1e-6)
    np.testing.assert_allclose(complete, expected, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_one_minus_the_pairwise_measures(loss):
    boxes1, boxes2 = random_boxes(30, 0), random_boxes(30, 1)
    expected = 1 - np.diagonal(jax.jit(LOSSES[loss])(boxes1, boxes2))
    values = np.asarray(jax.jit(loss)(boxes1, boxes2))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    shaped = jax.jit(loss)(boxes1.reshape(5, 6, 4), boxes2.reshape(5, 6, 4))
    np.testing.assert_allclose(shaped, values.reshape(5, 6), rtol=1e-6)


@pytest.mark.parametrize("poison", [0.0, 1e9, np.nan])
@pytest.mark.parametrize("loss", LOSSES)
def test_padding_changes_neither_loss_nor_gradient(loss, poison):
    boxes1, boxes2, valid = random_boxes(9, 0), random_boxes(9, 1), np.arange(9) % 3 != 1
    (_, everything), _ = loss_and_gradients(loss, boxes1, boxes2, np.ones(9, bool))
    expected = np.asarray(everything)[valid].sum()
    _, clean = loss_and_gradients(loss, boxes1, boxes2, valid)
    poisoned = (np.where(valid[:, None], x, np.float32(poison)) for x in (boxes1, boxes2))
    (value, _), gradients = jax.device_get(loss_and_gradients(loss, *poisoned, valid))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, plain in zip(gradients, clean, strict=True):
        np.testing.assert_array_equal(gradient, plain)
        assert np.abs(gradient[valid]).min(axis=0).all()
        assert not gradient[~valid].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_descending_the_loss_brings_boxes_together(loss):
    """From boxes that do not touch, where plain IoU has no slope."""
    target = np.array([[20, 20, 40, 50]], np.float32)

    def step(boxes, _):
        return boxes - 20 * jax.grad(lambda b: loss(b, target).sum())(boxes), None

    @jax.jit
    def descend(boxes):
        boxes, _ = jax.lax.scan(step, boxes, length=800)
        return ops.box_iou(boxes, target)

    assert descend(np.array([[0, 0, 10, 10]], np.float32)) > 0.8


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_boxes_give_float32_losses(loss):
    boxes1, boxes2 = (random_boxes(6, seed).astype(jnp.bfloat16) for seed in (0, 1))
    values = jax.jit(loss)(boxes1, boxes2)
    assert values.dtype == jnp.float32
    expected = jax.jit(loss)(boxes1.astype(np.float32), boxes2.astype(np.float32))
    np.testing.assert_array_equal(values, expected)
