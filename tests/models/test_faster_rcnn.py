"""Faster R-CNN small enough to run: its stages, its padding, and that it learns what it sees."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision.losses import faster_rcnn_loss
from jaxvision.losses.rcnn import Sampling
from jaxvision.metrics import detection_average_precision
from jaxvision.models import faster_rcnn as zoo
from jaxvision.models import init_variables
from jaxvision.models.detection import make_detector
from jaxvision.models.layers import Norm
from jaxvision.models.resnet import resnet18
from jaxvision.train import create_state, make_train_step
from jaxvision.train.trainable import frozen_as_in_inference, trainable_paths

MODEL = zoo.fasterrcnn_resnet_fpn(
    partial(resnet18, stage_sizes=(1, 1, 1)),
    4,
    frozen_norm=False,
    width=8,
    stages=("layer1", "layer2", "layer3"),
    fpn_features=16,
    representation_size=32,
    anchor_sizes=(12, 20, 32),
    pre_nms_top_n=(60, 40),
    post_nms_top_n=(40, 20),
)
SIDE = 64
MEAN, STD = 0.4, 0.3


def scenes():
    """Four pictures, of which one is empty, with squares of three colours."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 120, (4, SIDE, SIDE, 3), np.uint8)
    boxes, labels = np.full((4, 2, 4), np.nan, np.float32), np.zeros((4, 2), np.int32)
    box_valid = np.array([[True, True], [True, False], [False, False], [True, True]])
    places = {(0, 0): (4, 6, 16, 2), (0, 1): (30, 34, 28, 0), (1, 0): (20, 8, 22, 1)}
    places |= {(3, 0): (2, 40, 18, 0), (3, 1): (40, 10, 14, 1)}
    for (picture, number), (x, y, side, label) in places.items():
        images[picture, y : y + side, x : x + side] = 250 * (np.arange(3) == label)
        boxes[picture, number] = x, y, x + side, y + side
        labels[picture, number] = label
    size = np.full((4, 2), SIDE, np.int32)
    names = ("image", "boxes", "labels", "box_valid", "size")
    return dict(zip(names, (images, boxes, labels, box_valid, size), strict=True))


@functools.cache
def initial():
    return init_variables(MODEL, jax.random.key(0), (SIDE, SIDE, 3))


DETECT = make_detector(MODEL, mean=MEAN, std=STD, score_threshold=0.01, max_detections=10)


def test_it_learns_a_few_scenes_and_finds_their_objects():
    batch, steps = scenes(), 100
    tx = optax.flatten(optax.adam(optax.cosine_decay_schedule(5e-3, steps)))
    state = create_state(initial(), tx)
    loss_fn = faster_rcnn_loss(MODEL, mean=MEAN, std=STD, sampling=Sampling(64, 0.5, 32, 0.5))
    step = make_train_step(loss_fn, tx)
    for _ in range(steps):
        state, metrics = step(state, batch)
    assert float(metrics["loss"]) < 0.4
    assert step._cache_size() == 1
    found = jax.tree.map(np.asarray, DETECT(state.variables, batch["image"], batch["size"]))
    names, there = ("boxes", "scores", "labels"), batch["box_valid"]
    predictions = [
        {name: getattr(found, name)[i][found.valid[i]] for name in names} for i in range(4)
    ]
    targets = [{name: batch[name][i][there[i]] for name in ("boxes", "labels")} for i in range(4)]
    # Of each class, every object is found before anything that is none.
    result = detection_average_precision(predictions, targets, num_classes=3, iou_threshold=0.6)
    np.testing.assert_array_equal(result.ap, 1)


def test_a_picture_in_a_larger_array_is_found_the_same_alone():
    """Its padding may hold anything, and so may the pictures beside it."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    sizes = np.array([[40, 50], *[[SIDE, SIDE]] * 3], np.int32)
    spoilt = images.copy()
    spoilt[0, 40:], spoilt[0, :, 50:], spoilt[1:] = 7, 255, 0
    first, second = (
        jax.tree.map(np.asarray, DETECT(initial(), x, sizes)) for x in (images, spoilt)
    )
    assert first.valid[0].any()
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    boxes = first.boxes[0][first.valid[0]]
    assert (boxes[:, 2:] <= [[50, 40]]).all()
    assert (boxes >= 0).all()
    assert DETECT._cache_size() == 1


def test_stages_and_what_they_return():
    images, sizes = np.zeros((2, 50, 70, 3), np.float32), np.array([[50, 70], [33, 20]], np.int32)
    apply = partial(MODEL.apply, initial(), train=False)

    def stages(images, sizes):
        features = apply(images, sizes, method=MODEL.extract_features)
        predictions = apply(features, method=MODEL.score_anchors)
        proposals = apply(features, predictions, sizes, method=MODEL.propose)
        return features, predictions, proposals

    features, predictions, proposals = jax.eval_shape(stages, images, sizes)
    # Padded to 64 x 96, at strides 4 to 16.
    shapes = [(16, 24), (8, 12), (4, 6)]
    assert [x.shape for x in features] == [(2, h, w, 16) for h, w in shapes]
    assert [x.shape for x in predictions.objectness] == [(2, 3 * h * w) for h, w in shapes]
    assert [x.shape for x in predictions.deltas] == [(2, 3 * h * w, 4) for h, w in shapes]
    maps = tuple(np.zeros(x.shape, np.float32) for x in features)
    anchors = jax.jit(partial(MODEL.apply, {}, method=MODEL.anchors))(maps)
    assert [len(x) for x in anchors] == [3 * h * w for h, w in shapes]
    assert anchors[1][3].tolist() == [-6.0, -7.0, 22.0, 7.0]  # 20 pixels, 2:1, one stride further
    assert proposals.boxes.shape == (2, 20, 4)

    def train(images):
        return MODEL.apply(initial(), images, train=True, mutable=True)[0]

    outputs, params = jax.eval_shape(train, images), initial()["params"]
    assert outputs.proposals.boxes.shape == (2, 40, 4)
    with frozen_as_in_inference(params, trainable_paths(params, "roi_heads/**")):
        frozen = jax.eval_shape(lambda x: train(x), images)
    assert frozen.proposals.boxes.shape == (2, 40, 4)  # as many for what is still trained
    assert (outputs.class_logits.shape, outputs.box_deltas.shape) == ((2, 40, 4), (2, 40, 4, 4))


def with_few_blocks(model):
    body = model.backbone.body.clone(stage_sizes=(1, 1, 1, 1))
    return model.clone(backbone=model.backbone.clone(body=body))


def shapes_of(model, **options):
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    return jax.eval_shape(partial(model.init_with_output, **options), jax.random.key(0), images)


def test_the_classes_count_the_background():
    outputs, variables = shapes_of(zoo.fasterrcnn_mobilenet_v3_large_fpn(3))
    assert outputs.class_logits.shape[-1] == 3
    head = variables["params"]["roi_heads"]["box_predictor"]
    assert head["cls_score"]["bias"].shape == (3,)
    assert head["bbox_pred"]["bias"].shape == (12,)


def test_frozen_backbones_learn_no_normalisation():
    backbone = with_few_blocks(zoo.fasterrcnn_resnet50_fpn()).backbone
    body = shapes_of(backbone, train=False)[1]["params"]["body"]
    assert "bn1" not in body
    assert set(body["layer1"]["0"]) == {"conv1", "conv2", "conv3", "downsample"}
    trained = shapes_of(with_few_blocks(zoo.fasterrcnn_resnet50_fpn_v2()))[1]["params"]
    assert "bn1" in trained["backbone"]["body"]
    assert set(trained["backbone"]["fpn"]["inner_blocks"]["0"]) == {"0", "1"}
    assert set(trained["roi_heads"]["box_head"]) == {"0", "1", "2", "3", "5"}
    assert set(trained["rpn"]["head"]["conv"]) == {"0", "1"}


def test_vgg16_has_one_level_pools_by_maximum_and_needs_a_single_map():
    model = zoo.fasterrcnn_vgg16(21, widths=(8, 8, 8, 8, 16), hidden=16)
    outputs, variables = shapes_of(model)
    assert outputs.class_logits.shape == (1, 144, 21)  # 4 x 4 cells of 9 anchors
    assert set(variables["params"]["roi_heads"]["box_head"]) == {"fc6", "fc7"}
    assert variables["params"]["roi_heads"]["box_head"]["fc6"]["kernel"].shape == (16 * 49, 16)
    heads = MODEL.roi_heads.clone(pooling="pool")
    with pytest.raises(ValueError, match="one map for RoIPool"):
        shapes_of(MODEL.clone(roi_heads=heads))
    uneven = MODEL.rpn.clone(anchor_sizes=((8,), (16, 32), (32,)))
    with pytest.raises(ValueError, match="as many anchor sizes"):
        shapes_of(MODEL.clone(rpn=uneven))


def test_bfloat16_switches_the_computation_and_not_the_parameters():
    model = zoo.fasterrcnn_resnet18_fpn(3, dtype=jnp.bfloat16)
    outputs, variables = shapes_of(model)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
    assert outputs.class_logits.dtype == outputs.box_deltas.dtype == jnp.bfloat16
    assert outputs.proposals.boxes.dtype == outputs.proposals.scores.dtype == jnp.float32


def test_models_are_values():
    """Options as they come from JSON make equal modules, which jit can hash."""
    first = zoo.fasterrcnn_resnet18_fpn(3, anchor_sizes=[16, 32, 64, 96], pre_nms_top_n=[9, 8])
    second = zoo.fasterrcnn_resnet18_fpn(
        3, anchor_sizes=([16], [32], [64], [96]), pre_nms_top_n=(9, 8)
    )
    assert first == second
    assert hash(first) == hash(second)
    assert first.backbone.body.norm == Norm("batch")
    assert first != zoo.fasterrcnn_resnet18_fpn(3, frozen_norm=True)
