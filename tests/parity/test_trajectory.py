"""Same weights, same batches: hundreds of steps stay on the path that torch takes.

The whole chain of the library is in it: the order of an epoch, batches with a padded last one,
normalisation on the device, model, loss, optimiser, train step. torch's side is the course's loop
with torch's own DataLoader, which is given nothing but the pictures and each epoch's order.
"""

from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jaxvision.data import Batches
from jaxvision.losses import classification_loss
from jaxvision.models import get_model
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd
from jaxvision.train.resident import ResidentData

from .tensors import assert_close, linen_params, to_nchw, to_torch
from .torch_models import GarmentClassifier, NeuralNetwork

RTOL = 1e-4
MOVEMENT_RTOL = 1e-2  # a small rate moves the weights by a percent, which RTOL alone hides
COMPARE_EVERY = 50
TORCH_CLASSES = {"lenet": GarmentClassifier, "mlp": NeuralNetwork}
FLATTENED = {"lenet": (16, 4, 4), "mlp": (1, 28, 28)}


@dataclass(frozen=True)
class Recipe:
    """A course's training run; `pictures` is how many there are in an epoch."""

    model: str
    batch_size: int
    pictures: int
    steps: int = 300
    learning_rate: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    shuffle: bool = True
    accumulate: int = 1
    seed: int = 0

    @property
    def optimizer(self):
        names = ("momentum", "nesterov", "weight_decay")
        return {name: getattr(self, name) for name in names}


# The path is chaotic where a ReLU or a pool is within rounding of a tie: at a seed that leads past
# one, torch alone leaves its own path by 1e-3 within 300 steps when its weights are moved by one
# bit, or when it computes in float64. At these seeds it stays within 1e-5 of it.
RECIPES = {
    # 250 batches of 4 and one of 2 an epoch.
    "garment classifier": Recipe("lenet", 4, 1002, momentum=0.9, mean=0.5, std=0.5),
    # All 11,000 pictures: 171 batches of 64 and one of 56.
    "quickstart": Recipe("mlp", 64, 11_000, shuffle=False),
    # Fast enough to learn. An epoch's last batch holds 1 picture, so one of its two parts has none.
    "accumulated": Recipe(
        "lenet",
        8,
        249,
        steps=100,
        learning_rate=1e-2,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-2,
        mean=0.5,
        std=0.5,
        accumulate=2,
        seed=7,
    ),
}


@dataclass
class Path:
    """The loss of every step; params and momentum every so many steps, in linen's layout."""

    losses: list
    params: dict
    momentum: dict


def torch_model(recipe):
    torch.manual_seed(recipe.seed)
    return TORCH_CLASSES[recipe.model]()


def batches_of(recipe, pictures):
    subset = pictures.subset(np.arange(recipe.pictures))
    return Batches(subset, recipe.batch_size, seed=recipe.seed, shuffle=recipe.shuffle)


@cache
def torch_path(recipe, pictures):
    """The course's loop: DataLoader, zero_grad, forward, CrossEntropyLoss, backward, step."""
    batches = batches_of(recipe, pictures)
    images = to_nchw(batches.dataset.images).float() / 255  # ToTensor
    images = (images - recipe.mean) / recipe.std  # Normalize
    examples = TensorDataset(images, to_torch(batches.dataset.labels).long())
    model = torch_model(recipe)
    optimizer = torch.optim.SGD(model.parameters(), recipe.learning_rate, **recipe.optimizer)
    path = Path([], {}, {})
    while len(path.losses) < recipe.steps:
        epoch = len(path.losses) // batches.steps_per_epoch
        order = batches.padded_order(epoch)[: recipe.pictures].tolist()
        assert sorted(order) == list(range(recipe.pictures))
        for inputs, labels in DataLoader(examples, recipe.batch_size, sampler=order):
            optimizer.zero_grad()
            losses = []
            for part in torch.arange(len(labels)).chunk(recipe.accumulate):
                loss = nn.CrossEntropyLoss()(model(inputs[part]), labels[part])
                loss = loss * len(part) / len(labels)
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
            path.losses.append(sum(losses))
            if (step := len(path.losses)) % COMPARE_EVERY == 0:
                named = list(model.named_parameters())
                path.params[step] = linen_params(named, FLATTENED[recipe.model])
                if recipe.momentum:
                    buffers = [(name, optimizer.state[p]["momentum_buffer"]) for name, p in named]
                    path.momentum[step] = linen_params(buffers, FLATTENED[recipe.model])
            if step == recipe.steps:
                break
    return path


def our_path(recipe, pictures, *, resident):
    """The same run by jaxvision alone, its pictures on the host or resident on the device."""
    batches = batches_of(recipe, pictures)
    params = linen_params(torch_model(recipe).named_parameters(), FLATTENED[recipe.model])
    tx = sgd(recipe.learning_rate, **recipe.optimizer)
    loss_fn = classification_loss(get_model(recipe.model), mean=recipe.mean, std=recipe.std)
    data = ResidentData(batches) if resident else batches
    train_step = make_train_step(
        loss_fn, tx, accumulate=recipe.accumulate, select=data.select if resident else None
    )
    state = jax.jit(create_state, static_argnums=1)({"params": params}, tx)
    path = Path([], {}, {})
    for step in range(recipe.steps):
        state, metrics = train_step(state, data(step))
        path.losses.append(metrics["loss"])
        if (step + 1) % COMPARE_EVERY == 0:
            # Copies, because the next step donates the state's own arrays.
            path.params[step + 1] = jax.tree.map(np.array, state.params)
            if recipe.momentum:
                trace = optax.tree.get(state.opt_state, "trace")
                path.momentum[step + 1] = jax.tree.map(np.array, trace)
    path.losses = jax.device_get(path.losses)
    return path


@pytest.mark.parametrize("resident", [False, True], ids=["host", "resident"])
@pytest.mark.parametrize("name", RECIPES)
def test_parameters_momentum_and_losses_follow_torch(pictures, name, resident):
    recipe = RECIPES[name]
    theirs = torch_path(recipe, pictures)
    ours = our_path(recipe, pictures, resident=resident)
    assert len(ours.losses) == len(theirs.losses) == recipe.steps
    assert list(ours.params) == list(theirs.params)
    assert list(ours.momentum) == list(theirs.momentum)
    start = linen_params(torch_model(recipe).named_parameters(), FLATTENED[recipe.model])
    for step, params in theirs.params.items():
        when = f"after {step} steps"
        assert_close(ours.params[step], params, RTOL, f"in the params {when}")
        movements = [jax.tree.map(np.subtract, p, start) for p in (ours.params[step], params)]
        assert_close(*movements, MOVEMENT_RTOL, f"in the movement from the start {when}")
    for step, momentum in theirs.momentum.items():
        assert_close(ours.momentum[step], momentum, RTOL, f"in the momentum after {step} steps")
    np.testing.assert_allclose(np.array(ours.losses), theirs.losses, rtol=RTOL, atol=1e-6)
