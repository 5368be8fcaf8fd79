"""R-CNN: what the network says of crops, some at a time; what the detector finds; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.models import get_model
from jaxvision.models.proposal_detection import make_proposal_detector
from jaxvision.models.rcnn import (
    classify_regions,
    crop_regions,
    describe_regions,
    in_chunks,
    score_regions,
)
from jaxvision.ops import adaptive_avg_pool, decode_regions, max_pool, warp_rois

WIDTH = {"width": 8, "stage_sizes": (1, 1, 1, 1)}
OPTIONS = {"num_classes": 3, "backbone_options": WIDTH, "crop_size": 32, "padding": 4, "grid": 1}
SIZES = jnp.array([[40, 48], [30, 20]])


@pytest.fixture(scope="module")
def made():
    model = get_model("rcnn", **OPTIONS)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 40, 48, 3)))


@pytest.fixture(scope="module")
def scene():
    """Two pictures, and five regions of each, of which the last is none."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    boxes = np.array(
        [[0, 0, 10, 10], [20, 20, 40, 30], [0, 0, 10, 9], [5, 5, 6, 6], [np.nan] * 4], np.float32
    )
    return jnp.asarray(images), jnp.asarray([boxes, boxes]), jnp.arange(10).reshape(2, 5) % 5 < 4


def behind(model, variables, margins, deltas=(0.0, 0.0, 0.0, 0.0)):
    """The variables with SVMs that always say `margins`, and regressors that say `deltas`."""
    params = dict(variables["params"])
    for name, values in (("svms", margins), ("box_regressors", deltas * len(margins))):
        params[name] = {
            "kernel": jnp.zeros_like(params[name]["kernel"]),
            "bias": jnp.array(values, jnp.float32),
        }
    return {**variables, "params": params}


def test_crops_are_warped_with_context_up_to_the_pictures_end(made, scene):
    images, boxes, _ = scene
    images, boxes = np.float32(images / 255), np.nan_to_num(boxes)
    crops = jax.jit(crop_regions, static_argnums=0)(made[0], images, SIZES, boxes)
    warp = jax.jit(lambda image, boxes: warp_rois(image, boxes, 32, padding=4, size=(30, 20)))
    np.testing.assert_allclose(crops[1], warp(images[1], boxes[1]), atol=1e-6)
    assert get_model("rcnn").padding == 16
    assert get_model("rcnn", crop_size=64).padding == 5


def test_features_and_cells_are_the_networks(made):
    model, variables = made
    crops = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    inner = {name: part["backbone"] for name, part in variables.items()}

    @jax.jit
    def apply(variables, inner, crops):
        described = model.apply(variables, crops, method=model.describe)
        features = get_model("resnet18", num_classes=0, **WIDTH).apply(inner, crops)
        stages = get_model("resnet18", features_only=True, **WIDTH).apply(inner, crops)
        return described, features, adaptive_avg_pool(stages["layer4"], 1)

    described, features, cells = apply(variables, inner, crops)
    np.testing.assert_allclose(described.features, features, atol=1e-6)
    np.testing.assert_allclose(described.cells, cells, atol=1e-6)


def test_of_vgg_the_cells_are_pool5_and_the_features_fc7():
    options = {"widths": (4, 4, 4, 8, 8), "hidden": 16}
    model = get_model("rcnn", num_classes=3, backbone="vgg11", backbone_options=options, grid=2)
    crops = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))

    def describe(key):
        variables = model.init(key, crops)
        inner = {"params": variables["params"]["backbone"]}
        stages = get_model("vgg11", features_only=True, **options).apply(inner, crops)
        described = model.apply(variables, crops, method=model.describe)
        return described, max_pool(stages["stage5"], 2), variables

    described, pool5, variables = jax.jit(describe)(jax.random.key(0))
    np.testing.assert_allclose(described.cells, pool5, atol=1e-6)
    assert described.features.shape == (2, 16)
    assert set(variables["params"]["backbone"]["classifier"]) == {"0", "3"}
    # A crop of 224 has 7 x 7 cells, of which a grid of 2 is kept.
    assert variables["params"]["box_regressors"]["kernel"].shape == (4 * 8, 8)


@pytest.mark.parametrize("at_once", [1, 4, 5, 100])
def test_chunks_are_the_whole(at_once):
    boxes = jnp.arange(2 * 7 * 4.0).reshape(2, 7, 4)
    chunked = in_chunks(lambda boxes: {"sum": boxes.sum(-1), "same": boxes}, boxes, at_once)
    np.testing.assert_array_equal(chunked["sum"], boxes.sum(-1))
    np.testing.assert_array_equal(chunked["same"], boxes)


def test_regions_that_are_none_have_no_features(made, scene):
    model, variables = made
    images, boxes, valid = scene
    rng = np.random.default_rng(3)
    for name in ("svms", "box_regressors"):
        kernel = variables["params"][name]["kernel"]
        drawn = {name: {"kernel": jnp.asarray(rng.normal(size=kernel.shape), jnp.float32)}}
        drawn[name]["bias"] = variables["params"][name]["bias"] + 1
        variables = {**variables, "params": {**variables["params"], **drawn}}

    @jax.jit
    def both(images, boxes):
        args = (model, variables, images, SIZES, boxes, valid)
        return describe_regions(*args), classify_regions(*args)

    described, classified = both(images / 255, boxes)
    assert np.isfinite(described.features).all()
    assert not np.asarray(described.features)[:, 4].any()
    assert np.asarray(described.features)[:, :4].any(axis=-1).all()
    scores = score_regions(model, variables, described)
    assert scores.deltas.shape == (2, 5, 2, 4)
    for a, b in zip(scores, classified, strict=True):
        np.testing.assert_allclose(b[:, :4], a[:, :4], atol=1e-4)
        assert not np.asarray(b)[:, 4].any()


def test_the_detector_moves_suppresses_and_labels(made, scene):
    model, variables = made
    images, boxes, valid = scene
    detect = make_proposal_detector(model, iou_threshold=0.3, max_detections=6)
    deltas = (0.5, 0.0, 0.0, 0.0)
    found = detect(behind(model, variables, [-9.0, 3.0], deltas), images, SIZES, boxes, valid)
    # Half a width to the right; of two regions that overlap the first; the second picture ends at
    # a column of 20, and with it the second region, which is moved out of it.
    assert found.valid.sum(axis=1).tolist() == [3, 2]
    assert set(found.labels[found.valid].tolist()) == {1}
    np.testing.assert_allclose(found.scores[0, :3], jax.nn.sigmoid(3.0), rtol=1e-6)
    expected = [[5, 0, 15, 10], [30, 20, 48, 30], [5.5, 5, 6.5, 6]]
    np.testing.assert_allclose(found.boxes[0, :3], expected, atol=1e-4)
    nothing = detect(variables, images, SIZES, jnp.full_like(boxes, jnp.nan), valid & False)
    assert not nothing.valid.any()
    assert detect._cache_size() == 1


decode = jax.jit(decode_regions, static_argnames=("size", "iou_threshold", "max_detections"))


def test_margins_decide_the_order_of_detections():
    boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [6.0, 0.0, 9.0, 4.0], [0.0, 6.0, 4.0, 9.0]])
    margins = jnp.array([[1.0, -30.0], [5.0, 2.0], [jnp.nan, -3.0]])
    found = decode(margins, jnp.zeros((3, 2, 4)), boxes, (10, 10), max_detections=5)
    assert found.labels[found.valid].tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.scores[:3], jax.nn.sigmoid(jnp.array([5.0, 2.0, 1.0])))
    assert found.boxes[:2].tolist() == [boxes[1].tolist()] * 2


@pytest.mark.parametrize(("options", "kept"), [({}, 1), ({"iou_threshold": 0.5}, 2)])
def test_less_overlap_suppresses_than_in_later_detectors(options, kept):
    """As the paper has it: an IoU above 0.3; these two have one of 0.43."""
    boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [4.0, 0.0, 14.0, 10.0]])
    margins, deltas = jnp.array([[2.0], [1.0]]), jnp.zeros((2, 1, 4))
    found = decode(margins, deltas, boxes, (20, 20), max_detections=4, **options)
    assert int(found.valid.sum()) == kept


def test_a_network_without_maps_is_refused():
    model = get_model("rcnn", num_classes=3, backbone="mlp", crop_size=8)
    with pytest.raises(ValueError, match="expected a backbone with maps, got MLP"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
