"""Box losses by hand, against the pairwise measures, with poison in the padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops
from jaxvision.losses import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    smooth_l1,
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
    return jnp.asarray(boxes, jnp.float32)


@pytest.mark.parametrize(("beta", "expected"), [(1.0, [2.5, 0.125, 0, 0.5]), (0, [3, 0.5, 0, 1])])
def test_smooth_l1_by_hand(beta, expected):
    errors = jnp.array([-3.0, 0.5, 0.0, 1.0])
    assert smooth_l1(errors, beta).tolist() == expected


def test_smooth_l1_is_smooth_at_beta_and_keeps_shapes():
    beta = 1 / 9
    around = jnp.array([[beta - 1e-4, beta + 1e-4]])
    values, slopes = smooth_l1(around, beta), jax.grad(lambda x: smooth_l1(x, beta).sum())(around)
    assert values.shape == (1, 2)
    np.testing.assert_allclose(values[0, 1] - values[0, 0], 2e-4, rtol=1e-2)
    np.testing.assert_allclose(slopes, 1, rtol=2e-3)
    assert jax.grad(smooth_l1)(0.0) == 0
    assert jax.grad(partial(smooth_l1, beta=0))(0.0) == 0
    assert smooth_l1(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="beta of at least 0, got -1"):
        smooth_l1(around, -1.0)


def test_by_hand():
    boxes1 = jnp.array([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    boxes2 = jnp.array([[0.0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4]])
    expected = [0, 1 - (4 / 28 - 8 / 36), 1]
    np.testing.assert_allclose(generalized_box_iou_loss(boxes1, boxes2), expected, atol=1e-6)
    expected = [0, 1 - (4 / 28 - 8 / 72), 1 + 16 / 80]
    np.testing.assert_allclose(distance_box_iou_loss(boxes1, boxes2), expected, atol=1e-6)
    np.testing.assert_allclose(complete_box_iou_loss(boxes1, boxes2), expected, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_one_minus_the_pairwise_measures(loss):
    boxes1, boxes2 = random_boxes(30, 0), random_boxes(30, 1)
    expected = 1 - jnp.diagonal(jax.jit(LOSSES[loss])(boxes1, boxes2))
    losses = jax.jit(loss)(boxes1, boxes2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    shaped = jax.jit(loss)(boxes1.reshape(5, 6, 4), boxes2.reshape(5, 6, 4))
    np.testing.assert_allclose(shaped, losses.reshape(5, 6), rtol=1e-6)


@pytest.mark.parametrize("poison", [0.0, 1e9, np.nan])
@pytest.mark.parametrize("loss", LOSSES)
def test_padding_changes_neither_loss_nor_gradient(loss, poison):
    boxes1, boxes2, valid = random_boxes(9, 0), random_boxes(9, 1), jnp.arange(9) % 3 != 1

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def value_and_gradients(boxes1, boxes2):
        return loss(boxes1, boxes2, valid).sum()

    rows = np.flatnonzero(valid)
    expected = jax.jit(loss)(boxes1, boxes2)[rows].sum()
    clean = value_and_gradients(boxes1, boxes2)
    poisoned = (jnp.where(valid[:, None], boxes, poison) for boxes in (boxes1, boxes2))
    value, gradients = value_and_gradients(*poisoned)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, plain in zip(gradients, clean[1], strict=True):
        np.testing.assert_array_equal(gradient, plain)
        assert np.abs(gradient[rows]).min(axis=0).all()
        assert not gradient[~valid].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_descending_the_loss_brings_boxes_together(loss):
    """From boxes that do not touch, where plain IoU has no slope."""
    target = jnp.array([[20.0, 20, 40, 50]])

    @jax.jit
    def descend(boxes, _):
        return boxes - 20 * jax.grad(lambda b: loss(b, target).sum())(boxes), None

    boxes, _ = jax.lax.scan(descend, jnp.array([[0.0, 0, 10, 10]]), length=800)
    assert ops.box_iou(boxes, target)[0, 0] > 0.8


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_boxes_give_float32_losses(loss):
    boxes1, boxes2 = (random_boxes(6, seed).astype(jnp.bfloat16) for seed in (0, 1))
    losses = jax.jit(loss)(boxes1, boxes2)
    assert losses.dtype == jnp.float32
    expected = jax.jit(loss)(boxes1.astype(jnp.float32), boxes2.astype(jnp.float32))
    np.testing.assert_array_equal(losses, expected)
