"""Weights of Mask R-CNN and Keypoint R-CNN: there and back, COCO's by name, other classes."""

import dataclasses
import hashlib

import numpy as np
import pytest

from jaxvision.models import abstract_variables, get_model
from jaxvision.weights import (
    catalog,
    find_weights,
    from_torch,
    load_weights,
    to_torch,
    write_safetensors,
    write_torch,
)

from .test_rcnn_weights import assert_equal, assert_of_the_model, drawn

SLIM = {"width": 8, "fpn_features": 8, "representation_size": 16}
HEADS = ("box_predictor", "mask_predictor")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maskrcnn_resnet18_fpn", {**SLIM, "anchor_sizes": (16, 32, 64, 96)}),
        ("maskrcnn_resnet50_fpn_v2", SLIM),
        ("keypointrcnn_resnet50_fpn", {**SLIM, "num_keypoints": 3}),
    ],
)
def test_there_and_back(name, options):
    variables = drawn(name, **options)
    assert_of_the_model(variables, name, **options)
    state = to_torch(name, variables, **options)
    assert_equal(from_torch(name, state, **options), variables)
    branch = ["mask_predictor.mask_fcn_logits", "mask_head.3.0"]
    if name.startswith("keypoint"):
        branch = ["keypoint_predictor.kps_score_lowres", "keypoint_head.14"]
    assert all(f"roi_heads.{layer}.weight" in state for layer in branch)


def as_published(state):
    """The names that torchvision's file of 2019 has."""
    old = {}
    for name, array in state.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        for i in range(4):
            name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        old[name] = array
    assert "roi_heads.mask_head.mask_fcn4.bias" in old
    return old


def test_a_file_of_coco_v1s_layout_is_loaded_by_its_name(serve, tmp_path, monkeypatch, capsys):
    """Frozen normalisation, names of 2019, and an epsilon of 0, which is said."""
    name = "maskrcnn_resnet50_fpn"
    variables = drawn(name, **SLIM)
    write_torch(tmp_path / "coco.pth", as_published(to_torch(name, variables, **SLIM)))
    data = (tmp_path / "coco.pth").read_bytes()
    published = find_weights(name, "COCO_V1")
    assert published.file_name == "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    served = serve({published.file_name: data})
    ours = dataclasses.replace(
        published,
        url=served.url + published.file_name,
        sha256_prefix=hashlib.sha256(data).hexdigest()[:8],
    )
    monkeypatch.setitem(catalog.CATALOG[name], "COCO_V1", ours)
    options = {**SLIM, "cache_dir": tmp_path / "cache", "progress": False}
    assert_equal(load_weights(name, "COCO_V1", **options), variables)
    assert "trained with norm_eps=0.0: give get_model that too" in capsys.readouterr().out
    assert len(served.requests) == 1
    # The tutorial's: two classes, from the cache.
    fresh = load_weights(name, "COCO_V1", num_classes=2, norm_eps=0.0, **options)
    assert len(served.requests) == 1
    assert "fresh head for 2 classes (the file has 91)" in capsys.readouterr().out
    new, old = ({k: x["params"]["roi_heads"].pop(k) for k in HEADS} for x in (fresh, variables))
    assert new["mask_predictor"]["mask_fcn_logits"]["kernel"].shape == (1, 1, 8, 2)
    assert new["box_predictor"]["bbox_pred"]["kernel"].shape == (16, 8)
    renewed = new["mask_predictor"]["conv5_mask"]["kernel"]
    assert renewed.shape == old["mask_predictor"]["conv5_mask"]["kernel"].shape
    assert not np.isclose(renewed, old["mask_predictor"]["conv5_mask"]["kernel"]).any()
    assert_equal(fresh, variables)


@pytest.mark.slow  # drawing the fresh head takes its time
def test_other_objects_keep_the_keypoints(tmp_path, capsys):
    name = "keypointrcnn_resnet50_fpn"
    variables = drawn(name, num_keypoints=3, **SLIM)
    write_safetensors(
        tmp_path / "a.safetensors", to_torch(name, variables, num_keypoints=3, **SLIM)
    )
    options = {"num_keypoints": 3, "num_classes": 4, **SLIM}
    fresh = load_weights(name, tmp_path / "a.safetensors", **options)
    assert "fresh head for 4 classes (the file has 2)" in capsys.readouterr().out
    assert fresh["params"]["roi_heads"].pop("box_predictor")["cls_score"]["bias"].shape == (4,)
    variables["params"]["roi_heads"].pop("box_predictor")
    assert_equal(fresh, variables)


def test_other_keypoints_are_fresh(tmp_path, capsys):
    name, slim = "keypointrcnn_resnet18_fpn", {**SLIM, "head_depth": 1, "head_features": 8}
    variables = drawn(name, num_keypoints=3, **slim)
    file = tmp_path / "a.safetensors"
    write_safetensors(file, to_torch(name, variables, num_keypoints=3, **slim))
    fresh = load_weights(name, file, num_keypoints=5, **slim)
    assert "fresh head for 5 keypoints (the file has 3)" in capsys.readouterr().out
    predictor = fresh["params"]["roi_heads"].pop("keypoint_predictor")["kps_score_lowres"]
    assert predictor["kernel"].shape == (4, 4, 5, 8)
    variables["params"]["roi_heads"].pop("keypoint_predictor")
    assert_equal(fresh, variables)


def test_what_is_published():
    mask = find_weights("maskrcnn_resnet50_fpn")
    assert mask.metrics == {"AP": 37.9, "mask_AP": 34.6}
    assert mask.options == {"norm_eps": 0.0}
    assert len(mask.class_names) == 90
    assert find_weights("maskrcnn_resnet50_fpn_v2").options == {}
    keypoints = find_weights("keypointrcnn_resnet50_fpn")
    assert (keypoints.name, keypoints.class_names) == ("COCO_V1", ("person",))
    assert keypoints.options == {"norm_eps": 0.0}
    assert find_weights("keypointrcnn_resnet50_fpn", "COCO_LEGACY").options == {}
    model = get_model("keypointrcnn_resnet50_fpn", **SLIM, num_keypoints=3)
    shapes = abstract_variables(model, (64, 64, 3))
    assert shapes["params"]["roi_heads"]["box_predictor"]["cls_score"]["bias"].shape == (2,)
