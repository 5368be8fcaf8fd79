"""The localizer: one backbone, two heads."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision.errors import UserError
from jaxvision.losses import decode_picture_boxes, localization_loss
from jaxvision.models import get_model, init_variables
from jaxvision.models.layers import BatchNorm, Conv
from jaxvision.models.localizer import Localizer
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import adam


class TinyBackbone(nn.Module):
    """Three convolutions, of which two halve the map."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        stages = {}
        for i, stride in enumerate((2, 2, 1)):
            x = Conv(16, (3, 3), stride=stride, padding=1)(x)
            x = stages[f"stage{i}"] = nn.relu(BatchNorm()(x, train=train))
        return stages


TINY = Localizer(TinyBackbone(), num_classes=3)


def pictures(count, h=32, w=40, seed=0):
    return np.random.default_rng(seed).normal(size=(count, h, w, 3)).astype(np.float32)


@cache
def initial():
    return init_variables(TINY, jax.random.key(0), (32, 40, 3))


def test_before_training_every_box_is_the_whole_picture():
    @jax.jit
    def predict(variables, x):
        outputs = TINY.apply(variables, x)
        return outputs["logits"], decode_picture_boxes(outputs["box_deltas"], (32, 40))

    logits, boxes = predict(initial(), pictures(2))
    assert logits.shape == (2, 3)
    np.testing.assert_allclose(boxes, np.tile([[0, 0, 40, 32]], (2, 1)))


@pytest.mark.parametrize(("backbone", "size"), [("resnet18", (97, 65)), ("vgg11_bn", (64, 64))])
def test_any_backbone_with_stages_and_any_size(backbone, size):
    model = get_model("localizer", backbone=backbone, num_classes=5)
    x = pictures(1, *size)
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    cells = (1, -(-size[0] // 8), -(-size[1] // 8)) if backbone == "resnet18" else (1, 16, 16)
    shapes = {"logits": (1, 5), "box_deltas": (1, 4), "cell_logits": cells}
    assert {k: v.shape for k, v in outputs.items()} == shapes
    own = jax.eval_shape(get_model(backbone, features_only=True).init, jax.random.key(0), x)
    ours = variables["params"]["backbone"]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, own["params"])


class Maps(nn.Module):
    """The picture, and every second of its pixels."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        return {"left_out": x[:, ::4], "fine": x, "coarse": x[:, ::2, ::2]}


def test_heads_look_where_the_cell_logits_say():
    """Some cells far ahead of the others: their features alone, and the box around them."""
    model = Localizer(Maps(), num_classes=2, num_maps=2)
    x = pictures(1, 4, 5)
    # The coarse map's cell (0, 1) is the fine one's rows 0 and 1, columns 2 (and 3, for 5 // 3).
    x[..., 0] = 0
    x[0, 0, 2, 0] = 100
    params = jax.tree.map(np.array, init_variables(model, jax.random.key(0), (4, 5, 3))["params"])
    params["cells1"]["kernel"][0, 0, 0, 0] = 10
    outputs = jax.tree.map(np.asarray, jax.jit(model.apply)({"params": params}, x))
    rows, columns = np.arange(4) * 2 // 4 == 0, np.arange(5) * 3 // 5 == 1
    there = np.outer(rows, columns)
    np.testing.assert_array_equal(outputs["cell_logits"][0] > 500, there)
    head = params["class_head"]
    seen = np.concatenate([x[0][there].mean(axis=0), x[0, 0, 2]])
    np.testing.assert_allclose(
        outputs["logits"][0], seen @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4
    )
    # The box is that of those cells: rows 0 and 1 of 4, columns 2 and 3 of 5.
    expected = [[(2 / 5 + 4 / 5) / 2 - 0.5, 0.25 - 0.5, np.log(2 / 5), np.log(2 / 4)]]
    np.testing.assert_allclose(outputs["box_deltas"], expected, atol=1e-5)


def test_unknown_backbones_and_options():
    with pytest.raises(UserError, match="unknown model 'resnet19'"):
        get_model("localizer", backbone="resnet19")
    with pytest.raises(UserError, match="model 'lenet' has no option features_only"):
        get_model("localizer", backbone="lenet")
    with pytest.raises(UserError, match="model 'resnet18' has no option depth"):
        get_model("localizer", backbone_options={"depth": 3})


def test_overfits_one_batch():
    """Coloured rectangles on noise: the colour is the class."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 166, (8, 32, 40, 3), dtype=np.uint8)
    labels = np.arange(8)[:, None].astype(np.int32) % 3
    boxes = np.zeros((8, 1, 4), np.float32)
    for i in range(8):
        x, y, w, h = rng.integers((2, 2, 10, 10), (20, 14, 18, 18))
        boxes[i] = x, y, x + w, y + h
        image[i, y : y + h, x : x + w] = np.eye(3, dtype=np.uint8)[labels[i]] * 250
    tx = optax.flatten(adam(1e-2))
    state = create_state(initial(), tx)
    loss_fn = localization_loss(TINY, mean=0.5, std=0.25)
    train_step = make_train_step(loss_fn, tx)
    for _ in range(200):
        state, metrics = train_step(state, {"image": image, "boxes": boxes, "labels": labels})
        if float(metrics["localization_error"]) == 0 and float(metrics["iou"]) > 0.8:
            break
    assert float(metrics["localization_error"]) == 0
    assert float(metrics["iou"]) > 0.8
