"""Optimisers and learning-rate schedules that take the same steps as torch's.

Where a learning rate is expected, give a number or one of the schedules, which are functions of the
step (counted in updates, from 0).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvision.train.trainable import Path, merge_params, split_params, trainable_paths

Schedule = Callable[..., object]
LearningRate = float | Schedule


def sgd(
    learning_rate: LearningRate,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """torch.optim.SGD: L2 is added to the gradient before the momentum, the rate applied after it.

    `clip_norm` first scales the gradients down to that global norm.
    """
    if nesterov and not momentum:
        raise ValueError("nesterov needs a momentum greater than 0")
    return optax.chain(
        *_clip(clip_norm),
        *([optax.add_decayed_weights(weight_decay)] if weight_decay else []),
        *([optax.trace(decay=momentum, nesterov=nesterov)] if momentum else []),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam(
    learning_rate: LearningRate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """torch.optim.Adam (arXiv:1412.6980); `weight_decay` is L2 on the gradient, as there."""
    return optax.chain(
        *_clip(clip_norm),
        *([optax.add_decayed_weights(weight_decay)] if weight_decay else []),
        optax.scale_by_adam(*betas, eps=eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: LearningRate,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """torch.optim.AdamW (arXiv:1711.05101): the weights decay by rate * `weight_decay` a step."""
    return optax.chain(
        *_clip(clip_norm),
        optax.scale_by_adam(*betas, eps=eps),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


class Freeze(optax.GradientTransformation):
    """What `freeze` returns: `inner` on the parameters at the paths `trainable` alone."""

    inner: optax.GradientTransformation
    trainable: frozenset[Path]


def freeze(
    tx: optax.GradientTransformation, params: Mapping[str, Any], trainable: str | Sequence[str]
) -> Freeze:
    """Trains the parameters whose path a pattern matches; every other one stays bit for bit.

    `make_train_step` differentiates by the trained parameters alone, so that frozen ones cost no
    backward work, and runs modules that are frozen as in inference: their BatchNorm statistics
    stay. The optimiser keeps state for the trained ones only. Patterns: see `trainable_paths`.
    Elsewhere the result is an optax transformation whose updates of frozen parameters are zero.

    >>> params = {"conv1": {"kernel": jnp.ones(3)}, "fc": {"kernel": jnp.ones(2)}}
    >>> tx = freeze(sgd(0.1, momentum=0.9), params, trainable="fc/**")
    >>> jax.tree.map(jnp.shape, tx.init(params)[0].trace)
    {'fc': {'kernel': (2,)}}
    """
    paths = trainable_paths(params, trainable)

    def init(params):
        return tx.init(split_params(params, paths)[0])

    def update(updates, state, params=None, **extra):
        trained, frozen = split_params(updates, paths)
        if params is not None:
            params = split_params(params, paths)[0]
        trained, state = tx.update(trained, state, params, **extra)
        return merge_params(trained, jax.tree.map(jnp.zeros_like, frozen)), state

    result = Freeze(init, update)
    result.inner, result.trainable = tx, paths
    return result


def _clip(clip_norm: float | None) -> list[optax.GradientTransformation]:
    return [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]


def step_lr(
    learning_rate: float, *, step_size: int, gamma: float = 0.1, steps_per_epoch: int
) -> Schedule:
    """torch's StepLR, stepped once an epoch: times `gamma` after every `step_size` epochs.

    >>> schedule = step_lr(1.0, step_size=7, gamma=0.1, steps_per_epoch=10)
    >>> [round(float(schedule(step)), 3) for step in (0, 69, 70, 140)]
    [1.0, 1.0, 0.1, 0.01]
    """
    _check_positive(step_size=step_size, steps_per_epoch=steps_per_epoch)
    return lambda step: learning_rate * gamma ** (step // (steps_per_epoch * step_size))


def multistep_lr(
    learning_rate: float, *, milestones: Sequence[int], gamma: float = 0.1, steps_per_epoch: int
) -> Schedule:
    """torch's MultiStepLR, stepped once an epoch: times `gamma` at each epoch of `milestones`."""
    _check_positive(steps_per_epoch=steps_per_epoch)
    steps = np.asarray(milestones, np.int32) * steps_per_epoch
    return lambda step: learning_rate * gamma ** (jnp.asarray(step) >= steps).sum()


def cosine_lr(learning_rate: float, *, total_steps: int, final: float = 0.0) -> Schedule:
    """torch's CosineAnnealingLR over `total_steps` updates (arXiv:1608.03983, eq. 5), then flat."""
    _check_positive(total_steps=total_steps)

    def schedule(step):
        progress = jnp.minimum(jnp.asarray(step), total_steps) / total_steps
        return final + (learning_rate - final) * (1 + jnp.cos(math.pi * progress)) / 2

    return schedule


def warmup(schedule: LearningRate, *, steps: int, start_factor: float = 0.001) -> Schedule:
    """torch's LinearLR in front: from `start_factor` of the rate to all of it."""
    _check_positive(steps=steps)

    def warmed(step):
        rate = schedule(step) if callable(schedule) else schedule
        progress = jnp.minimum(jnp.asarray(step), steps) / steps
        return rate * (start_factor + (1 - start_factor) * progress)

    return warmed


def rising_decay(decay: float) -> Schedule:
    """Returns a moving average's decay after n steps: min(decay, (1 + n) / (10 + n)).

    With the whole decay from the beginning an average remembers the first weights for long, and
    BatchNorm's first variances of 1, which make a deep network's average useless until then.

    >>> [round(float(rising_decay(0.998)(n)), 3) for n in (0, 90, 10_000)]
    [0.1, 0.91, 0.998]
    """
    return lambda n: jnp.minimum(decay, (1 + n) / (10 + n))


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"expected {name} of at least 1, got {count}")
