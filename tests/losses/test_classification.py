"""Cross-entropy by hand and against float64, with poison in the padding; the task's loss_fn."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision import losses
from jaxvision.losses import classification_loss
from jaxvision.models import get_model

# Compiled whole: operation by operation takes ten times as long.
cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
loss_and_gradient = jax.jit(jax.value_and_grad(losses.cross_entropy), static_argnums=3)

POISON = [0.0, 1e9, np.nan]


def examples(size=12, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(size, classes)).astype(np.float32)
    labels = rng.integers(0, classes, size).astype(np.int32)
    valid = np.arange(size) % 3 != 1
    return logits, labels, valid


def slow_cross_entropy(logits, labels, valid, smoothing=0.0):
    """Returns (loss, gradient) in float64, one example after the other."""
    logits = np.asarray(logits, np.float64)
    classes, count, loss = logits.shape[1], int(np.sum(valid)), 0.0
    gradient = np.zeros_like(logits)
    for i in np.flatnonzero(valid):
        target = np.full(classes, smoothing / classes)
        target[labels[i]] += 1 - smoothing
        shifted = logits[i] - logits[i].max()
        log_probabilities = shifted - np.log(np.exp(shifted).sum())
        loss -= (target * log_probabilities).sum() / count
        gradient[i] = (np.exp(log_probabilities) - target) / count
    return loss, gradient


def test_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    labels = np.array([0, 1], np.int32)
    loss = cross_entropy(logits, labels)
    assert float(loss) == pytest.approx((np.log(2) + np.log(10)) / 2, rel=1e-6)
    first_only = cross_entropy(logits, labels, np.array([True, False]))
    assert float(first_only) == pytest.approx(np.log(2), rel=1e-6)


def test_shares_of_classes_as_mixup_makes_them():
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    labels, ones, one_hot = np.array([2, 0, 3], np.int32), np.ones(3, np.int32), np.eye(4)
    shares = one_hot[labels].astype(np.float32)
    for smoothing in (0.0, 0.1):
        got = cross_entropy(logits, shares, label_smoothing=smoothing)
        np.testing.assert_allclose(
            got, cross_entropy(logits, labels, label_smoothing=smoothing), rtol=1e-6
        )
    half = (0.5 * one_hot[labels] + 0.5 * one_hot[ones]).astype(np.float32)
    first, other = (cross_entropy(logits, x, label_smoothing=0.0) for x in (labels, ones))
    expected = (float(first) + float(other)) / 2
    found = cross_entropy(logits, half, label_smoothing=0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    valid = np.array([True, False, True])
    poisoned = np.where(valid[:, None], half, np.float32(np.nan))
    np.testing.assert_allclose(
        cross_entropy(logits, poisoned, valid), cross_entropy(logits[::2], half[::2]), rtol=1e-6
    )


def test_the_task_takes_soft_labels_where_a_batch_has_them():
    _, grad, params, stats = built(mlp())
    batch = {
        "image": np.full((2, 6, 5, 1), 100, np.uint8),
        "label": np.array([1, 2], np.int32),
        "soft_label": np.eye(5, dtype=np.float32)[[1, 4]],
    }
    (loss, (_, metrics)), _ = grad(params, stats, batch, KEY)
    soft = {"image": batch["image"], "label": np.array([1, 4], np.int32)}
    (expected, _), _ = grad(params, stats, soft, KEY)
    plain = {"image": batch["image"], "label": batch["label"]}
    (other, (_, plain_metrics)), _ = grad(params, stats, plain, KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert abs(float(loss) - float(other)) > 1e-3
    assert float(metrics["accuracy"]) == float(plain_metrics["accuracy"])  # of the labels


def test_label_smoothing_by_hand():
    # The target is (0.9, 0.1): a tenth of the weight moves, a fifth is shared by two classes.
    logits = np.log(np.array([[0.75, 0.25]], np.float32))
    loss = cross_entropy(logits, np.array([0], np.int32), label_smoothing=0.2)
    assert float(loss) == pytest.approx(-0.9 * np.log(0.75) - 0.1 * np.log(0.25), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_loss_and_gradient_equal_float64(smoothing):
    logits, labels, valid = examples()
    got = loss_and_gradient(logits, labels, valid, smoothing)
    expected = slow_cross_entropy(logits, labels, valid, smoothing)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_equal_finite_differences(smoothing):
    logits, labels, valid = examples()
    _, gradient = loss_and_gradient(logits, labels, valid, smoothing)
    direction = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    up, down = (
        float(loss_and_gradient(logits + step, labels, valid, smoothing)[0])
        for step in (1e-2 * direction, -1e-2 * direction)
    )
    slope = (np.asarray(gradient) * direction).sum()
    np.testing.assert_allclose((up - down) / 2e-2, slope, rtol=2e-3, atol=2e-3)


def test_huge_logits_do_not_overflow():
    logits = np.array([[1e4, -1e4, 0], [1e4, -1e4, 0]], np.float32)
    loss, gradient = loss_and_gradient(logits, np.array([0, 1], np.int32), None, 0.0)
    assert float(loss) == pytest.approx(1e4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_changes_neither_loss_nor_gradient(poison, smoothing):
    logits, labels, valid = examples()
    kept = loss_and_gradient(logits[valid], labels[valid], None, smoothing)
    poisoned = np.where(valid[:, None], logits, np.float32(poison))
    bad_labels = np.where(valid, labels, np.int32(-100))
    loss, gradient = loss_and_gradient(poisoned, bad_labels, valid, smoothing)
    np.testing.assert_allclose(loss, kept[0], rtol=1e-6)
    gradient = np.asarray(gradient)
    np.testing.assert_allclose(gradient[valid], kept[1], rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(gradient[~valid], 0)


@pytest.mark.parametrize("poison", POISON)
def test_without_a_valid_example_loss_and_gradient_are_zero(poison):
    logits, labels, valid = examples()
    got = loss_and_gradient(np.full_like(logits, poison), labels, np.zeros_like(valid), 0.1)
    assert float(got[0]) == 0
    np.testing.assert_array_equal(got[1], 0)


def test_bfloat16_logits_give_a_float32_loss():
    logits, labels, _ = examples()
    loss = cross_entropy(logits.astype(jnp.bfloat16), labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(logits, labels), rtol=0.02)


def test_under_vmap():
    batches = [examples(seed=seed) for seed in range(3)]
    stacked = (np.stack(parts) for parts in zip(*batches, strict=True))
    expected = [slow_cross_entropy(*batch)[0] for batch in batches]
    found = jax.jit(jax.vmap(losses.cross_entropy))(*stacked)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Normalised(nn.Module):
    """A small classifier with what a task must carry: BatchNorm's statistics, and dropout."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(5)(x)


def task_batch(size=12):
    _, labels, valid = examples(size)
    images = np.random.default_rng(2).integers(0, 256, (size, 6, 5, 1), dtype=np.uint8)
    return {"image": images, "label": labels, "valid": valid}


@cache
def built(model, **options):
    """Returns (loss_fn, the same with its gradients, params, batch_stats)."""
    variables = random_variables(model, (6, 5, 1))
    loss_fn = classification_loss(model, **options)
    grad = jax.value_and_grad(loss_fn, has_aux=True)
    jitted = (jax.jit(f, static_argnames="train") for f in (loss_fn, grad))
    return *jitted, variables["params"], variables.get("batch_stats", {})


mlp = partial(get_model, "mlp", hidden=(8,), num_classes=5)
KEY = jax.random.key(1)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("train", [True, False])
def test_poison_in_padded_images_changes_neither_loss_nor_gradient(poison, train):
    _, grad, params, stats = built(mlp(), mean=0.3, std=0.4, label_smoothing=0.1)
    batch = task_batch()
    valid = batch["valid"]
    kept = {name: x[valid] for name, x in batch.items() if name != "valid"}
    (loss, (_, metrics)), gradients = grad(params, stats, kept, KEY, train=train)
    images = np.where(valid[:, None, None, None], batch["image"] / 255.0, poison)
    poisoned = {
        "image": images.astype(np.float32),
        "label": np.where(valid, batch["label"], np.int32(-1)),
        "valid": valid,
    }
    (padded_loss, (_, padded_metrics)), padded = grad(params, stats, poisoned, KEY, train=train)
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(padded_metrics["accuracy"], metrics["accuracy"], rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), padded, gradients)


def test_a_batch_of_padding_only_gives_zero():
    _, grad, params, stats = built(mlp())
    batch = {**task_batch(), "valid": np.zeros(12, bool)}
    (loss, (_, metrics)), gradients = grad(params, stats, batch, KEY)
    assert float(loss) == float(metrics["accuracy"]) == 0
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), gradients)


def test_bytes_equal_floats_and_normalisation_is_applied():
    loss_fn, _, params, stats = built(mlp(), mean=(0.3,), std=(0.4,))
    batch = task_batch()
    loss, _ = loss_fn(params, stats, batch, KEY)
    floats = {**batch, "image": (batch["image"] / 255).astype(np.float32)}
    np.testing.assert_allclose(loss_fn(params, stats, floats, KEY)[0], loss, rtol=1e-6)
    normalised = {**batch, "image": (floats["image"] - np.float32(0.3)) / np.float32(0.4)}
    plain, *_ = built(mlp())
    np.testing.assert_allclose(plain(params, stats, normalised, KEY)[0], loss, rtol=1e-5)


def test_metrics_are_loss_and_accuracy():
    _, grad, params, stats = built(mlp())
    batch = task_batch()
    (loss, (_, metrics)), _ = grad(params, stats, batch, KEY)
    assert set(metrics) == {"loss", "accuracy"}
    assert float(metrics["loss"]) == float(loss)
    logits = jax.jit(mlp().apply)({"params": params}, np.float32(batch["image"] / 255))
    right = np.asarray(logits).argmax(axis=1) == batch["label"]
    assert float(metrics["accuracy"]) == pytest.approx(right[batch["valid"]].mean())


def test_statistics_move_in_training_only():
    loss_fn, _, params, stats = built(Normalised())
    batch = {name: x for name, x in task_batch().items() if name != "valid"}
    _, (moved, _) = loss_fn(params, stats, batch, KEY, train=True)
    old, new = (s["BatchNorm_0"]["mean"] for s in (stats, moved))
    kernel, bias = (params["Dense_0"][name] for name in ("kernel", "bias"))
    inputs = (batch["image"] / 255).reshape(12, -1) @ kernel + bias
    np.testing.assert_allclose(new, 0.9 * old + 0.1 * inputs.mean(axis=0), rtol=1e-4, atol=1e-6)
    _, (kept, _) = loss_fn(params, stats, batch, KEY, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept, stats)


def test_the_key_drives_dropout_in_training_only():
    loss_fn, _, params, stats = built(Normalised())
    batch = {name: x for name, x in task_batch().items() if name != "valid"}
    found = {
        train: [
            float(loss_fn(params, stats, batch, jax.random.key(seed), train=train)[0])
            for seed in (0, 0, 1)
        ]
        for train in (True, False)
    }
    assert found[True][0] == found[True][1] != found[True][2]
    assert len(set(found[False])) == 1
