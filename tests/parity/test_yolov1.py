"""yolov1_tiny and its loss against the bench's plain PyTorch: outputs, terms, gradients, a path."""

import importlib
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from random_variables import random_variables

from jaxvision.losses import yolov1_loss
from jaxvision.models import get_model

from .tensors import from_nchw, relative_errors, to_nchw

BENCH = Path(__file__).parents[2] / "experiments" / "bench"
SIZE, STEPS = 64, 8


@pytest.fixture(scope="module")
def bench():
    """The two sides of the benchmark, imported as its scripts are."""
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module("yolo"), importlib.import_module("torch_yolo")
    finally:
        sys.path.remove(str(BENCH))
        sys.modules.pop("yolo", None)  # experiments/ has a yolo.py too


@pytest.fixture(scope="module")
def started(bench):
    """The same weights, with statistics that are not trivial, and batches, for both sides."""
    ours, theirs = bench
    batches = ours.made_up_batches(0, 3, 4, SIZE)
    model = get_model("yolov1_tiny")
    # At seed 0 a unit is within rounding of its kink, and the gradients of two float32 jump apart.
    variables = random_variables(model, (SIZE, SIZE, 3), seed=1)
    reference = theirs.TinyYOLO()
    weights = ours.torch_weights(variables)
    reference.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model, variables, reference, batches


def in_torch(batch):
    names = ("boxes", "labels", "box_valid")
    image = to_nchw(batch["image"]).to(torch.float32) / 255
    return (image - 0.5) / 0.25, [torch.from_numpy(batch[name]) for name in names]


def test_outputs(started):
    model, variables, reference, batches = started
    image = batches["image"][0]
    x, _ = in_torch({k: v[0] for k, v in batches.items()})
    with torch.no_grad():
        expected = from_nchw(reference.eval()(x))
    got = jax.jit(model.apply)(variables, (image.astype(np.float32) / 255 - 0.5) / 0.25)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_loss", ["squared_error", "cross_entropy"])
def test_loss_terms_and_gradients(bench, started, class_loss):
    ours, theirs = bench
    model, variables, reference, batches = started
    batch = {k: v[1] for k, v in batches.items()}
    loss_fn = yolov1_loss(model, mean=0.5, std=0.25, class_loss=class_loss)
    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (_, (_, metrics)), grads = grad_fn(
        variables["params"], variables["batch_stats"], batch, jax.random.key(0)
    )
    reference.train().zero_grad()
    statistics = {k: v.clone() for k, v in reference.state_dict().items()}
    x, objects = in_torch(batch)
    terms = theirs.yolo_loss(reference(x), objects, (SIZE, SIZE), 10, class_loss)
    terms.sum().backward()
    expected = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    reference.load_state_dict(statistics)
    np.testing.assert_allclose(
        [float(metrics[name]) for name in theirs.TERMS], terms.detach().numpy(), rtol=1e-4
    )
    errors = relative_errors(ours.torch_weights({"params": grads}), expected)
    assert max(errors.values()) < 1e-3, errors


def test_a_short_path(bench, tmp_path):
    """Eight steps of SGD of both sides of the benchmark, from the same weights, in float64."""
    ours, theirs = bench
    batches = ours.made_up_batches(0, 3, 4, SIZE // 2)
    with jax.enable_x64(True):
        workload = ours.Workload(batches, 0, "squared_error", jnp.float64)
        losses = workload.losses(STEPS)
    np.savez(tmp_path / "weights.npz", **ours.torch_weights(workload.start))
    np.savez(tmp_path / "batches.npz", **batches)
    reference = theirs.Workload(tmp_path, "cpu", "squared_error", double=True)
    expected = np.array(reference.losses(STEPS))
    assert ours.largest_difference(losses, expected) < 1e-6
    assert losses[6].sum() < 0.9 * losses[0].sum()  # of the same batch, the first of three
    weights = ours.torch_weights({"params": workload.params, "batch_stats": workload.batch_stats})
    for name, tensor in reference.model.state_dict().items():
        error = np.linalg.norm(weights[name] - tensor.numpy()) / np.linalg.norm(tensor.numpy())
        assert error < 1e-6, name


def test_cells_boxes_and_responsibility_of_hostile_scenes(bench):
    """Random outputs far from anything: all terms, with crowded cells and centres on lines."""
    _, theirs = bench
    rng = np.random.default_rng(3)
    b, m = 20, 6
    low = rng.integers(0, 6, (b, m, 2)) * 8.0
    boxes = np.concatenate([low, low + rng.integers(1, 3, (b, m, 2)) * 8.0], axis=2)
    boxes = boxes.clip(0, SIZE).astype(np.float32)
    labels = rng.integers(0, 10, (b, m)).astype(np.int32)
    box_valid = rng.random((b, m)) < 0.8
    outputs = rng.normal(scale=2, size=(b, 4, 4, 20)).astype(np.float32)

    class Given(nn.Module):
        num_classes: int = 10
        bounded: bool = True

        @nn.compact
        def __call__(self, x, *, train: bool):
            return self.param("outputs", nn.initializers.zeros, (b, 4, 4, 20))

    batch = {"image": np.zeros((b, SIZE, SIZE, 3), np.uint8), "boxes": boxes, "labels": labels}
    loss_fn, params = yolov1_loss(Given()), {"outputs": outputs}
    _, (_, metrics) = jax.jit(loss_fn)(
        params, {}, {**batch, "box_valid": box_valid}, jax.random.key(0)
    )
    objects = [torch.from_numpy(a) for a in (boxes, labels, box_valid)]
    terms = theirs.yolo_loss(to_nchw(outputs), objects, (SIZE, SIZE), 10)
    np.testing.assert_allclose([float(metrics[n]) for n in theirs.TERMS], terms.numpy(), rtol=1e-4)
