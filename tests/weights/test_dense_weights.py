"""Weights of RetinaNet, FCOS and SSD: there and back, new classes, a classifier's backbone."""

import numpy as np
import pytest

from jaxvision.predict.preparation import prepare
from jaxvision.predict.published import _expected
from jaxvision.weights import find_weights, from_torch, load_weights, put_backbone, to_torch
from jaxvision.weights.convert import count_by_shape, count_classes, template_leaves
from jaxvision.weights.rules import find_rules
from jaxvision.weights.torch_writer import write_safetensors

from .test_rcnn_weights import assert_equal, assert_of_the_model, drawn

PYRAMID = {"width": 8, "fpn_features": 8, "head_depth": 2}
VGG = {"widths": (8, 8, 8, 8, 8), "fc_features": 16, "extra_features": (8, 8, 8, 8)}
LITE = {"width_mult": 0.1, "extra_features": (8, 8, 8, 8)}
KINDS = {  # name: (options, one of the layers that tell the classes apart)
    "retinanet_resnet18_fpn": (PYRAMID, "head.classification_head.cls_logits"),
    "ssdlite320_mobilenet_v3_large": (LITE, "head.classification_head.module_list.5.1"),
}


@pytest.mark.parametrize("name", ["fcos_resnet50_fpn", "ssd300_vgg16", *KINDS])
def test_heads_are_known(name):
    options, _ = KINDS.get(name, ({}, None))
    shapes = {leaf.torch_name: leaf.torch_shape for leaf in template_leaves(name, **options)}
    assert count_by_shape(name, shapes) == 91
    rules = find_rules(name)
    assert {f"{head}.bias" for head in rules.heads} <= set(shapes)
    assert rules.background
    assert len(rules.heads) == (6 if name.startswith("ssd") else 1)


@pytest.mark.parametrize("name", KINDS)
def test_there_and_back_and_a_new_number_of_classes(name, tmp_path, capsys):
    options, torch_name = KINDS[name]
    variables = drawn(name, num_classes=7, **options)
    assert_of_the_model(variables, name, num_classes=7, **options)
    state = to_torch(name, variables, num_classes=7, **options)
    assert f"{torch_name}.weight" in state
    assert count_classes(name, state) == 7
    assert_equal(from_torch(name, state, num_classes=7, **options), variables)

    file = tmp_path / "six.safetensors"
    write_safetensors(file, state)
    fresh = load_weights(name, file, num_classes=3, **options)
    assert "fresh head for 3 classes (the file has 7)" in capsys.readouterr().out
    new = to_torch(name, fresh, num_classes=3, **options)
    heads = find_rules(name).heads
    changed = {k for k in state if not np.array_equal(state[k], new[k])}
    assert changed == {f"{h}.{leaf}" for h in heads for leaf in ("weight", "bias")}
    assert count_classes(name, new) == 3
    assert np.abs(new[f"{torch_name}.weight"]).max() < 1  # the model's draw


@pytest.mark.parametrize(
    ("detector", "options", "classifier", "body"),
    [
        ("retinanet_resnet18_fpn", PYRAMID, "resnet18", {"width": 8}),
        ("ssd300_vgg16", VGG, "vgg16", {"widths": VGG["widths"], "hidden": 8}),
        (
            "ssdlite320_mobilenet_v3_large",
            {**LITE, "reduced_tail": False},
            "mobilenet_v3_large",
            {"width_mult": 0.1},
        ),
    ],
)
def test_a_classifiers_layers_become_the_backbone(detector, options, classifier, body):
    given = drawn(classifier, seed=1, **body)
    before = drawn(detector, **options)
    after = to_torch(detector, put_backbone(before, given), **options)
    before = to_torch(detector, before, **options)
    source = to_torch(classifier, given, **body)
    places = {
        "ssd300_vgg16": {"features.21": "features.21", "features.24": "extra.0.1"},
        "ssdlite320_mobilenet_v3_large": {
            "features.12.block.0.0": "features.0.12.block.0.0",
            "features.13.block.0.0": "features.0.13.0",
            "features.13.block.1.0": "features.1.0.1.0",
            "features.16.1": "features.1.3.1",
        },
    }.get(detector, {"layer4.1.conv2": "body.layer4.1.conv2"})
    for theirs, ours in places.items():
        np.testing.assert_array_equal(after[f"backbone.{ours}.weight"], source[f"{theirs}.weight"])
    for name, array in after.items():
        same = np.array_equal(array, before[name])
        inner = name.startswith(("backbone.body", "backbone.features"))
        inner |= name.startswith("backbone.extra.0.") and name.split(".")[3] in "135"
        inner &= detector == "ssd300_vgg16" or not name.startswith("backbone.extra")
        assert same is not inner or name.endswith("num_batches_tracked"), name


def test_an_ssd_stretches_its_pictures():
    assert len(find_weights("ssd300_vgg16").class_names) == 90
    meta, names = _expected("ssd300_vgg16", "COCO_V1")
    assert (meta["task"], meta["input_shape"], len(names)) == ("detection", (300, 300, 3), 90)
    assert meta["preprocessing"] == {"kind": "resize", "size": [300, 300], "antialias": False}
    assert meta["std"] == pytest.approx((1 / 255,) * 3)
    assert _expected("ssdlite320_mobilenet_v3_large", "COCO_V1")[0]["mean"] == (0.5, 0.5, 0.5)
    checks = np.zeros((600, 900, 3), np.uint8)
    checks[::2] = 255
    prepared = prepare(checks, meta["preprocessing"], meta["input_shape"][:2])
    assert prepared.image.shape == (300, 300, 3)
    # Between a white and a black row, and not the mean of more of them.
    assert set(np.unique(prepared.image)) <= {127, 128}
    assert prepared.placement.to_original(np.float32([[0, 0, 300, 150]])).tolist() == [
        [0, 0, 900, 300]
    ]
