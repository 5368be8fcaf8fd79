"""R-CNN: what the network says of crops, some at a time; what the detector finds; bad input."""

import jax
import numpy as np
import pytest

from jaxvision.models import get_model, init_variables
from jaxvision.models.proposal_detection import make_proposal_detector
from jaxvision.models.rcnn import (
    classify_regions,
    crop_regions,
    describe_regions,
    in_chunks,
    score_regions,
)
from jaxvision.ops import adaptive_avg_pool, decode_regions, max_pool, warp_rois

WIDTH = {"width": 8, "stage_sizes": (1, 1)}
OPTIONS = {"num_classes": 3, "backbone_options": WIDTH, "crop_size": 32, "padding": 4, "grid": 1}
SIZES = np.array([[40, 48], [30, 20]], np.int32)


@pytest.fixture(scope="module")
def made():
    model = get_model("rcnn", **OPTIONS)
    return model, jax.tree.map(np.asarray, init_variables(model, jax.random.key(0), (40, 48, 3)))


@pytest.fixture(scope="module")
def scene():
    """Two pictures, and five regions of each, of which the last is none."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    boxes = np.array(
        [[0, 0, 10, 10], [20, 20, 40, 30], [0, 0, 10, 9], [5, 5, 6, 6], [np.nan] * 4], np.float32
    )
    return images, np.stack([boxes, boxes]), np.arange(10).reshape(2, 5) % 5 < 4


def behind(model, variables, margins, deltas=(0.0, 0.0, 0.0, 0.0)):
    """The variables with SVMs that always say `margins`, and regressors that say `deltas`."""
    params = dict(variables["params"])
    for name, values in (("svms", margins), ("box_regressors", deltas * len(margins))):
        params[name] = {
            "kernel": np.zeros_like(params[name]["kernel"]),
            "bias": np.array(values, np.float32),
        }
    return {**variables, "params": params}


def test_crops_are_warped_with_context_up_to_the_pictures_end(made, scene):
    images, boxes, _ = scene
    images, boxes = np.float32(images / 255), np.nan_to_num(boxes)
    crops = np.asarray(jax.jit(crop_regions, static_argnums=0)(made[0], images, SIZES, boxes))
    warp = jax.jit(lambda image, boxes: warp_rois(image, boxes, 32, padding=4, size=(30, 20)))
    np.testing.assert_allclose(crops[1], warp(images[1], boxes[1]), atol=1e-5)
    assert get_model("rcnn").padding == 16
    assert get_model("rcnn", crop_size=64).padding == 5


def test_features_and_cells_are_the_networks(made):
    model, variables = made
    crops = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)
    inner = {name: part["backbone"] for name, part in variables.items()}

    @jax.jit
    def apply(variables, inner, crops):
        described = model.apply(variables, crops, method=model.describe)
        features = get_model("resnet18", num_classes=0, **WIDTH).apply(inner, crops)
        stages = get_model("resnet18", features_only=True, **WIDTH).apply(inner, crops)
        return described, features, adaptive_avg_pool(stages["layer2"], 1)

    described, features, cells = apply(variables, inner, crops)
    np.testing.assert_allclose(described.features, features, atol=1e-6)
    np.testing.assert_allclose(described.cells, cells, atol=1e-6)


def test_of_vgg_the_cells_are_pool5_and_the_features_fc7():
    options = {"stage_sizes": (1,) * 5, "widths": (4, 4, 4, 8, 8), "hidden": 16}
    model = get_model("rcnn", num_classes=3, backbone="vgg11", backbone_options=options, grid=2)
    crops = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)

    @jax.jit
    def describe(crops):
        variables = model.init(jax.random.key(0), crops)
        inner = {"params": variables["params"]["backbone"]}
        stages = get_model("vgg11", features_only=True, **options).apply(inner, crops)
        described = model.apply(variables, crops, method=model.describe)
        return described, max_pool(stages["stage5"], 2), variables

    described, pool5, variables = describe(crops)
    np.testing.assert_allclose(described.cells, pool5, atol=1e-6)
    assert described.features.shape == (2, 16)
    assert set(variables["params"]["backbone"]["classifier"]) == {"0", "3"}
    # A crop of 224 has 7 x 7 cells, of which a grid of 2 is kept.
    assert variables["params"]["box_regressors"]["kernel"].shape == (4 * 8, 8)


@pytest.mark.parametrize("at_once", [1, 4, 5, 100])
def test_chunks_are_the_whole(at_once):
    boxes = np.arange(2 * 7 * 4, dtype=np.float32).reshape(2, 7, 4)

    @jax.jit
    def chunks(boxes):
        return in_chunks(lambda boxes: {"sum": boxes.sum(-1), "same": boxes}, boxes, at_once)

    chunked = chunks(boxes)
    np.testing.assert_array_equal(chunked["sum"], boxes.sum(-1))
    np.testing.assert_array_equal(chunked["same"], boxes)


def test_regions_that_are_none_have_no_features(made, scene):
    model, variables = made
    images, boxes, valid = scene
    rng = np.random.default_rng(3)
    for name in ("svms", "box_regressors"):
        kernel = variables["params"][name]["kernel"]
        drawn = {name: {"kernel": rng.normal(size=kernel.shape).astype(np.float32)}}
        drawn[name]["bias"] = variables["params"][name]["bias"] + 1
        variables = {**variables, "params": {**variables["params"], **drawn}}

    @jax.jit
    def both(images, boxes):
        args = (model, variables, images, SIZES, boxes, valid)
        described = describe_regions(*args)
        return described, score_regions(model, variables, described), classify_regions(*args)

    described, scores, classified = both(np.float32(images / 255), boxes)
    assert np.isfinite(described.features).all()
    assert not np.asarray(described.features)[:, 4].any()
    assert np.asarray(described.features)[:, :4].any(axis=-1).all()
    assert scores.deltas.shape == (2, 5, 2, 4)
    for a, b in zip(jax.tree.map(np.asarray, scores), classified, strict=True):
        b = np.asarray(b)
        np.testing.assert_allclose(b[:, :4], a[:, :4], atol=1e-4)
        assert not b[:, 4].any()


def test_the_detector_moves_suppresses_and_labels(made, scene):
    model, variables = made
    images, boxes, valid = scene
    detect = make_proposal_detector(model, iou_threshold=0.3, max_detections=6)
    deltas = (0.5, 0.0, 0.0, 0.0)
    certain = behind(model, variables, [-9.0, 3.0], deltas)
    found = jax.tree.map(np.asarray, detect(certain, images, SIZES, boxes, valid))
    # Half a width to the right; of two regions that overlap the first; the second picture ends at
    # a column of 20, and with it the second region, which is moved out of it.
    assert found.valid.sum(axis=1).tolist() == [3, 2]
    assert set(found.labels[found.valid].tolist()) == {1}
    np.testing.assert_allclose(found.scores[0, :3], 1 / (1 + np.exp(-3.0)), rtol=1e-6)
    expected = [[5, 0, 15, 10], [30, 20, 48, 30], [5.5, 5, 6.5, 6]]
    np.testing.assert_allclose(found.boxes[0, :3], expected, atol=1e-4)
    nothing = detect(variables, images, SIZES, np.full_like(boxes, np.nan), valid & False)
    assert not np.asarray(nothing.valid).any()
    assert detect._cache_size() == 1


decode = jax.jit(decode_regions, static_argnames=("size", "iou_threshold", "max_detections"))


def test_margins_decide_the_order_of_detections():
    boxes = np.array([[0, 0, 4, 4], [6, 0, 9, 4], [0, 6, 4, 9]], np.float32)
    margins = np.array([[1, -30], [5, 2], [np.nan, -3]], np.float32)
    found = decode(margins, np.zeros((3, 2, 4), np.float32), boxes, (10, 10), max_detections=5)
    found = jax.tree.map(np.asarray, found)
    assert found.labels[found.valid].tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.scores[:3], 1 / (1 + np.exp([-5.0, -2.0, -1.0])), rtol=1e-7)
    assert found.boxes[:2].tolist() == [boxes[1].tolist()] * 2


@pytest.mark.parametrize(("options", "kept"), [({}, 1), ({"iou_threshold": 0.5}, 2)])
def test_less_overlap_suppresses_than_in_later_detectors(options, kept):
    """As the paper has it: an IoU above 0.3; these two have one of 0.43."""
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10]], np.float32)
    margins, deltas = np.array([[2], [1]], np.float32), np.zeros((2, 1, 4), np.float32)
    found = decode(margins, deltas, boxes, (20, 20), max_detections=4, **options)
    assert np.asarray(found.valid).sum() == kept


def test_a_network_without_maps_is_refused():
    model = get_model("rcnn", num_classes=3, backbone="mlp", crop_size=8)
    with pytest.raises(ValueError, match="expected a backbone with maps, got MLP"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
