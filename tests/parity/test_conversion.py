"""Conversion of torchvision's own networks, and what is known of its published weights."""

import math

import numpy as np
import pytest
import torch

from jaxvision.weights import find_weights, from_torch, read_torch, to_torch, write_torch
from jaxvision.weights.catalog import CATALOG
from jaxvision.weights.convert import template_leaves

from .torchvision_cpu import torchvision

QUICK = (
    "alexnet",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "mobilenet_v3_large",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "vgg11_bn",
    "vgg16",
)
SMALL = ("resnet18", "resnext50_32x4d")


TORCHVISIONS = [name for name in CATALOG if find_weights(name).task != "detection"]


def slow_but(names):
    """All models; those not among `names` differ from them in numbers only, and are slow."""
    return [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in TORCHVISIONS]


def torchvision_model(name, device="cpu"):
    options = {}
    if name.startswith(("deeplab", "fcn")):  # or its backbone would be downloaded
        options = {"weights_backbone": None, "aux_loss": True}
    with torch.device(device):
        return torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("name", slow_but(QUICK))
def test_names_shapes_and_parameter_counts_are_torchvisions(name):
    model = torchvision_model(name, "meta")  # names and shapes without the numbers
    theirs = {n: (tuple(t.shape), t.is_floating_point()) for n, t in model.state_dict().items()}
    leaves = template_leaves(name)
    assert {
        leaf.torch_name: (leaf.torch_shape, leaf.dtype.kind == "f") for leaf in leaves
    } == theirs
    ours = sum(math.prod(leaf.shape) for leaf in leaves if leaf.collection == "params")
    assert ours == find_weights(name).num_params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", slow_but(SMALL))
def test_there_and_back_is_bit_equal(name, tmp_path):
    """torch writes, we read, convert, convert back and write, and torch loads it strictly."""
    torch.manual_seed(0)
    reference = torchvision_model(name)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(123_456)
    expected = reference.state_dict()
    first = next(iter(expected.values())).reshape(-1)
    odd = np.array([0x7FC12345, 0x80000000, 0xFF800000, 1], np.uint32).view(np.float32)
    first[:4] = torch.from_numpy(odd)
    torch.save(expected, tmp_path / "theirs.pth")

    back = to_torch(name, from_torch(name, read_torch(tmp_path / "theirs.pth")))
    assert set(back) == set(expected)
    write_torch(tmp_path / "ours.pth", back)
    del back
    found = torch.load(tmp_path / "ours.pth", weights_only=True)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    reference.load_state_dict(found, strict=True)


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_the_catalog_is_torchvisions(name):
    published = torchvision.models.get_model_weights(name)
    assert {w.name for w in published} == set(CATALOG[name])
    assert find_weights(name).name == published.DEFAULT.name
    for theirs in published:
        ours, presets = find_weights(name, theirs.name), theirs.transforms()
        assert ours.url == theirs.url
        assert ours.num_params == theirs.meta["num_params"]
        assert ours.class_names == tuple(theirs.meta.get("categories") or ())
        metrics = theirs.meta["_metrics"][ours.data]
        assert ours.metrics == {k: v for k, v in metrics.items() if not math.isnan(v)}
        preprocessing = ours.preprocessing
        assert [preprocessing.resize_size] == presets.resize_size
        if preprocessing.crop_size is None:
            assert not hasattr(presets, "crop_size")
        else:
            assert [preprocessing.crop_size] == presets.crop_size
        assert list(preprocessing.mean) == presets.mean
        assert list(preprocessing.std) == presets.std
        assert preprocessing.interpolation == presets.interpolation.value
        assert preprocessing.antialias is presets.antialias
