"""Faster R-CNNs' names, shapes and counts are torchvision's, and what is known of its weights."""

import math

import numpy as np
import pytest
import torch

from jaxvision.weights import find_weights, from_torch, read_torch, to_torch, write_torch
from jaxvision.weights.catalog import CATALOG
from jaxvision.weights.convert import template_leaves

from .torch_detectors import SLIM as OPTIONS
from .torch_detectors import by_name, detection, slim_resnet18, state_of
from .torchvision_cpu import torchvision

NAMES = [name for name in CATALOG if name.startswith("fasterrcnn")]


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_parameter_counts_are_torchvisions(name):
    with torch.device("meta"):  # names and shapes without the numbers
        model = by_name(name)
    options = {} if name.endswith("_v2") else {"frozen_norm": False}
    theirs = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert {
        leaf.torch_name: leaf.torch_shape for leaf in template_leaves(name, **options)
    } == theirs
    # With frozen normalisation its scales are no parameters, and so it is counted.
    ours = sum(math.prod(x.shape) for x in template_leaves(name) if x.collection == "params")
    assert ours == find_weights(name).num_params


@pytest.mark.parametrize("name", NAMES)
def test_the_catalog_is_torchvisions(name):
    published = torchvision.models.get_model_weights(name)
    assert [w.name for w in published] == list(CATALOG[name]) == ["COCO_V1"]
    ours, theirs = find_weights(name), published.COCO_V1
    assert ours.url == theirs.url
    assert ours.num_params == theirs.meta["num_params"]
    assert ("__background__", *ours.class_names) == tuple(theirs.meta["categories"])
    assert ours.metrics == {"AP": theirs.meta["_metrics"][ours.data]["box_map"]}
    with torch.device("meta"):
        transform = by_name(name).transform
    preprocessing = ours.preprocessing
    assert (preprocessing.shortest,) == transform.min_size
    assert preprocessing.longest == transform.max_size
    assert preprocessing.multiple == transform.size_divisible
    assert list(preprocessing.mean) == transform.image_mean
    assert list(preprocessing.std) == transform.image_std


def test_there_and_back_is_bit_equal(tmp_path):
    """torch writes, we read, convert, convert back and write, and torch loads it strictly."""
    torch.manual_seed(0)
    reference = slim_resnet18()
    expected = reference.state_dict()
    torch.save(expected, tmp_path / "theirs.pth")
    options = {**OPTIONS, "num_classes": 7, "frozen_norm": True}
    variables = from_torch(
        "fasterrcnn_resnet18_fpn", read_torch(tmp_path / "theirs.pth"), **options
    )
    write_torch(tmp_path / "ours.pth", to_torch("fasterrcnn_resnet18_fpn", variables, **options))
    found = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    reference.load_state_dict(found, strict=True)


def test_torchvisions_older_names_become_what_it_calls_them_now():
    """Its own rule, which its modules apply when they load a file without a version."""
    model = slim_resnet18()
    state = state_of(model)
    old = {n.replace("rpn.head.conv.0.0", "rpn.head.conv"): x for n, x in state.items()}
    for block in ("inner_blocks", "layer_blocks"):
        for i in range(4):
            for kind in ("weight", "bias"):
                old[f"backbone.fpn.{block}.{i}.{kind}"] = old.pop(
                    f"backbone.fpn.{block}.{i}.0.{kind}"
                )
    model.load_state_dict({n: torch.from_numpy(x) for n, x in old.items()})
    options = {**OPTIONS, "num_classes": 7, "frozen_norm": True}
    first, second = (
        to_torch(
            "fasterrcnn_resnet18_fpn",
            from_torch("fasterrcnn_resnet18_fpn", x, **options),
            **options,
        )
        for x in (old, state)
    )
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_overwritten_epsilon_is_torchvisions(monkeypatch):
    """That it is set to 0 for COCO_V1 of the first version, and for no other."""
    seen = []
    monkeypatch.setattr(detection.faster_rcnn, "overwrite_eps", lambda model, eps: seen.append(eps))
    monkeypatch.setattr(detection.FasterRCNN, "load_state_dict", lambda self, state: None)
    for name in NAMES:
        weights = torchvision.models.get_model_weights(name).COCO_V1
        monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: {})
        seen.clear()
        with torch.device("meta"):
            getattr(detection, name)(weights=weights)
        assert find_weights(name).options == ({"norm_eps": 0.0} if seen == [0.0] else {})
