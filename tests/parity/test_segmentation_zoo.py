"""torchvision's segmentation networks: logits, statistics, sizes and weights, both ways.

Those on a ResNet-50 have a narrow one here; test_conversion.py counts the parameters of the whole.
"""

import copy
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from jaxvision.models import get_model
from jaxvision.weights import from_torch, read_torch, to_torch, write_torch
from jaxvision.weights.convert import template_leaves

from .tensors import from_nchw, to_nchw
from .torch_detectors import WIDTH, narrow_resnet50
from .torchvision_cpu import torchvision

segmentation = torchvision.models.segmentation
NARROW = ("fcn_resnet50", "deeplabv3_resnet50")
NAMES = [
    *NARROW,
    pytest.param("fcn_resnet101", marks=pytest.mark.slow),
    pytest.param("deeplabv3_resnet101", marks=pytest.mark.slow),
]
SIZES = ((97, 129), (65, 65))


def narrow(name: str) -> torch.nn.Module:
    """What torchvision builds, on a narrow ResNet-50: with its own the heads are always wide."""
    kind, head = {
        "fcn_resnet50": (segmentation.FCN, segmentation.fcn.FCNHead),
        "deeplabv3_resnet50": (segmentation.DeepLabV3, segmentation.deeplabv3.DeepLabHead),
    }[name]
    backbone = torchvision.models._utils.IntermediateLayerGetter(
        narrow_resnet50(replace_stride_with_dilation=[False, True, True]),
        {"layer4": "out", "layer3": "aux"},
    )
    return kind(backbone, head(32 * WIDTH, 21), segmentation.fcn.FCNHead(16 * WIDTH, 21))


def genuine(name: str, **options) -> torch.nn.Module:
    return getattr(segmentation, name)(weights=None, weights_backbone=None, **options)


@functools.cache
def torch_model(name: str) -> torch.nn.Module:
    """torchvision's network with both heads, its initialisation and non-trivial BatchNorm."""
    torch.manual_seed(0)
    model = narrow(name) if name in NARROW else genuine(name, aux_loss=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(17)
    with torch.no_grad():
        model.classifier[-1].weight *= 10  # or the pyramid's map is almost the same everywhere
    return model.eval()


def state_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def options_of(name: str) -> dict[str, int]:
    return {"width": WIDTH} if name in NARROW else {}


@functools.cache
def converted(name: str) -> dict:
    return from_torch(name, state_of(torch_model(name)), **options_of(name))


def pictures(h: int, w: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(h).normal(size=(count, h, w, 3)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_both_heads_and_parameter_count(name):
    reference, variables = torch_model(name), converted(name)
    count = sum(p.numel() for p in reference.parameters())
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
    model = get_model(name, **options_of(name))
    apply = jax.jit(functools.partial(model.apply, train=False))
    for size in SIZES:
        x = pictures(*size)
        outputs = jax.device_get(apply(variables, x))
        with torch.no_grad():
            expected = reference(to_nchw(x))
        assert outputs.keys() == expected.keys()
        for head, logits in outputs.items():
            wanted = from_nchw(expected[head])
            assert logits.shape == (1, *size, 21)
            np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4, err_msg=head)
            assert wanted.std(axis=(0, 1, 2)).max() > 1e-2  # no constant map


@pytest.mark.parametrize("name", NAMES)
def test_weights_there_and_back_are_bit_equal(name, tmp_path):
    """torch writes, we read, convert, convert back and write, and torch loads it strictly."""
    reference, options = torch_model(name), options_of(name)
    expected = reference.state_dict()
    torch.save(expected, tmp_path / "theirs.pth")
    write_torch(
        tmp_path / "ours.pth",
        to_torch(name, from_torch(name, read_torch(tmp_path / "theirs.pth"), **options), **options),
    )
    found = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key
    reference.load_state_dict(found, strict=True)


def test_without_the_auxiliary_head_the_names_are_torchvisions():
    with torch.device("meta"):  # names and shapes without the numbers; by default it has none
        without = genuine("fcn_resnet50", num_classes=5)
    leaves = template_leaves("fcn_resnet50", num_classes=5, aux_loss=False)
    theirs = {name: tuple(tensor.shape) for name, tensor in without.state_dict().items()}
    assert {leaf.torch_name: leaf.torch_shape for leaf in leaves} == theirs


@pytest.mark.parametrize("name", NARROW)
def test_training_mode_and_the_statistics_that_it_stores(name):
    """With dropout switched off on both sides, because its draws differ."""
    reference = copy.deepcopy(torch_model(name)).train()  # its statistics will move
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    x = pictures(33, 41, count=3)
    with torch.no_grad():
        expected = reference(to_nchw(x))
    stored = from_torch(name, state_of(reference), **options_of(name))["batch_stats"]
    model = get_model(name, **options_of(name))
    with no_dropout():
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        outputs, updated = jax.device_get(jax.jit(apply)(converted(name), x))
    for head, logits in outputs.items():
        wanted = from_nchw(expected[head])
        # Each normalisation by a batch of few pixels magnifies the rounding before it.
        assert np.linalg.norm(logits - wanted) < 1e-3 * np.linalg.norm(wanted)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(updated["batch_stats"]), jax.tree.leaves(stored), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )


def no_dropout():
    """Within this context linen's Dropout passes everything on."""

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            return args[0]
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)
