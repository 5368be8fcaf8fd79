"""torchvision's classifiers: logits, input gradients and sizes, from random converted weights.

The weights pass through a file that the real torch writes. One VGG and one ResNet run in every
suite; the others, of which some need half a minute, in `make parity-all`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxvision.models import get_model, list_models
from jaxvision.weights import from_torch, read_torch

from .tensors import from_nchw, to_nchw
from .torchvision_cpu import torchvision

IN_EVERY_SUITE = ("resnet18", "vgg11_bn")
NAMES = [n for n in list_models() if hasattr(torchvision.models, n)]
DIRECTION = np.random.default_rng(1).normal(size=(1, 1000)).astype(np.float32)


def torch_model(name: str, **options) -> torch.nn.Module:
    """torchvision's own network, with its initialisation and non-trivial BatchNorm."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(**options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(17)
    return model.eval()


def pictures(size: int, count: int = 1) -> np.ndarray:
    rng = np.random.default_rng(size)
    return rng.normal(size=(count, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "name",
    [n if n in IN_EVERY_SUITE else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_logits_input_gradients_and_parameter_count(name, tmp_path):
    reference = torch_model(name)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    variables = jax.device_put(from_torch(name, read_torch(tmp_path / "weights.pth")))
    count = sum(p.numel() for p in reference.parameters())
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
    x = pictures(224)
    with torch.no_grad():
        expected = reference(to_nchw(x)).numpy()
    logits = jax.jit(functools.partial(get_model(name).apply, train=False))(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-3  # the weights do something
    x = pictures(97)
    logits, gradient = with_input_gradient(get_model(name), variables, x)
    expected, expected_gradient = torch_with_input_gradient(reference, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    # Where a ReLU or a pool is within rounding of a tie the gradient jumps: torch's own float32
    # is up to 3e-3 away from its float64.
    assert relative_error(gradient, expected_gradient) < 2e-2
    with jax.enable_x64(True):
        logits, gradient = with_input_gradient(get_model(name, dtype="float64"), variables, x)
    expected, expected_gradient = torch_with_input_gradient(reference.double(), x)
    assert relative_error(logits, expected) < 1e-6
    assert relative_error(gradient, expected_gradient) < 1e-6


def with_input_gradient(model, variables, x):
    def weighted(x, variables):
        logits = model.apply(variables, x, train=False)
        return (logits * DIRECTION).sum(), logits

    gradient_fn = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    (_, logits), gradient = gradient_fn(jnp.asarray(x, model.dtype), variables)
    return np.asarray(logits), np.asarray(gradient)


def torch_with_input_gradient(model, x):
    dtype = next(model.parameters()).dtype
    x = to_nchw(x).to(dtype).requires_grad_()
    logits = model(x)
    (logits * torch.tensor(DIRECTION, dtype=dtype)).sum().backward()
    return logits.detach().numpy(), from_nchw(x.grad)


def relative_error(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "alexnet"])
def test_jitted_logits_in_training_mode_without_dropout(name):
    """BatchNorm by the batch's own statistics, and the statistics that it then stores."""
    options = {} if name == "resnet18" else {"dropout": 0.0}
    reference = torch_model(name, **options).train()
    state = {k: v.numpy().copy() for k, v in reference.state_dict().items()}
    variables = from_torch(name, state)
    model = get_model(name, **options)
    x = pictures(97, count=3)
    with torch.no_grad():
        expected = reference(to_nchw(x)).numpy()
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, updated = apply(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    stored = {k: v.numpy() for k, v in reference.state_dict().items()}
    if "batch_stats" not in variables or not variables["batch_stats"]:
        return
    wanted = from_torch(name, stored)["batch_stats"]
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(updated["batch_stats"]), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )
