"""Cross-entropy of pixels by hand and pixel by pixel, with poison in what is left out."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.losses import cross_entropy, pixel_cross_entropy, segmentation_loss

POISON = [0.0, 1e9, np.nan]
KEY = jax.random.key(1)
loss_and_gradient = jax.jit(jax.value_and_grad(pixel_cross_entropy), static_argnums=3)


def examples(b=3, h=4, w=5, k=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(b, h, w, k)).astype(np.float32)
    labels = rng.integers(0, k, (b, h, w)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    return jnp.asarray(logits), jnp.asarray(labels), jnp.array([True, False, True])


def test_by_hand():
    logits = jnp.log(jnp.array([[[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.3, 0.7]]]]))
    labels = jnp.array([[[0, 1], [255, 1]]])
    expected = -(np.log(0.5) + np.log(0.1) + np.log(0.7)) / 3
    assert float(pixel_cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-6)
    labels = jnp.array([[[0, 1], [1, 1]]])
    only_the_first = pixel_cross_entropy(logits, labels, ignore_label=1)
    assert float(only_the_first) == pytest.approx(-np.log(0.5), rel=1e-6)


def test_equals_the_pixels_one_by_one():
    logits, labels, valid = examples()
    loss, gradient = loss_and_gradient(logits, labels, valid, 255)
    chosen = [
        (logits[i, r, c], int(labels[i, r, c]))
        for i in (0, 2)
        for r in range(4)
        for c in range(5)
        if labels[i, r, c] != 255
    ]
    rows, wanted = jnp.stack([x for x, _ in chosen]), jnp.array([y for _, y in chosen])
    np.testing.assert_allclose(loss, cross_entropy(rows, wanted), rtol=1e-5)
    shares = jax.nn.softmax(rows) - jax.nn.one_hot(wanted, 4)
    counted = np.asarray(labels != 255) & np.asarray(valid)[:, None, None]
    np.testing.assert_allclose(gradient[counted], shares / len(rows), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("poison", POISON)
def test_what_is_left_out_changes_neither_loss_nor_gradient(poison):
    logits, labels, valid = examples()
    loss, gradient = loss_and_gradient(logits, labels, valid, 255)
    counted = (labels != 255) & valid[:, None, None]
    poisoned = jnp.where(counted[..., None], logits, poison)
    bad_labels = jnp.where(valid[:, None, None], labels, 77).astype(jnp.uint8)
    got, got_gradient = loss_and_gradient(poisoned, bad_labels, valid, 255)
    np.testing.assert_array_equal(got, loss)
    np.testing.assert_array_equal(got_gradient, gradient)
    np.testing.assert_array_equal(got_gradient[~counted], 0)


@pytest.mark.parametrize("poison", POISON)
def test_without_a_pixel_the_loss_is_zero(poison):
    logits, labels, _ = examples()
    everything = jnp.full_like(labels, 255)
    loss, gradient = loss_and_gradient(jnp.full_like(logits, poison), everything, None, 255)
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


def built(**options):
    model = Pixelwise(aux=options.pop("aux", True))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 5, 3)))
    loss_fn = jax.jit(segmentation_loss(model, **options), static_argnames="train")
    return model, loss_fn, variables


def task_batch():
    _, labels, valid = examples()
    image = np.random.default_rng(1).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    return {"image": image, "label": np.asarray(labels), "valid": np.asarray(valid)}


def test_the_auxiliary_loss_is_weighted_and_the_metrics_are_of_the_output():
    model, loss_fn, variables = built(mean=0.3, std=0.4, aux_weight=0.25)
    batch = task_batch()
    params, stats = variables["params"], variables["batch_stats"]
    loss, (kept, metrics) = loss_fn(params, stats, batch, KEY, train=False)
    images = jnp.asarray((batch["image"] / 255 - 0.3) / 0.4, jnp.float32)
    outputs = jax.jit(model.apply)(variables, images)
    labels, valid = jnp.asarray(batch["label"]), jnp.asarray(batch["valid"])
    out, aux = (pixel_cross_entropy(outputs[name], labels, valid) for name in ("out", "aux"))
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
    _, loss_fn, variables = built()
    grad = jax.jit(jax.value_and_grad(partial(loss_fn, train=True), has_aux=True))
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
