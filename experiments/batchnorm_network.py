"""The deep network of experiments/batchnorm.py, trained with and without batch normalisation.

A perceptron of twelve or so hidden layers: cheap, and deep enough that the signal is lost on its
way where nothing holds it. One compiled step serves all learning rates, because the rate is a
number in the optimiser's state.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxvision.data import ArrayDataset, Batches
from jaxvision.errors import UserError
from jaxvision.losses import classification_loss, cross_entropy
from jaxvision.metrics import accuracy
from jaxvision.models import init_variables
from jaxvision.models.layers import BatchNorm, Dense
from jaxvision.ops import normalize_images
from jaxvision.train import TrainState, create_state, make_train_step
from jaxvision.train.resident import ResidentData

MEAN, STD = 0.2860, 0.3530
"""Of Fashion-MNIST's training pixels, in [0, 1]."""

Norm = Literal["none", "batch", "noisy"]
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DeepNetwork(nn.Module):
    """Dense, normalisation, ReLU, `depth` times, and a head; returns logits [b, 10].

    `norm` "noisy" follows the normalisation, in training, with a random scale and shift of every
    unit, drawn anew in each step: the distribution that BatchNorm has steadied is unsteady again
    (arXiv:1805.11604, section 3.1). `draw` is He's, made for ReLU, or torch's default. What the
    ReLUs are given is sown as `intermediates/relu_inputs`, one [b, width] a layer.
    """

    norm: Norm
    depth: int = 12
    width: int = 128
    draw: Literal["he", "torch"] = "he"
    momentum: float | None = 0.1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b k"]:
        kernel_init = he_normal if self.draw == "he" else None
        bias_init = nn.initializers.zeros if self.draw == "he" else None
        x = x.reshape(x.shape[0], -1)
        for i in range(1, self.depth + 1):
            # A bias in front of BatchNorm would be subtracted again with the mean.
            biased = self.norm == "none"
            dense = Dense(self.width, biased, kernel_init, bias_init, name=f"fc{i}")
            x = dense(x)
            if self.norm != "none":
                x = BatchNorm(self.momentum, name=f"bn{i}")(x, train=train)
            if self.norm == "noisy":
                x = unsteady(self.make_rng("dropout"), x) if train else MEAN_SCALE * x
            self.sow("intermediates", "relu_inputs", x)
            x = nn.relu(x)
        return Dense(10, name="head")(x)


MEAN_SCALE = 1.125
"""Of the scales that `unsteady` draws; inference takes the mean, as it does of dropout."""


def unsteady(key: jax.Array, x: Float[Array, "b c"]) -> Float[Array, "b c"]:
    """Scales and shifts each value by draws around a scale and a shift of its unit's own.

    The bounds are those of arXiv:1805.11604, appendix A.
    """
    a, b, c, d = jax.random.split(key, 4)
    unit = (1, x.shape[1])
    shift = jax.random.uniform(a, unit, minval=-0.5, maxval=0.5)
    scale = jax.random.uniform(b, unit, minval=1.0, maxval=1.25)
    shift = shift + jax.random.uniform(c, x.shape, minval=-0.1, maxval=0.1)
    scale = scale + 0.1 * jax.random.normal(d, x.shape)
    return scale * x + shift


@dataclass
class Trained:
    """What training left: the last state, the loss of each step, and what the probes returned.

    `losses` ends where one was not finite; then `diverged_at` is that step, counted from 1.
    """

    state: TrainState
    losses: np.ndarray
    probes: dict[int, Any] = field(default_factory=dict)
    diverged_at: int | None = None


class Trainer:
    """Trains one network on one data set in batches of one size, at any learning rate.

    `forget` "train": the network is trained with `train=False`, so with the stored statistics;
    "update": the new statistics are thrown away after each step.
    """

    def __init__(
        self,
        model: DeepNetwork,
        data: ArrayDataset,
        *,
        batch_size: int,
        seed: int,
        momentum: float = 0.9,
        forget: Literal["train", "update"] | None = None,
    ):
        self.model, self.seed = model, seed
        self.loss_fn = classification_loss(model, mean=MEAN, std=STD)
        # The rate becomes a number in the state, so that another one needs no other program.
        injected = optax.inject_hyperparams(optax.sgd, static_args=("momentum", "nesterov"))
        self.tx = injected(learning_rate=0.0, momentum=momentum)
        self.data = ResidentData(Batches(data, batch_size=batch_size, seed=seed, drop_last=True))
        loss_fn = forgetful(self.loss_fn, forget) if forget else self.loss_fn
        self.step = make_train_step(loss_fn, self.tx, seed=seed, select=self.data.select)
        self.variables = first_variables(model, data.images.shape[1:], seed)

    def start(self, learning_rate: float) -> TrainState:
        state = create_state(self.variables, self.tx)
        state.opt_state.hyperparams["learning_rate"] = jnp.float32(learning_rate)
        return state

    def train(
        self,
        learning_rate: float,
        steps: int,
        *,
        probe: Callable[[TrainState], Any] | None = None,
        at: Iterable[int] = (),
    ) -> Trained:
        """Trains for `steps` from the same start, unless the loss stops being finite before.

        `probe(state)` is called before the steps in `at`, counted from 0, and after the last.
        """
        state, losses, probes, at = self.start(learning_rate), [], {}, set(at)
        for step in range(steps):
            if probe is not None and step in at:
                probes[step] = probe(state)
            state, metrics = self.step(state, self.data(step))
            losses.append(metrics["loss"])
            if step % 50 == 49 and not math.isfinite(losses[-1]):
                break
        losses = np.asarray(jax.device_get(losses))
        lost = np.flatnonzero(~np.isfinite(losses))
        if lost.size:
            first = int(lost[0])
            return Trained(state, losses[: first + 1], probes, first + 1)
        if probe is not None:
            probes[steps] = probe(state)
        return Trained(state, losses, probes)


@functools.lru_cache(maxsize=8)
def first_variables(model: DeepNetwork, shape: tuple[int, ...], seed: int) -> Any:
    """The same start for every trainer of a network. Compiling the draw takes longer than a run."""
    return init_variables(model, jax.random.key(seed), shape)


def forgetful(loss_fn, forget: str):
    """Returns the loss function of someone who forgot `train=True`, or to keep the new state."""

    def forgot_train(params, batch_stats, batch, key, train: bool = True):
        return loss_fn(params, batch_stats, batch, key, train=False)

    def forgot_update(params, batch_stats, batch, key, train: bool = True):
        loss, (_, metrics) = loss_fn(params, batch_stats, batch, key, train=train)
        return loss, (batch_stats, metrics)

    return {"train": forgot_train, "update": forgot_update}[forget]


@functools.partial(jax.jit, static_argnames=("model", "train"))
def logits_of(model: DeepNetwork, variables: Any, images: jax.Array, *, train: bool) -> jax.Array:
    """Logits [b, 10] of byte pictures; with `train` by the statistics of these very pictures.

    The moved statistics are dropped: nothing but the logits is wanted.
    """
    x = normalize_images(images, MEAN, STD)
    if not train:
        return model.apply(variables, x, train=False)
    key = jax.random.key(0)
    return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0]


def scores(
    model: DeepNetwork, variables: Any, data: ArrayDataset, *, batch: int, train: bool = False
) -> tuple[float, float]:
    """Returns (loss, accuracy), by whole batches of the pictures in their order."""
    whole = len(data) // batch * batch
    if not whole:
        raise UserError(f"expected at least {batch} pictures, got {len(data)}: lower the batch")
    starts = range(0, whole, batch)
    parts = [logits_of(model, variables, data.images[i : i + batch], train=train) for i in starts]
    loss, share = _scores(jnp.concatenate(parts), jnp.asarray(data.labels[:whole]))
    return float(loss), float(share)


@jax.jit
def _scores(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return cross_entropy(logits, labels), accuracy(logits, labels)


def re_estimated(model: DeepNetwork, variables: Any, images: np.ndarray, *, batch: int) -> Any:
    """Returns the variables with new statistics, the plain average over batches of `images`.

    Labels are not needed, and no weight changes.
    """
    averaging = model.clone(momentum=None)
    stored = jax.tree.map(jnp.zeros_like, variables["batch_stats"])

    @jax.jit
    def step(stored, images):
        x = normalize_images(images, MEAN, STD)
        now = {**variables, "batch_stats": stored}
        return averaging.apply(now, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    for i in range(0, len(images) // batch * batch, batch):
        stored = step(stored, images[i : i + batch])
    return {**variables, "batch_stats": stored}
