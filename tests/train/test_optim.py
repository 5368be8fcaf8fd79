"""Optimisers and schedules: steps worked by hand, and torch's rules written out in NumPy."""

import jax
import numpy as np
import optax
import pytest

from jaxvision.train.optim import adam, adamw, cosine_lr, multistep_lr, sgd, step_lr, warmup


def weights_after_each(tx, weight, gradients):
    """Returns the weight after each step, computed under jit."""
    params = {"w": np.asarray(weight, np.float32)}

    @jax.jit
    def step(params, state, gradient):
        updates, state = tx.update({"w": gradient}, state, params)
        return optax.apply_updates(params, updates), state

    state, weights = tx.init(params), []
    for gradient in gradients:
        params, state = step(params, state, np.asarray(gradient, np.float32))
        weights.append(np.asarray(params["w"]))
    return weights


@pytest.mark.parametrize(
    ("options", "expected"),
    [  # from 1.0, rate 0.1, gradients 0.5, 0.2, -0.4
        ({}, [0.95, 0.93, 0.97]),
        # velocity 0.5, 0.9 * 0.5 + 0.2 = 0.65, 0.9 * 0.65 - 0.4 = 0.185
        ({"momentum": 0.9}, [0.95, 0.885, 0.8665]),
        # gradient + 0.9 * velocity: 0.95, 0.785, -0.2335
        ({"momentum": 0.9, "nesterov": True}, [0.905, 0.8265, 0.84985]),
        # gradients 0.5 + 0.1 * 1 = 0.6, 0.2 + 0.094 = 0.294, -0.4 + 0.09106 = -0.30894
        ({"weight_decay": 0.1}, [0.94, 0.9106, 0.941494]),
        # the decay is in the velocity: 0.6, 0.54 + 0.294 = 0.834, 0.7506 - 0.4 + 0.08566 = 0.43626
        ({"momentum": 0.9, "weight_decay": 0.1}, [0.94, 0.8566, 0.812974]),
        # gradients of norm 0.5, 0.2, 0.4 come down to 0.3
        ({"clip_norm": 0.3}, [0.97, 0.95, 0.98]),
        # clipped before the decay: 0.3 + 0.1, 0.2 + 0.096, -0.3 + 0.09304
        ({"clip_norm": 0.3, "weight_decay": 0.1}, [0.96, 0.9304, 0.951096]),
    ],
)
def test_sgd_by_hand(options, expected):
    weights = weights_after_each(sgd(0.1, **options), 1.0, [0.5, 0.2, -0.4])
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def torch_sgd(rate, weight, gradients, momentum, nesterov, weight_decay):
    """torch.optim.SGD's documented rule, in float64; `rate(step)` is the learning rate."""
    velocity = None
    for step, gradient in enumerate(gradients):
        gradient = gradient + weight_decay * weight
        velocity = gradient if velocity is None else momentum * velocity + gradient
        direction = gradient + momentum * velocity if nesterov else velocity
        weight = weight - rate(step) * direction
        yield weight


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torchs_rule_with_a_schedule(nesterov):
    rng = np.random.default_rng(0)
    weight, gradients = rng.normal(size=7), rng.normal(size=(12, 7))
    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01}
    schedule = step_lr(0.1, step_size=2, gamma=0.5, steps_per_epoch=2)
    expected = torch_sgd(lambda step: 0.1 * 0.5 ** (step // 4), weight, gradients, **options)
    got = weights_after_each(sgd(schedule, **options), weight, gradients)
    np.testing.assert_allclose(got, list(expected), rtol=1e-4, atol=1e-5)


def torch_adam(rate, weight, gradients, betas, eps, l2, decoupled):
    """torch.optim.Adam with `l2`, torch.optim.AdamW with `decoupled`, in float64."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient + l2 * weight
        weight = weight * (1 - rate * decoupled)
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        root = np.sqrt(square / (1 - betas[1] ** step)) + eps
        weight = weight - rate * mean / (1 - betas[0] ** step) / root
        yield weight


@pytest.mark.parametrize(
    ("tx", "l2", "decoupled", "betas", "eps"),
    [
        (adam(0.03), 0, 0, (0.9, 0.999), 1e-8),
        (adam(0.03, weight_decay=0.1), 0.1, 0, (0.9, 0.999), 1e-8),
        (adam(0.03, betas=(0.5, 0.8), eps=0.1), 0, 0, (0.5, 0.8), 0.1),
        (adamw(0.03), 0, 0.01, (0.9, 0.999), 1e-8),
        (adamw(0.03, weight_decay=0.3, betas=(0.5, 0.8), eps=0.1), 0, 0.3, (0.5, 0.8), 0.1),
    ],
)
def test_adam_and_adamw_equal_torchs_rules(tx, l2, decoupled, betas, eps):
    rng = np.random.default_rng(1)
    weight, gradients = rng.normal(size=5), rng.normal(size=(10, 5))
    expected = list(torch_adam(0.03, weight, gradients, betas, eps, l2, decoupled))
    np.testing.assert_allclose(
        weights_after_each(tx, weight, gradients), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("optimiser", [adam, adamw])
def test_adams_gradients_are_clipped_first(optimiser):
    gradients = [[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]
    clipped = [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]
    got = weights_after_each(optimiser(0.1, eps=0.1, clip_norm=1.0), [1.0, 1.0], gradients)
    expected = weights_after_each(optimiser(0.1, eps=0.1), [1.0, 1.0], clipped)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    unclipped = weights_after_each(optimiser(0.1, eps=0.1), [1.0, 1.0], gradients)
    assert not np.allclose(got[0], unclipped[0], rtol=1e-3)


def test_the_clipping_norm_is_that_of_all_parameters_together():
    tx = sgd(1.0, clip_norm=1.0)
    gradients = {"a": np.array([3.0], np.float32), "b": np.array([[4.0]], np.float32)}
    updates, _ = jax.jit(tx.update)(gradients, tx.init(gradients), gradients)
    np.testing.assert_allclose(updates["a"], [-0.6], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [[-0.8]], rtol=1e-6)


def test_nesterov_without_momentum_is_an_error():
    with pytest.raises(ValueError, match="momentum greater than 0"):
        sgd(0.1, nesterov=True)


SCHEDULES = [
    (
        step_lr(0.4, step_size=2, gamma=0.5, steps_per_epoch=5),
        {0: 0.4, 9: 0.4, 10: 0.2, 19: 0.2, 20: 0.1, 1000: 0.4 * 0.5**100},
    ),
    (
        multistep_lr(0.4, milestones=[1, 3], gamma=0.1, steps_per_epoch=5),
        {0: 0.4, 4: 0.4, 5: 0.04, 14: 0.04, 15: 0.004, 99: 0.004},
    ),
    (multistep_lr(0.4, milestones=(), steps_per_epoch=5), {0: 0.4, 99: 0.4}),
    (
        cosine_lr(0.4, total_steps=8, final=0.1),
        {0: 0.4, 2: 0.25 + 0.15 * np.sqrt(0.5), 4: 0.25, 8: 0.1, 9: 0.1, 99: 0.1},
    ),
    (cosine_lr(0.4, total_steps=3), {0: 0.4, 1: 0.3, 2: 0.1, 3: 0.0}),
    (
        warmup(0.4, steps=4, start_factor=0.25),
        {0: 0.1, 1: 0.175, 2: 0.25, 4: 0.4, 5: 0.4, 99: 0.4},
    ),
    (
        warmup(cosine_lr(0.4, total_steps=8), steps=2, start_factor=0.5),
        {0: 0.2, 1: 0.75 * 0.2 * (1 + np.cos(np.pi / 8)), 2: 0.2 + 0.2 * np.sqrt(0.5), 8: 0.0},
    ),
]


@pytest.mark.parametrize(("schedule", "expected"), SCHEDULES)
def test_schedules_at_their_boundaries(schedule, expected):
    jitted = jax.jit(schedule)
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-7), step
        assert float(jitted(np.int32(step))) == pytest.approx(rate, rel=1e-5, abs=1e-7), step


def test_an_optimiser_counts_the_schedules_steps_from_0():
    schedule = step_lr(1.0, step_size=1, gamma=0.1, steps_per_epoch=2)
    got = weights_after_each(sgd(schedule), 0.0, [-1.0] * 5)
    np.testing.assert_allclose(got, [1.0, 2.0, 2.1, 2.2, 2.21], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: step_lr(0.1, step_size=0, steps_per_epoch=5), "step_size"),
        (lambda: step_lr(0.1, step_size=2, steps_per_epoch=0), "steps_per_epoch"),
        (lambda: multistep_lr(0.1, milestones=[1], steps_per_epoch=0), "steps_per_epoch"),
        (lambda: cosine_lr(0.1, total_steps=0), "total_steps"),
        (lambda: warmup(0.1, steps=0), "steps"),
    ],
)
def test_a_schedule_of_no_steps_is_an_error_and_not_a_rate_of_nan(make, name):
    with pytest.raises(ValueError, match=f"expected {name} of at least 1, got 0"):
        make()
