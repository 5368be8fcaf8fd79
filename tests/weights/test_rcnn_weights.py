"""Weights of Faster R-CNNs: older names, frozen normalisation, a new number of classes, COCO's."""

import jax
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model
from jaxvision.weights import find_weights, from_torch, load_weights, to_torch, write_safetensors
from jaxvision.weights.convert import template_leaves
from jaxvision.weights.hub import _say_what_they_need
from jaxvision.weights.rules import find_rules, nested

NAME = "fasterrcnn_resnet18_fpn"
SLIM = {"width": 8, "fpn_features": 8, "representation_size": 16}
SLIM["anchor_sizes"] = ((16,), (32,), (64,), (96,))
VGG = {"widths": (8, 8, 8, 8, 8), "hidden": 16}


def drawn(name, seed=0, **options):
    """Variables as a conversion expects them, all numbers different, without running init."""
    rng = np.random.default_rng(seed)
    return nested(
        {
            (leaf.collection, *leaf.path): np.asarray(
                rng.normal(size=leaf.shape) if leaf.shape else 3, leaf.dtype
            )
            for leaf in template_leaves(name, **options)
        }
    )


def assert_of_the_model(variables, name, **options):
    like = abstract_variables(get_model(name, **options), (64, 64, 3))
    kinds = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (variables, like))
    assert next(kinds) == next(kinds)


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("frozen", [True, False])
def test_there_and_back(frozen):
    options = {**SLIM, "frozen_norm": frozen, "anchor_sizes": [[16], [32], [64], [96]]}
    variables = drawn(NAME, **options)
    assert_of_the_model(variables, NAME, **options)
    state = to_torch(NAME, variables, **options)
    assert {"backbone.body.bn1.weight", "rpn.head.conv.0.0.weight"} <= set(state)
    assert "roi_heads.box_predictor.cls_score.bias" in state
    assert ("backbone.body.bn1.num_batches_tracked" in state) is not frozen
    assert_equal(from_torch(NAME, state, **options), variables)


def test_frozen_normalisation_takes_the_file_of_one_that_is_not():
    trained = to_torch(NAME, drawn(NAME, frozen_norm=False, **SLIM), frozen_norm=False, **SLIM)
    variables = from_torch(NAME, trained, frozen_norm=True, **SLIM)
    stats = variables["batch_stats"]["backbone"]["body"]["bn1"]
    np.testing.assert_array_equal(stats["scale"], trained["backbone.body.bn1.weight"])
    stray = {**trained, "backbone.body.bn9.num_batches_tracked": np.zeros((), np.int64)}
    with pytest.raises(UserError, match=r"unexpected  backbone\.body\.bn9\.num_batches_tracked"):
        from_torch(NAME, stray, frozen_norm=True, **SLIM)


def test_names_from_before_torchvision_0_13():
    variables = drawn(NAME, frozen_norm=True, **SLIM)
    state = to_torch(NAME, variables, frozen_norm=True, **SLIM)
    old = {}
    for name, array in state.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        if "_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        old[name] = array
    assert "backbone.fpn.inner_blocks.3.weight" in old
    assert len(set(old) - set(state)) == 2 + 16
    assert_equal(from_torch(NAME, old, frozen_norm=True, **SLIM), variables)


def test_a_new_number_of_classes_renews_both_heads(tmp_path, capsys):
    variables = drawn("fasterrcnn_vgg16", num_classes=21, **VGG)
    file = tmp_path / "twenty.safetensors"
    write_safetensors(file, to_torch("fasterrcnn_vgg16", variables, num_classes=21, **VGG))
    fresh = load_weights("fasterrcnn_vgg16", file, num_classes=4, **VGG)
    assert "fresh head for 4 classes (the file has 21)" in capsys.readouterr().out
    heads = fresh["params"]["roi_heads"].pop("box_predictor")
    assert heads["cls_score"]["kernel"].shape == (16, 4)
    assert heads["bbox_pred"]["kernel"].shape == (16, 16)
    assert (
        0 < np.abs(heads["bbox_pred"]["kernel"]).max() <= 0.25
    )  # torch's draw, and not the file's
    variables["params"]["roi_heads"].pop("box_predictor")
    assert_equal(fresh, variables)


def test_what_is_published():
    first, small = (
        find_weights(f"fasterrcnn_{n}") for n in ("resnet50_fpn", "mobilenet_v3_large_320_fpn")
    )
    assert (first.name, first.task, first.metrics) == ("COCO_V1", "detection", {"AP": 37.0})
    assert len(first.class_names) == 90
    assert first.class_names.count("N/A") == 10
    assert (first.class_names[0], first.class_names[12]) == ("person", "stop sign")
    assert find_rules(first.model).background
    assert small.preprocessing.as_meta() == {
        "kind": "shortest_side",
        "shortest": 320,
        "longest": 640,
        "multiple": 32,
        "antialias": False,
    }


def test_that_coco_v1_wants_no_epsilon_is_said(capsys):
    assert find_weights("fasterrcnn_resnet50_fpn").options == {"norm_eps": 0.0}
    for weights in ("DEFAULT", "COCO_V1", "files/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"):
        _say_what_they_need("fasterrcnn_resnet50_fpn", weights, {})
        assert "trained with norm_eps=0.0: give get_model that too" in capsys.readouterr().out
    _say_what_they_need("fasterrcnn_resnet50_fpn", "COCO_V1", {"norm_eps": 0.0})
    _say_what_they_need("fasterrcnn_resnet50_fpn", "some.pth", {})
    _say_what_they_need("fasterrcnn_resnet50_fpn_v2", "COCO_V1", {})
    assert not capsys.readouterr().out
