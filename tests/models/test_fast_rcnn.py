"""Fast R-CNN: given proposals, shared with Faster R-CNN; thinner layers; what it finds."""

import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.models import abstract_variables, get_model
from jaxvision.models.fast_rcnn import FastRCNN, truncate_svd
from jaxvision.models.proposal_detection import make_proposal_detector

SLIM = {"num_classes": 4, "width": 8, "fpn_features": 8, "representation_size": 16}
VGG = {"num_classes": 4, "widths": (4, 4, 4, 8, 8), "hidden": 32}


def pictures(seed: int = 0, b: int = 2):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (b, 64, 64, 3), dtype=np.uint8)
    corners = rng.uniform(0, 40, (b, 6, 2)).astype(np.float32)
    proposals = np.concatenate([corners, corners + rng.uniform(4, 24, (b, 6, 2))], -1)
    return images, np.full((b, 2), 64, np.int32), proposals.astype(np.float32)


def drawn(name: str, **options):
    model = thin(get_model(name, **options))
    return model, random_variables(model, (64, 64, 3))


def thin(model):
    """Returns the model with one layer or block a stage."""
    body = model.backbone.body
    body = body.clone(stage_sizes=(1,) * len(body.stage_sizes))
    return model.clone(backbone=model.backbone.clone(body=body))


def shapes_of(model):
    return abstract_variables(model, (64, 64, 3))


@pytest.fixture(scope="module")
def slim():
    return drawn("fastrcnn_resnet18_fpn", **SLIM)


@pytest.fixture(scope="module")
def vgg():
    return drawn("fastrcnn_vgg16", **VGG)


@pytest.fixture(scope="module")
def apply(vgg):
    return jax.jit(vgg[0].apply)


@pytest.fixture(scope="module")
def detect(slim):
    return make_proposal_detector(slim[0], mean=0.5, std=0.25, score_threshold=0.0)


def test_backbone_and_heads_are_faster_rcnns(slim):
    """The same names and shapes, so that weights go from one to the other."""
    others = shapes_of(thin(get_model("fasterrcnn_resnet18_fpn", **SLIM)))
    del others["params"]["rpn"]
    assert jax.tree.map(np.shape, slim[1]) == jax.tree.map(lambda x: x.shape, others)


def test_faster_rcnns_proposals_give_faster_rcnns_outputs(vgg, apply):
    _, variables = vgg
    options = {"pre_nms_top_n": (20, 20), "post_nms_top_n": (6, 6), "anchor_sizes": (8, 16)}
    faster, other = drawn("fasterrcnn_vgg16", **VGG, **options)
    images, sizes, _ = pictures()
    images = images / np.float32(255)
    sizes[1] = 50, 40
    joined = {
        **variables,
        "params": {**variables["params"], "rpn": other["params"]["rpn"]},
    }
    expected = jax.jit(faster.apply)(joined, images, sizes)
    found = apply(variables, images, sizes, expected.proposals.boxes)
    np.testing.assert_allclose(found.class_logits, expected.class_logits, atol=1e-5)
    np.testing.assert_allclose(found.box_deltas, expected.box_deltas, atol=1e-5)


def test_without_proposals_the_picture_is_the_one(vgg, apply):
    _, variables = vgg
    images, _, proposals = pictures()
    images, sizes = images / np.float32(255), np.array([[64, 64], [33, 50]], np.int32)
    proposals[:, 0] = [[0, 0, 64, 64], [0, 0, 50, 33]]
    implied = apply(variables, images, sizes)
    assert implied.class_logits.shape == (2, 1, 4)
    expected = apply(variables, images, sizes, proposals)
    implied, expected = (np.asarray(x.class_logits)[:, 0] for x in (implied, expected))
    np.testing.assert_allclose(implied, expected, atol=1e-6)


def test_one_map_with_either_pooling(vgg, apply):
    images, sizes, proposals = pictures()
    images = images / np.float32(255)
    aligned = jax.jit(thin(get_model("fastrcnn_vgg16", **VGG, pooling="align")).apply)
    found = aligned(vgg[1], images, sizes, proposals).class_logits
    assert not np.allclose(found, apply(vgg[1], images, sizes, proposals).class_logits)

    options = {**SLIM, "fpn_features": None, "stages": ("layer3",), "stem": "small"}
    model = get_model("fastrcnn_resnet18_fpn", **options, pooling="pool")
    assert model.roi_heads.strides == (4,)
    shapes = shapes_of(model)
    assert shapes["params"]["roi_heads"]["box_head"]["fc6"]["kernel"].shape == (7 * 7 * 32, 16)
    assert "fpn" not in shapes["params"]["backbone"]
    with pytest.raises(ValueError, match="expected one of the stages without a pyramid"):
        get_model("fastrcnn_resnet18_fpn", fpn_features=None)
    model = get_model("fastrcnn_resnet18_fpn", **SLIM, pooling="pool")
    with pytest.raises(ValueError, match="expected one map for RoIPool"):
        shapes_of(model)


def test_svd_of_full_rank_says_the_same_and_a_lower_one_does_less(vgg, apply):
    _, variables = vgg
    images, sizes, proposals = pictures()
    images = images / np.float32(255)
    full = (32, 32)

    def outputs_of(ranks):
        factored = thin(get_model("fastrcnn_vgg16", **VGG, svd_ranks=ranks))
        params = {"params": truncate_svd(variables["params"], ranks)}
        shapes = shapes_of(factored)
        assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
        lowered = jax.jit(factored.apply).lower(params, images, sizes, proposals)
        head = sum(x.size for x in jax.tree.leaves(params["params"]["roi_heads"]["box_head"]))
        return lowered.compile()(params, images, sizes, proposals), lowered, head

    expected = apply(variables, images, sizes, proposals)
    same, _, _ = outputs_of(full)
    for found, want in zip(same, expected, strict=True):
        np.testing.assert_allclose(found, want, atol=1e-5)
    fewer, lowered, numbers = outputs_of((4, 4))
    assert not np.allclose(fewer.class_logits, expected.class_logits, atol=1e-5)
    before = apply.lower(variables, images, sizes, proposals).cost_analysis()
    after = lowered.cost_analysis()
    # Of 12 RoIs: 2 (u v - t (u + v)) each, of both layers.
    saved = 12 * 2 * (7 * 7 * 8 * 32 - 4 * (7 * 7 * 8 + 32) + 32 * 32 - 4 * 64)
    assert before["flops"] - after["flops"] == pytest.approx(saved, rel=0.05)
    assert numbers == 4 * (7 * 7 * 8 + 32) + 4 * 64 + 2 * 32


def test_svd_keeps_the_largest_values_and_refuses_what_cannot_be(vgg):
    _, variables = vgg
    params = variables["params"]
    kernel = np.asarray(params["roi_heads"]["box_head"]["fc7"]["kernel"])
    layers = truncate_svd(params, (32, 3))["roi_heads"]["box_head"]["fc7"]
    error = kernel - np.asarray(layers["0"]["kernel"] @ layers["1"]["kernel"])
    values = np.linalg.svd(kernel, compute_uv=False)
    assert np.linalg.norm(error, 2) == pytest.approx(values[3], rel=1e-4)
    with pytest.raises(ValueError, match="fc6: expected a rank of 1 to 32, got 33"):
        truncate_svd(params, (33, 3))


def test_what_is_found_is_from_valid_proposals_and_nothing_recompiles(slim, detect):
    model, variables = slim
    assert isinstance(model, FastRCNN)
    images, sizes, proposals = pictures()
    valid = np.ones((2, 6), bool)
    valid[:, 4:] = False
    first = jax.tree.map(np.asarray, detect(variables, images, sizes, proposals, valid))
    assert first.valid.any()
    assert (first.boxes >= 0).all()
    assert (first.boxes <= 64).all()
    assert first.labels.max() <= 2
    for poison in (np.nan, 1e9):
        proposals[:, 4:] = poison
        again = detect(variables, images, sizes, proposals, valid)
        for found, want in zip(again, first, strict=True):
            np.testing.assert_array_equal(found, want)
    nothing = detect(variables, images, sizes, proposals, np.zeros((2, 6), bool))
    assert not np.asarray(nothing.valid).any()
    assert not np.asarray(nothing.scores).any()
    assert detect._cache_size() == 1


def test_one_without_proposals_is_refused():
    with pytest.raises(ValueError, match=r"given proposals \(.*FastRCNN.*\), got YOLOv1"):
        make_proposal_detector(get_model("yolov1_tiny"))
