"""What training does to the inputs of a layer, and to the loss: experiments/batchnorm.py, part 7.

Two measures side by side: the internal covariate shift that arXiv:1502.03167 wants to reduce, and
the smoothness of the loss along the gradient, which arXiv:1805.11604 finds behind the gain.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from batchnorm_failures import final_loss
from batchnorm_network import MEAN, STD, Trained, Trainer, scores
from findings import Finding

from jaxvision.data import ArrayDataset
from jaxvision.errors import UserError
from jaxvision.ops import normalize_images
from jaxvision.report.lines import Line, line_chart
from jaxvision.train import TrainState

PERCENTILES = (15, 50, 85)
STRIDES = (0.5, 1.0, 2.0, 4.0)
"""How far along the gradient the loss is looked at, in learning rates (arXiv:1805.11604)."""


class Probe(NamedTuple):
    """What is known of a network at one step.

    `mean` and `std` [layers, width] of each unit over fixed pictures, `percentiles` [layers, 3] of
    one unit a layer; along the gradient `losses` [strides], and how far the gradient turned away
    from itself, `turned` [strides], in its own length.
    """

    mean: np.ndarray
    std: np.ndarray
    percentiles: np.ndarray
    loss: float
    losses: np.ndarray
    turned: np.ndarray


class Prober:
    """Makes a `Probe` of a trainer's state; the pictures are always the same."""

    def __init__(self, trainer: Trainer, images: np.ndarray, learning_rate: float):
        self.trainer, self.learning_rate = trainer, learning_rate
        self.images = jnp.asarray(images)
        self._inputs = jax.jit(self._relu_inputs)
        self._along = jax.jit(self._along_gradient)
        self._units: np.ndarray | None = None

    def __call__(self, state: TrainState) -> Probe:
        inputs = np.asarray(self._inputs(state))
        mean, std = inputs.mean(axis=1), inputs.std(axis=1)
        if self._units is None:  # a typical unit: the one of median spread, and so not a dead one
            self._units = np.argsort(std, axis=1)[:, std.shape[1] // 2]
        layers = np.arange(len(inputs))
        percentiles = np.percentile(inputs[layers, :, self._units], PERCENTILES, axis=1).T
        along = self._along(state, self.trainer.data(int(state.step)))
        loss, losses, turned = jax.device_get(along)
        return Probe(mean, std, percentiles, float(loss), losses, turned)

    def _relu_inputs(self, state: TrainState) -> jax.Array:
        """What the ReLUs of each layer are given, [layers, pictures, width], in training."""
        x = normalize_images(self.images, MEAN, STD)
        key = jax.random.fold_in(jax.random.key(1), state.step)
        mutable = ["batch_stats", "intermediates"]
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        _, new = self.trainer.model.apply(
            variables, x, train=True, mutable=mutable, rngs={"dropout": key}
        )
        return jnp.stack(new["intermediates"]["relu_inputs"])

    def _along_gradient(self, state: TrainState, data: Any) -> tuple[jax.Array, ...]:
        """Loss and gradient of the next batch, some strides down its own gradient."""
        batch = self.trainer.data.select(data, state.step)
        key = jax.random.fold_in(jax.random.key(self.trainer.seed), state.step)

        def loss_fn(params):
            return self.trainer.loss_fn(params, state.batch_stats, batch, key)[0]

        loss, gradient = jax.value_and_grad(loss_fn)(state.params)
        losses, turned = [], []
        for stride in STRIDES:
            step = -stride * self.learning_rate
            there = jax.tree.map(lambda p, g, step=step: p + step * g, state.params, gradient)
            further, other = jax.value_and_grad(loss_fn)(there)
            losses.append(further)
            difference = optax.tree.norm(jax.tree.map(jnp.subtract, other, gradient))
            turned.append(difference / optax.tree.norm(gradient))
        return loss, jnp.stack(losses), jnp.stack(turned)


def covariate_shift(
    trainers: dict[str, Trainer],
    test: ArrayDataset,
    images: np.ndarray,
    *,
    learning_rate: float,
    steps: int,
    probes: int,
) -> tuple[Finding, dict[str, Trained]]:
    """Trains each network once, watched; returns what was seen and the trained networks."""
    finding = Finding(
        "7. The inputs of a layer during training",
        (
            "What a ReLU is given, over fixed pictures, while the weights in front of it are "
            "trained. The shift of a layer is how far the mean of a unit moves from one look to "
            "the next, in its standard deviations, on average over units and looks. Behind "
            "BatchNorm that mean is the parameter beta and the deviation |gamma|, whatever the "
            "layers in front do: what still moves is learned.",
            "But a steadier input does not explain on its own why training gains. Santurkar et al. "
            "(arXiv:1805.11604) put random scales and shifts behind BatchNorm, drawn anew in each "
            "step, and it still trained: the network called noisy. What they found instead is a "
            "smoother loss: down the gradient the loss changes less and the gradient turns less, "
            "so that longer steps can be trusted. Measured here as they did, on one network each, "
            "up to four learning rates down the gradient of a batch.",
        ),
    )
    at = range(0, steps, max(1, steps // probes))
    trained, seen = {}, {}
    for name, trainer in trainers.items():
        probe = Prober(trainer, images, learning_rate)
        trained[name] = trainer.train(learning_rate, steps, probe=probe, at=at)
        seen[name] = trained[name].probes
        if trained[name].diverged_at is not None:
            raise UserError(
                f"the network {name} diverged at step {trained[name].diverged_at} with the "
                f"learning rate {learning_rate:g}: give a lower --learning-rate"
            )
    depth = next(iter(trainers.values())).model.depth
    layers = sorted({0, depth // 2, depth - 1})
    rows = []
    for name, trainer in trainers.items():
        shift, look = shift_of(seen[name]), list(seen[name].values())
        changes = np.array([np.ptp([p.loss, *p.losses]) for p in look])
        turned = np.array([p.turned.max() for p in look])
        variables = trained[name].state.variables
        _, accuracy = scores(trainer.model, variables, test, batch=min(1000, len(test)))
        rows.append(
            (
                name,
                *(f"{shift[layer]:.3f}" for layer in layers),
                f"{np.median(changes):.3f}",
                f"{np.median(turned):.2f}",
                final_loss(trained[name]),
                f"{100 * accuracy:.1f} %",
            )
        )
        finding.numbers[name] = {
            "shift": shift.tolist(),
            "loss_change": float(np.median(changes)),
            "gradient_turn": float(np.median(turned)),
            "test_accuracy": accuracy,
        }
    finding.table(
        f"{steps} steps at learning rate {learning_rate:g}: the shift of some layers; along the "
        "gradient the range of the loss, and how far the gradient turns, in its own length "
        "(medians over the looks)",
        (
            "network",
            *(f"shift, layer {layer + 1}" for layer in layers),
            *("loss range", "gradient turns", "training loss", "test accuracy"),
        ),
        rows,
    )
    finding.words += (_outcome(finding.numbers, layers[-1]),)
    plain, normal, noisy = trainers
    for layer in layers:
        lows, highs = zip(*(_percentile_range(seen[name], layer) for name in trainers), strict=True)
        for name in (plain, normal, *([noisy] if layer == layers[-1] else [])):
            limits = (min(lows), max(highs))
            finding.charts.append(_percentile_chart(name, seen[name], layer, limits))
    finding.charts += _landscape_charts(seen)
    return finding, trained


def shift_of(probes: dict[int, Probe]) -> np.ndarray:
    """The mean of |change of the mean| / deviation over units and looks, for each layer."""
    looks = list(probes.values())
    moved = [
        np.abs(b.mean - a.mean) / np.maximum(a.std, 1e-6) for a, b in itertools.pairwise(looks)
    ]
    return np.mean(moved, axis=(0, 2)) if moved else np.full(len(looks[0].mean), np.nan)


def _outcome(numbers: dict[str, Any], layer: int) -> str:
    """One sentence that says what was measured, whatever it was."""
    found = {
        name: (f"{n['shift'][layer]:.3f}", f"{n['gradient_turn']:.2f}", f"{n['loss_change']:.3f}")
        for name, n in numbers.items()
    }
    return (
        "Found here: "
        + "; ".join(
            f"{name}, a shift of {shift} in the last layer, a gradient that turns by {turn} of its "
            f"length, a loss that changes by {change} along it, and {100 * accuracy:.1f} % accuracy"
            for (name, (shift, turn, change)), accuracy in zip(
                found.items(), (n["test_accuracy"] for n in numbers.values()), strict=True
            )
        )
        + "."
    )


def _percentile_range(probes: dict[int, Probe], layer: int) -> tuple[float, float]:
    values = np.array([probe.percentiles[layer] for probe in probes.values()])
    return float(np.nanmin(values)), float(np.nanmax(values))


def _percentile_chart(name: str, probes: dict[int, Probe], layer: int, limits: tuple[float, float]):
    x = np.array(list(probes))
    values = np.array([probe.percentiles[layer] for probe in probes.values()])
    line = Line(name, x, values[:, 1], values[:, 0], values[:, 2])
    words = (
        f"{name}, layer {layer + 1}: what one typical ReLU is given, over fixed pictures; the "
        "median, and from the 15th to the 85th percentile."
    )
    return line_chart([line], "Step", "Input of the ReLU", ylim=limits), words


def _landscape_charts(seen: dict[str, dict[int, Probe]]):
    ranges, turns = [], []
    for name, probes in seen.items():
        x = np.array(list(probes))
        losses = np.array([[p.loss, *p.losses] for p in probes.values()])
        turned = np.array([p.turned.max() for p in probes.values()])
        ranges.append(Line(name, x, losses[:, 0], losses.min(axis=1), losses.max(axis=1)))
        turns.append(Line(name, x, turned))
    return [
        (
            line_chart(ranges, "Step", "Loss", logy=True),
            "The loss of a batch, and (band) its range up to four learning rates along its "
            "gradient.",
        ),
        (
            line_chart(turns, "Step", "|g' - g| / |g|", logy=True),
            "How far the gradient turns within that stretch: 0 is a straight slope.",
        ),
    ]
