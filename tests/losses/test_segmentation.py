"""Cross-entropy of pixels by hand and pixel by pixel, with poison in what is left out."""

from functools import cache

import flax.linen as nn
import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision import losses
from jaxvision.losses import segmentation_loss

# Compiled whole: operation by operation takes ten times as long.
pixel_cross_entropy = jax.jit(losses.pixel_cross_entropy, static_argnames="ignore_label")
loss_and_gradient = jax.jit(jax.value_and_grad(losses.pixel_cross_entropy), static_argnums=3)

POISON = [0.0, 1e9, np.nan]
KEY = jax.random.key(1)


def examples(b=3, h=4, w=5, k=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(b, h, w, k)).astype(np.float32)
    labels = rng.integers(0, k, (b, h, w)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    return logits, labels, np.array([True, False, True])


def test_by_hand():
    shares = [[[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.3, 0.7]]]]
    logits = np.log(np.array(shares, np.float32))
    labels = np.array([[[0, 1], [255, 1]]], np.int32)
    expected = -(np.log(0.5) + np.log(0.1) + np.log(0.7)) / 3
    assert float(pixel_cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-6)
    labels = np.array([[[0, 1], [1, 1]]], np.int32)
    only_the_first = pixel_cross_entropy(logits, labels, ignore_label=1)
    assert float(only_the_first) == pytest.approx(-np.log(0.5), rel=1e-6)


def test_equals_the_pixels_one_by_one():
    logits, labels, valid = examples()
    loss, gradient = loss_and_gradient(logits, labels, valid, 255)
    counted = (labels != 255) & valid[:, None, None]
    rows, wanted = logits[counted], labels[counted].astype(np.int32)
    expected = jax.jit(losses.cross_entropy)(rows, wanted)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    shares = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True) - np.eye(4)[wanted]
    gradient = np.asarray(gradient)[counted]
    np.testing.assert_allclose(gradient, shares / len(rows), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("poison", POISON)
def test_what_is_left_out_changes_neither_loss_nor_gradient(poison):
    logits, labels, valid = examples()
    loss, gradient = loss_and_gradient(logits, labels, valid, 255)
    counted = (labels != 255) & valid[:, None, None]
    poisoned = np.where(counted[..., None], logits, np.float32(poison))
    bad_labels = np.where(valid[:, None, None], labels, np.uint8(77))
    got, got_gradient = loss_and_gradient(poisoned, bad_labels, valid, 255)
    np.testing.assert_array_equal(got, loss)
    np.testing.assert_array_equal(got_gradient, gradient)
    np.testing.assert_array_equal(np.asarray(got_gradient)[~counted], 0)


@pytest.mark.parametrize("poison", POISON)
def test_without_a_pixel_the_loss_is_zero(poison):
    logits, labels, _ = examples()
    everything = np.full_like(labels, 255)
    loss, gradient = loss_and_gradient(np.full_like(logits, poison), everything, None, 255)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, 0)


class Pixelwise(nn.Module):
    """Two heads of 1x1, with what a task must carry: BatchNorm's statistics, and dropout."""

    aux: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(6)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        outputs = {"out": nn.Dense(4, name="head")(x)}
        if self.aux:
            outputs["aux"] = nn.Dense(4, name="aux")(x)
        return outputs


def built(aux=True, **options):
    model = Pixelwise(aux=aux)
    loss_fn = jax.jit(segmentation_loss(model, **options), static_argnames="train")
    return model, loss_fn, random_variables(model, (4, 5, 3))


@cache
def built_with_gradients():
    model = Pixelwise()
    grad = jax.jit(jax.value_and_grad(segmentation_loss(model), has_aux=True))
    return grad, random_variables(model, (4, 5, 3))


def task_batch():
    _, labels, valid = examples()
    image = np.random.default_rng(1).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    return {"image": image, "label": labels, "valid": valid}


def test_the_auxiliary_loss_is_weighted_and_the_metrics_are_of_the_output():
    model, loss_fn, variables = built(mean=0.3, std=0.4, aux_weight=0.25)
    batch = task_batch()
    params, stats = variables["params"], variables["batch_stats"]
    loss, (kept, metrics) = loss_fn(params, stats, batch, KEY, train=False)
    images = np.float32((batch["image"] / 255 - 0.3) / 0.4)
    outputs = jax.jit(model.apply)(variables, images)
    out, aux = (
        float(pixel_cross_entropy(outputs[name], batch["label"], batch["valid"]))
        for name in ("out", "aux")
    )
    np.testing.assert_allclose(loss, out + 0.25 * aux, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], out, rtol=1e-5)
    counted = (batch["label"] != 255) & batch["valid"][:, None, None]
    right = np.asarray(outputs["out"]).argmax(axis=-1) == batch["label"]
    assert float(metrics["pixel_accuracy"]) == pytest.approx(right[counted].mean(), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, kept, stats)
    _, plain, _ = built(mean=0.3, std=0.4, aux_weight=0.0)
    np.testing.assert_allclose(plain(params, stats, batch, KEY, train=False)[0], out, rtol=1e-5)


def test_a_model_without_auxiliary_head():
    _, loss_fn, variables = built(aux=False)
    loss, (_, metrics) = loss_fn(
        variables["params"], variables["batch_stats"], task_batch(), KEY, train=False
    )
    assert float(loss) == float(metrics["loss"]) > 0


@pytest.mark.parametrize("poison", POISON)
def test_padded_pictures_change_neither_loss_nor_gradient_nor_statistics(poison):
    grad, variables = built_with_gradients()
    batch = task_batch()
    valid = batch["valid"]
    results = []
    for filling in (0.25, poison):
        image = np.where(valid[:, None, None, None], batch["image"] / 255, filling)
        padded = {**batch, "image": image.astype(np.float32)}
        results.append(grad(variables["params"], variables["batch_stats"], padded, KEY))
    jax.tree.map(np.testing.assert_array_equal, *results)
    (_, (stats, _)), gradients = results[1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((stats, gradients)))
