"""The course's networks: logits and all gradients, from the same weights and real pictures."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

from jaxvision.losses import classification_loss
from jaxvision.models import get_model

from .tensors import assert_close, from_nchw, linen_params, to_nchw, to_torch
from .torch_models import GarmentClassifier, NeuralNetwork

MODELS = {  # name, options, torch's class, what fc1 sees flattened
    "garment classifier": ("lenet", {}, GarmentClassifier, (16, 4, 4)),
    "quickstart": ("mlp", {}, NeuralNetwork, (1, 28, 28)),
}


@pytest.mark.parametrize("model", MODELS)
def test_logits_loss_and_gradients(pictures, model):
    name, options, torch_class, flattened = MODELS[model]
    torch.manual_seed(0)
    theirs = torch_class()
    params = linen_params(theirs.named_parameters(), flattened)
    images, labels = pictures.images[:32], pictures.labels[:32]
    inputs = (to_nchw(images).float() / 255 - 0.5) / 0.25
    logits = theirs(inputs)
    loss = nn.CrossEntropyLoss()(logits, to_torch(labels).long())
    loss.backward()
    ours = get_model(name, **options)
    ours_logits = jax.jit(ours.apply)({"params": params}, from_nchw(inputs))
    np.testing.assert_allclose(ours_logits, logits.detach().numpy(), rtol=1e-5, atol=2e-6)

    loss_fn = classification_loss(ours, mean=0.5, std=0.25)
    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    batch = {"image": images, "label": labels}
    (value, (_, metrics)), grads = grad_fn(params, {}, batch, jax.random.key(0))
    assert float(value) == pytest.approx(loss.item(), rel=1e-6)
    correct = (logits.argmax(1).numpy() == labels).mean()
    assert float(metrics["accuracy"]) == pytest.approx(correct)
    gradients = ((n, p.grad) for n, p in theirs.named_parameters())
    assert_close(grads, linen_params(gradients, flattened), 1e-5)


def test_the_exercise_another_network_on_colour_pictures():
    """Other widths, kernels and depth, and pictures that are neither square nor of one channel."""
    torch.manual_seed(0)
    layers = {
        "conv1": nn.Conv2d(3, 4, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(4, 8, 5, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(8 * 3 * 5, 17),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(17, 7),
    }
    theirs = nn.Sequential()
    for name, layer in layers.items():
        theirs.add_module(name, layer)
    ours = get_model(
        "lenet", num_classes=7, features=(4, 8), kernel_sizes=(3, 5), hidden=(17,), padding=1
    )
    images = torch.rand(5, 3, 17, 24)
    params = linen_params(theirs.named_parameters(), (8, 3, 5))
    logits = jax.jit(ours.apply)({"params": params}, from_nchw(images))
    np.testing.assert_allclose(logits, theirs(images).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_mlp_on_colour_pictures():
    torch.manual_seed(0)
    theirs = nn.Sequential()
    theirs.add_module("flatten", nn.Flatten())
    theirs.add_module("fc1", nn.Linear(3 * 5 * 6, 9))
    theirs.add_module("relu", nn.ReLU())
    theirs.add_module("fc2", nn.Linear(9, 4))
    images = torch.rand(5, 3, 5, 6)
    params = linen_params(theirs.named_parameters(), (3, 5, 6))
    ours = get_model("mlp", num_classes=4, hidden=(9,))
    logits = jax.jit(ours.apply)({"params": params}, from_nchw(images))
    np.testing.assert_allclose(logits, theirs(images).detach().numpy(), rtol=1e-5, atol=1e-6)
