"""Optimisers and schedules: 50 updates, side by side with torch.optim's."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
import torch
from torch.optim import lr_scheduler

from jaxvision.train import optim

from .tensors import to_torch

STEPS = 50
SHAPES = {"kernel": (7, 5), "bias": (5,), "scale": (4,), "dead": (3,)}


def random_problem():
    """Start, curvatures, and a target for each step: gradients `curvature * (params - target)`.

    The curvatures are far apart, as a network's are; "dead" has no gradient for 10 steps, like a
    unit behind a ReLU, which is where a division by a square root would show.
    """
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
    curvatures = {
        name: np.exp(rng.uniform(-6, 1, size=s)).astype(np.float32) for name, s in SHAPES.items()
    }
    targets = {name: rng.normal(size=(STEPS, *s)).astype(np.float32) for name, s in SHAPES.items()}
    return start, curvatures, targets


def descend_torch(make_optimizer, make_scheduler=None, clip_norm=None, steps_per_epoch=1):
    """Returns the parameters after each step, and the gradients' norm before each."""
    start, curvatures, targets = random_problem()
    params = {name: torch.nn.Parameter(to_torch(x)) for name, x in start.items()}
    optimizer = make_optimizer(list(params.values()))
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    path, norms = [], []
    for step in range(STEPS):
        for name, p in params.items():
            gradient = to_torch(curvatures[name]) * (p.detach() - to_torch(targets[name][step]))
            p.grad = torch.zeros_like(p) if is_dead(name, step) else gradient
        limit = float("inf") if clip_norm is None else clip_norm
        norms.append(torch.nn.utils.clip_grad_norm_(params.values(), limit).item())
        optimizer.step()
        if scheduler and (step + 1) % steps_per_epoch == 0:
            scheduler.step()
        path.append({name: p.detach().numpy().copy() for name, p in params.items()})
    return path, norms


def is_dead(name, step):
    return name == "dead" and step < 10


def descend(tx):
    start, curvatures, targets = random_problem()

    @jax.jit
    def update(params, opt_state, gradients):
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = jax.tree.map(jax.numpy.asarray, start), tx.init(start)
    path = []
    for step in range(STEPS):
        gradients = {
            name: curvatures[name]
            * (np.asarray(p) - targets[name][step])
            * (not is_dead(name, step))
            for name, p in params.items()
        }
        params, opt_state = update(params, opt_state, gradients)
        path.append(params)
    return path


def compare(tx, make_optimizer, **options):
    """Every step's parameters, not only the last: a wrong start may be forgotten by then.

    They are around 1. Adam is what needs 1e-5: optax takes the 1 - 0.999 ** t of its bias
    correction in float32, torch in float64.
    """
    path, norms = descend_torch(make_optimizer, **options)
    for step, (ours, theirs) in enumerate(zip(descend(tx), path, strict=True)):
        for name, expected in theirs.items():
            np.testing.assert_allclose(
                ours[name], expected, rtol=0, atol=1e-5, err_msg=f"{name} after step {step}"
            )
    return norms


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (0.5, True)]
)
def test_sgd(momentum, nesterov, weight_decay):
    options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    compare(optim.sgd(0.1, **options), partial(torch.optim.SGD, lr=0.1, **options))


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 0.1},
        {"betas": (0.5, 0.9), "eps": 1e-3},
    ],
    ids=["defaults", "no decay", "decay", "betas and eps"],
)
def test_adam_and_adamw(name, options):
    torch_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    tx = getattr(optim, name)(0.02, **options)
    compare(tx, partial(torch_class, lr=0.02, **options))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_clip_norm_comes_before_weight_decay_and_momentum(name):
    options = {"weight_decay": 0.1} | ({"momentum": 0.9} if name == "sgd" else {})
    torch_class = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    tx = getattr(optim, name)(0.05, clip_norm=6.0, **options)
    make_optimizer = partial(torch_class[name], lr=0.05, **options)
    norms = compare(tx, make_optimizer, clip_norm=6.0)
    assert min(norms) < 6 < max(norms)  # or one of the two branches was not compared


def warmed_up(make_scheduler, steps, start_factor=0.001):
    """torch's LinearLR and another scheduler at once: the product of both factors."""

    def make(optimizer):
        linear = lr_scheduler.LinearLR(optimizer, start_factor, total_iters=steps)
        return lr_scheduler.ChainedScheduler([linear, make_scheduler(optimizer)])

    return make


SCHEDULES = {  # ours, torch's, and the updates between two calls of torch's step()
    "step": (
        optim.step_lr(0.3, step_size=2, gamma=0.5, steps_per_epoch=4),
        partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
        4,
    ),
    "step, the course's": (
        optim.step_lr(0.3, step_size=7, gamma=0.1, steps_per_epoch=3),
        partial(lr_scheduler.StepLR, step_size=7, gamma=0.1),
        3,
    ),
    "multistep": (
        optim.multistep_lr(0.3, milestones=[1, 4, 6, 6], gamma=0.3, steps_per_epoch=5),
        partial(lr_scheduler.MultiStepLR, milestones=[1, 4, 6, 6], gamma=0.3),
        5,
    ),
    "cosine": (
        optim.cosine_lr(0.3, total_steps=STEPS),
        partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
        1,
    ),
    "cosine to a final rate": (
        optim.cosine_lr(0.3, total_steps=STEPS, final=0.01),
        partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS, eta_min=0.01),
        1,
    ),
    "warm-up": (
        optim.warmup(0.3, steps=13, start_factor=0.2),
        partial(lr_scheduler.LinearLR, start_factor=0.2, total_iters=13),
        1,
    ),
    "warm-up and cosine": (
        optim.warmup(optim.cosine_lr(0.3, total_steps=STEPS), steps=9),
        warmed_up(partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS), steps=9),
        1,
    ),
    "warm-up and steps": (
        optim.warmup(
            optim.step_lr(0.3, step_size=10, gamma=0.5, steps_per_epoch=1),
            steps=15,
            start_factor=0.1,
        ),
        warmed_up(partial(lr_scheduler.StepLR, step_size=10, gamma=0.5), 15, start_factor=0.1),
        1,
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    """The rate of each of 51 updates; under jit, where the step is traced, and without."""
    schedule, make_scheduler, steps_per_epoch = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make_scheduler(optimizer)
    expected = []
    for step in range(STEPS + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % steps_per_epoch == 0:
            scheduler.step()
    # 1e-7: float32 near the end of the half cosine, where torch's rate is 0.
    for rate in (schedule, jax.jit(schedule)):
        rates = [float(rate(step)) for step in range(STEPS + 1)]
        np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-7)
    assert len(set(expected)) > 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_in_an_optimizer(name):
    """The optimiser's count of its updates starts where torch's does."""
    schedule, make_scheduler, steps_per_epoch = SCHEDULES[name]
    compare(
        optim.sgd(schedule, momentum=0.9, weight_decay=0.01),
        partial(torch.optim.SGD, lr=0.3, momentum=0.9, weight_decay=0.01),
        make_scheduler=make_scheduler,
        steps_per_epoch=steps_per_epoch,
    )
