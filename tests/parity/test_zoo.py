"""torchvision's classifiers: logits, input gradients and sizes, from random converted weights.

The weights pass through a file that the real torch writes. A ResNet and a narrow VGG run in every
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

NARROW = {"widths": (8, 16, 16, 32, 32), "hidden": 64}  # our options; torchvision's VGG has none
NAMES = [n for n in list_models() if hasattr(torchvision.models, n)]
DIRECTION = np.random.default_rng(1).normal(size=(1, 1000)).astype(np.float32)


def narrow_vgg11_bn(dropout=0.5) -> torch.nn.Module:
    a, b, c, d, e = NARROW["widths"]
    widths = [a, "M", b, "M", c, c, "M", d, d, "M", e, e, "M"]
    with torch.device("meta"):  # the classifier's hundred million parameters are not drawn
        model = torchvision.models.VGG(torch.nn.Identity(), init_weights=False)
    model.features = torchvision.models.vgg.make_layers(widths, batch_norm=True)
    layers, wide = [], e * 7 * 7
    for _ in range(2):
        dense = torch.nn.Linear(wide, NARROW["hidden"])
        layers += [dense, torch.nn.ReLU(), torch.nn.Dropout(dropout)]
        wide = NARROW["hidden"]
    model.classifier = torch.nn.Sequential(*layers, torch.nn.Linear(wide, 1000))
    return model


def torch_model(name: str, *, narrow: bool = False, **options) -> torch.nn.Module:
    """torchvision's own network, with its initialisation and non-trivial BatchNorm."""
    torch.manual_seed(0)
    build = narrow_vgg11_bn if narrow else getattr(torchvision.models, name)
    return unsettled(build(**options))


def unsettled(model: torch.nn.Module) -> torch.nn.Module:
    """The network with BatchNorm that does something, for inference."""
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
    ("name", "narrow"),
    [("resnet18", False), ("vgg11_bn", True)]
    + [pytest.param(n, False, marks=pytest.mark.slow) for n in NAMES if n != "resnet18"],
)
def test_logits_input_gradients_and_parameter_count(name, narrow, tmp_path):
    reference, options = torch_model(name, narrow=narrow), NARROW if narrow else {}
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    variables = jax.device_put(from_torch(name, read_torch(tmp_path / "weights.pth"), **options))
    count = sum(p.numel() for p in reference.parameters())
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
    x = pictures(224)
    with torch.no_grad():
        expected = reference(to_nchw(x)).numpy()
    model = get_model(name, **options)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-3  # the weights do something
    x = pictures(97)
    logits, gradient = with_input_gradient(model, variables, x)
    expected, expected_gradient = torch_with_input_gradient(reference, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    # Where a ReLU or a pool is within rounding of a tie the gradient jumps: torch's own float32
    # is up to 3e-3 away from its float64.
    assert relative_error(gradient, expected_gradient) < 2e-2
    with jax.enable_x64(True):
        double = get_model(name, **options, dtype="float64")
        logits, gradient = with_input_gradient(double, variables, x)
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
    no_dropout = {} if name == "resnet18" else {"dropout": 0.0}
    narrow = NARROW if name == "vgg11_bn" else {}
    reference = torch_model(name, narrow=bool(narrow), **no_dropout).train()
    state = {k: v.numpy().copy() for k, v in reference.state_dict().items()}
    variables = from_torch(name, state, **narrow)
    model = get_model(name, **narrow, **no_dropout)
    x = pictures(97, count=3)
    with torch.no_grad():
        expected = reference(to_nchw(x)).numpy()
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, updated = apply(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    stored = {k: v.numpy() for k, v in reference.state_dict().items()}
    if "batch_stats" not in variables or not variables["batch_stats"]:
        return
    wanted = from_torch(name, stored, **narrow)["batch_stats"]
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(updated["batch_stats"]), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path)
        )
