"""YOLO v1: the author's two networks, any backbone, the small one; it overfits a few scenes."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision.errors import UserError
from jaxvision.losses import yolov1_loss
from jaxvision.models import get_model, init_variables
from jaxvision.models.darknet_layers import (
    YOLOV1_LAYERS,
    DarknetLayers,
    LocallyConnected,
    conv,
    darknet_max_pool,
    parse_section,
)
from jaxvision.models.layers import Conv
from jaxvision.models.yolov1 import YOLOv1, grid_of_darknet
from jaxvision.ops import decode_yolov1, normalize_images
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import adam

SMALL = YOLOv1(
    DarknetLayers((conv(16, stride=2), conv(32, stride=2), conv(32, stride=2))), 3, 2, bounded=True
)


def traced(model, size, batch=2):
    x = jax.ShapeDtypeStruct((batch, *size, 3), np.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), x)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "cells", "floats"),
    [
        # darknet's files hold these float32 numbers, and nothing else behind their header
        ("yolov1", (7, 7, 3 * 5 + 20), 197_328_243),
        ("fast_yolov1", (7, 7, 2 * 5 + 20), 27_099_950),
    ],
)
def test_the_authors_networks(name, cells, floats):
    outputs, variables = traced(get_model(name), (448, 448))
    assert outputs.shape == (2, *cells)
    tracked = sum(
        "num_batches_tracked" in bn for bn in variables["batch_stats"]["backbone"].values()
    )
    assert count(variables) - tracked == floats
    convolutions = [k for k in variables["params"]["backbone"] if k.startswith("conv")]
    assert (len(convolutions), tracked) == ((24, 24) if name == "yolov1" else (8, 8))


def test_of_pictures_that_the_tiny_network_was_made_for():
    outputs, variables = traced(get_model("yolov1_tiny"), (128, 128))
    assert outputs.shape == (2, 8, 8, 20)
    assert 1_000_000 < count(variables["params"]) < 1_400_000
    outputs, _ = traced(get_model("yolov1_tiny", num_classes=3, grid_size=7), (128, 96))
    assert outputs.shape == (2, 7, 7, 13)


@pytest.mark.parametrize(
    ("backbone", "options", "size", "cells"),
    [
        ("resnet18", {"width": 16}, (96, 64), (3, 2)),
        ("vgg11_bn", {"widths": [8, 8, 8, 8, 8]}, (64, 64), (4, 4)),
    ],
)
def test_any_backbone_with_stages_and_its_converted_weights(backbone, options, size, cells):
    model = get_model(
        "yolov1", num_classes=4, backbone=backbone, backbone_options=options, neck=[24]
    )
    outputs, variables = traced(model, size)
    assert outputs.shape == (2, *cells, 14)
    assert model.bounded
    alone = get_model(backbone, features_only=True, **{k: tuple(v) if isinstance(v, list) else v
                                                       for k, v in options.items()})  # fmt: skip
    _, own = traced(alone, size)
    for collection in own:
        ours = variables[collection]["backbone"]
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, own[collection])
    assert variables["params"]["neck_layers"]["conv1"]["kernel"].shape[-1] == 24


def test_a_grid_of_its_own_is_averaged():
    outputs, _ = traced(get_model("yolov1", backbone="resnet18", grid_size=2, neck=()), (160, 160))
    assert outputs.shape == (2, 2, 2, 30)
    with pytest.raises(UserError, match="model 'lenet' has no option features_only"):
        get_model("yolov1", backbone="lenet")


def test_darknets_vector_cell_by_cell():
    """Number 100 i + 10 row + column of box or class i tells where it went."""
    cells = np.arange(2)[:, None] * 10 + np.arange(2)
    classes = [[100 * k + cells[i, j] for k in range(3)] for i in (0, 1) for j in (0, 1)]
    confidences = [[1000 + 100 * n + cells[i, j] for n in (0, 1)] for i in (0, 1) for j in (0, 1)]
    boxes = [
        [[10000 * (c + 1) + 100 * n + cells[i, j] for c in range(4)] for n in (0, 1)]
        for i in (0, 1) for j in (0, 1)
    ]  # fmt: skip
    vector = np.concatenate([np.ravel(part) for part in (classes, confidences, boxes)])
    grid = np.asarray(grid_of_darknet(vector[None].astype(np.float32), 2, 2, 3))
    expected = [10011, 20011, 30011, 40011, 1011, 10111, 20111, 30111, 40111, 1111, 11, 111, 211]
    assert grid[0, 1, 1].tolist() == expected
    assert grid[0, 0, 1, -3:].tolist() == [1, 101, 201]


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_locally_connected_with_one_kernel_is_a_convolution(stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
    layer, plain = LocallyConnected(4, 3, stride, padding), Conv(4, (3, 3), stride, padding)
    of_plain, of_layer = (jax.eval_shape(m.init, jax.random.key(0), x) for m in (plain, layer))
    params = {k: rng.uniform(-0.2, 0.2, v.shape) for k, v in of_plain["params"].items()}
    params = {k: v.astype(np.float32) for k, v in params.items()}
    like = of_layer["params"]
    same = {k: np.broadcast_to(v, like[k].shape).copy() for k, v in params.items()}
    expected = jax.jit(plain.apply)({"params": params}, x)
    apply = jax.jit(lambda params: layer.apply({"params": params}, x))
    got = np.asarray(apply(same))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    # And another kernel at one place changes that place alone.
    same["kernel"][1, 1] *= 2
    moved = np.abs(apply(same) - got).max(axis=(0, 3)) > 1e-6
    assert moved.sum() == 1
    assert bool(moved[1, 1])


def test_pools_of_odd_sizes_have_a_last_window_of_their_own():
    x = np.arange(15, dtype=np.float32).reshape(1, 3, 5, 1)
    pool = jax.jit(darknet_max_pool, static_argnums=(1, 2, 3))
    assert np.asarray(pool(x, 2, 2, 1))[0, ..., 0].tolist() == [[6, 8, 9], [11, 13, 14]]
    assert np.asarray(pool(x, 2, 2, 0))[0, ..., 0].tolist() == [[6, 8]]


def test_sections_unknown_to_yolo_v1():
    assert parse_section(YOLOV1_LAYERS[1]) == ("maxpool", {"size": "2", "stride": "2"})
    with pytest.raises(ValueError, match=r"expected a section of YOLO v1, got \[route\]"):
        traced(DarknetLayers(("route layers=-1",)), (8, 8))
    with pytest.raises(ValueError, match="needs a grid_size"):
        traced(YOLOv1(DarknetLayers(()), fully_connected=True), (8, 8))


def rectangles(count=8, side=48, seed=0):
    """Coloured rectangles on noise, of which the colour is the class; the last scene is empty."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 166, (count, side, side, 3), dtype=np.uint8)
    boxes, labels = np.zeros((count, 2, 4), np.float32), np.zeros((count, 2), np.int32)
    valid = np.arange(count)[:, None] < np.full(2, count - 1)
    for i in range(count - 1):
        for j in range(2):
            x, y = rng.integers(0, 14) + 24 * j, rng.integers(2, 26)
            w, h = rng.integers(9, 20, 2)
            labels[i, j] = rng.integers(0, 3)
            boxes[i, j] = x, y, min(x + w, side), min(y + h, side)
            image[i, y : y + h, x : x + w] = np.eye(3, dtype=np.uint8)[labels[i, j]] * 250
    return {"image": image, "boxes": boxes, "labels": labels, "box_valid": valid}


@cache
def initial():
    return init_variables(SMALL, jax.random.key(0), (48, 48, 3))


@jax.jit
def predict(variables, images):
    outputs = SMALL.apply(variables, normalize_images(images, 0.5, 0.25), train=False)
    return decode_yolov1(outputs, (48, 48), 3, bounded=True)


@pytest.mark.parametrize("class_loss", ["squared_error", "cross_entropy"])
def test_overfits_a_few_scenes(class_loss):
    """The best boxes of each scene are its objects, and an empty scene has none."""
    batch = rectangles()
    tx = optax.flatten(adam(1e-2))
    state = create_state(initial(), tx)
    train_step = make_train_step(yolov1_loss(SMALL, mean=0.5, std=0.25, class_loss=class_loss), tx)
    for _ in range(300):
        state, metrics = train_step(state, batch)
        if float(metrics["loss"]) < 0.01:
            break

    boxes, scores = (np.asarray(a) for a in predict(state.variables, batch["image"]))
    for i in range(7):
        for box, label in zip(batch["boxes"][i], batch["labels"][i], strict=True):
            best = scores[i, :, label] * (np.abs(boxes[i] - box).max(axis=1) < 4)
            assert best.max() > 0.5
        assert (scores[i] > 0.5).sum() <= 2 * 2
    assert scores[7].max() < 0.3
