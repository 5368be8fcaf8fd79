"""RetinaNet, FCOS and SSD small enough to run: maps, padding, what they find; RetinaNet learns."""

import functools
from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxvision.losses import retinanet_loss
from jaxvision.models import get_model, init_variables
from jaxvision.models import retinanet as zoo
from jaxvision.models.detection import detect_with_ssd, make_detector
from jaxvision.models.fcos import fcos_resnet_fpn
from jaxvision.models.layers import GroupNorm, Norm
from jaxvision.models.resnet import resnet18
from jaxvision.models.selection import Selection
from jaxvision.models.ssd import SSD, SSDFeatures, SSDHead
from jaxvision.ops import box_iou, decode_ssd
from jaxvision.train import create_state, make_train_step

SIDE, MEAN, STD = 64, 0.4, 0.3
BODY = partial(resnet18, stage_sizes=(1, 1, 1, 1))
TINY = {"frozen_norm": False, "width": 8, "fpn_features": 16, "head_depth": 1}
RETINANET = zoo.retinanet_resnet_fpn(BODY, 4, **TINY, anchor_sizes=(12, 16, 24, 40, 64))
FCOS = fcos_resnet_fpn(BODY, 4, **TINY)


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
def drawn():
    return init_variables(RETINANET, jax.random.key(1), (SIDE, SIDE, 3))


DETECT = make_detector(RETINANET, mean=MEAN, std=STD, score_threshold=0.005, max_detections=10)


def test_retinanet_learns_a_few_scenes_and_finds_their_objects():
    batch, tx = scenes(), optax.flatten(optax.adam(3e-3))
    state = create_state(drawn(), tx)
    step = make_train_step(retinanet_loss(RETINANET, mean=MEAN, std=STD), tx)
    first = None
    for _ in range(150):
        state, metrics = step(state, batch)
        first = first or float(metrics["loss"])
        if float(metrics["loss"]) < 0.05:
            break
    assert float(metrics["loss"]) < 0.3 < first
    assert step._cache_size() == 1
    found = jax.tree.map(np.asarray, DETECT(state.variables, batch["image"], batch["size"]))
    ious = np.asarray(jax.jit(jax.vmap(box_iou))(found.boxes, batch["boxes"]))
    for i, there in enumerate(batch["box_valid"]):
        kept = found.valid[i] & (found.scores[i] > 0.3)
        iou = ious[i][kept][:, there]
        assert kept.sum() >= there.sum()
        assert (iou.max(axis=0, initial=0) > 0.6).all()
        best = found.labels[i][kept][iou.argmax(axis=0)] if there.any() else []
        np.testing.assert_array_equal(best, batch["labels"][i][there])


def test_a_picture_in_a_larger_array_is_found_the_same_alone():
    """Its padding may hold anything, and so may the pictures beside it."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    sizes = np.full((4, 2), SIDE, np.int32)
    sizes[0] = 40, 50
    spoilt = images.copy()
    spoilt[0, 40:], spoilt[0, :, 50:], spoilt[1:] = 7, 255, 0
    first, second = (jax.tree.map(np.asarray, DETECT(drawn(), x, sizes)) for x in (images, spoilt))
    assert first.valid[0].any()
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    boxes = first.boxes[0][first.valid[0]]
    assert (boxes[:, 2:] <= [[50, 40]]).all()
    assert (boxes >= 0).all()
    assert (first.labels < 3).all()
    assert DETECT._cache_size() == 1


def shapes_of(model, side=SIDE):
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def test_maps_and_anchors():
    outputs, variables = shapes_of(RETINANET, side=50)  # padded to 64
    counts = [9 * n * n for n in (8, 4, 2, 1, 1)]
    assert [x.shape for x in outputs.class_logits] == [(1, n, 4) for n in counts]
    assert [x.shape for x in outputs.box_deltas] == [(1, n, 4) for n in counts]
    assert [len(x) for x in outputs.anchors] == counts
    params = variables["params"]
    assert set(params["backbone"]["fpn"]) == {"inner_blocks", "layer_blocks", "extra_blocks"}
    assert set(params["head"]["regression_head"]) == {"conv", "bbox_reg"}

    outputs, _ = shapes_of(FCOS)
    assert [x.shape for x in outputs.centerness] == [(1, n * n) for n in (8, 4, 2, 1, 1)]

    outputs, _ = shapes_of(get_model("ssd300_vgg16"), side=300)
    counts = [4 * 38**2, 6 * 19**2, 6 * 10**2, 6 * 5**2, 4 * 3**2, 4]
    assert [len(x) for x in outputs.anchors] == counts  # 8,732 in all, as in the paper
    assert [x.shape for x in outputs.class_logits] == [(1, n, 91) for n in counts]
    outputs, _ = shapes_of(get_model("ssdlite320_mobilenet_v3_large"), side=320)
    assert [len(x) for x in outputs.anchors] == [6 * n * n for n in (20, 10, 5, 3, 2, 1)]


def test_a_new_network_thinks_that_there_is_nothing():
    heads = drawn()["params"]["head"]
    bias = heads["classification_head"]["cls_logits"]["bias"]
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(bias))), 0.01, rtol=1e-5)
    assert not np.asarray(heads["regression_head"]["bbox_reg"]["bias"]).any()


def test_ssds_boxes_go_through_its_decoder():
    class Maps(SSDFeatures):
        def __call__(self, images, *, train):
            return (images[:, ::8, ::8], images[:, ::16, ::16])

    model = SSD(Maps(), SSDHead(4, (4, 4)), (0.2, 0.4, 0.6), ((2,), (2,)), max_candidates=20)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = init_variables(model, jax.random.key(0), (32, 32, 3))
    sizes = np.array([[32, 32], [20, 32]], np.int32)
    selection = Selection(0.1, 0.5, 8)
    detect = jax.jit(
        lambda images, sizes: detect_with_ssd(model, variables, images, sizes, selection)
    )
    found = jax.tree.map(np.asarray, detect(images, sizes))
    images[1, 20:] = 0
    outputs = jax.jit(model.apply)(variables, images)
    logits, deltas, boxes = (np.concatenate(levels, axis=-2) for levels in outputs)
    options = {**vars(selection), "max_candidates": 20}
    decode = jax.jit(lambda *x: decode_ssd(*x[:3], (x[3][0], x[3][1]), **options))
    for i in range(2):
        expected = decode(logits[i], deltas[i], boxes, sizes[i])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[i], theirs, atol=1e-5)
        assert expected.valid.any()


def test_pictures_that_shrink_to_nothing_are_refused():
    with pytest.raises(ValueError, match="expected a larger picture"):
        shapes_of(get_model("ssd300_vgg16"), side=128)


def test_group_normalisation_by_hand():
    x = np.array([[[[1.0, 3.0, 10.0, 30.0]]]], np.float32)
    norm = Norm("group", eps=0.0, groups=2)()
    y, _ = jax.jit(partial(norm.init_with_output, train=True))(jax.random.key(0), x)
    np.testing.assert_allclose(np.asarray(y)[0, 0, 0], [-1, 1, -1, 1], rtol=1e-5)
    with pytest.raises(ValueError, match="channels in 3 groups, got 4"):
        GroupNorm(3).init(jax.random.key(0), x, train=True)
