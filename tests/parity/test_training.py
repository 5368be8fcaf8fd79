"""A narrow resnet18 trained for 20 steps by both sides, from the same weights on the same batches.

In float64, where rounding flips no ReLU: a network of this depth is chaotic in float32, and torch's
own float32 ends up 4 % of conv1's norm away from its float64 on these batches.
"""

import jax
import numpy as np
import pytest
import torch

from jaxvision.losses import classification_loss
from jaxvision.models import get_model
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import freeze, sgd, step_lr
from jaxvision.weights import from_torch

from .tensors import relative_errors, to_nchw
from .test_zoo import unsettled
from .torch_detectors import WIDTH, narrow_resnet18

STEPS, CLASSES = 20, 10
OPTIONS = {"num_classes": CLASSES, "width": WIDTH}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batches(dtype):
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        label = rng.integers(0, CLASSES, 8).astype(np.int32)
        # Noise around a colour for each class: there is something to learn.
        image = rng.normal(20 * label[:, None, None, None] + 30, 40, (8, 32, 32, 3))
        yield {"image": (image.clip(0, 255).round() / 255).astype(dtype), "label": label}


def converted(model):
    state = {k: v.numpy() for k, v in model.float().state_dict().items()}
    return from_torch("resnet18", state, **OPTIONS)


def train_torch(model, parameters, dtype):
    """The tutorial's recipe: SGD with momentum, and StepLR after each epoch of 8 steps."""
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    losses = []
    for step, batch in enumerate(batches(dtype), start=1):
        optimizer.zero_grad()
        logits = model(to_nchw(((batch["image"] - MEAN) / STD).astype(dtype)))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(batch["label"]).long())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 8 == 0:
            scheduler.step()
    return losses


def train_ours(variables, trainable, dtype):
    model = get_model("resnet18", **OPTIONS, dtype=dtype)
    rate = step_lr(1e-3, step_size=1, gamma=0.1, steps_per_epoch=8)
    tx = sgd(rate, momentum=0.9, weight_decay=1e-4)
    if trainable is not None:
        tx = freeze(tx, variables["params"], trainable)
    step = make_train_step(classification_loss(model, mean=MEAN, std=STD), tx)
    variables = jax.tree.map(lambda x: x.astype(dtype) if x.ndim else x, variables)
    state, losses = jax.jit(create_state, static_argnums=1)(variables, tx), []
    for batch in batches(dtype):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats}), losses


def both(strategy, dtype):
    """Returns (losses, variables at the end) of torch and of ours, and the variables at first."""
    torch.manual_seed(0)
    reference = unsettled(narrow_resnet18(torch.nn.BatchNorm2d, num_classes=CLASSES))
    start = converted(reference)
    reference = reference.to(getattr(torch, dtype))
    if strategy == "all":
        losses = train_torch(reference.train(), reference.parameters(), dtype)
    else:
        # Frozen as in inference; only the head has gradients.
        reference.requires_grad_(False).fc.requires_grad_(True)
        losses = train_torch(reference.eval(), reference.fc.parameters(), dtype)
    trainable = "fc/**" if strategy == "head" else None
    with jax.enable_x64(dtype == "float64"):
        ours = train_ours(start, trainable, dtype)
    return (losses, converted(reference)), ours[::-1], start


@pytest.mark.parametrize("strategy", ["all", "head"])
def test_parameters_and_statistics_after_twenty_steps(strategy):
    (theirs, wanted), (ours, variables), start = both(strategy, "float64")
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    errors = relative_errors(floats(variables), floats(wanted))
    worst = max(errors, key=errors.get)
    print(f"{strategy}: worst {errors[worst]:.1e} at {worst}, loss {ours[0]:.3f} to {ours[-1]:.3f}")
    assert errors[worst] < 1e-6, worst
    tracked = variables["batch_stats"]["bn1"]["num_batches_tracked"]
    assert tracked == 17 + STEPS * (strategy == "all")
    moved = relative_errors(floats(variables), floats(start))  # and the test is not about nothing
    assert sum(m > 1e-6 for m in moved.values()) == (102 if strategy == "all" else 2)


def floats(tree):
    """Without the counts of batches."""
    return jax.tree.map(lambda x: x if x.ndim else np.float64(1), tree)
