"""Batch normalisation on paper (arXiv:1502.03167): the algorithm, its gradient, running averages.

The first two sections of experiments/batchnorm.py; small numbers, no data set, no training.
"""

import jax
import jax.numpy as jnp
import numpy as np
from findings import Finding, numbers

from jaxvision.models.layers import BatchNorm
from jaxvision.ops import batch_norm
from jaxvision.report.lines import Line, line_chart

EPS = 1e-5
X = np.array([[1, 10], [2, 30], [3, 20], [4, 60], [5, 30]], np.float32)
"""A mini-batch of five examples with two channels, one of them ten times as large."""
SCALE = np.array([1.0, 2.0], np.float32)
BIAS = np.array([0.0, -1.0], np.float32)
DY = np.array([[1, 0], [0, 2], [-1, 1], [0, -1], [2, 0]], np.float32)
"""What the loss's gradient by y is taken to be."""

POPULATION_MEAN, POPULATION_VAR = 3.0, 4.0
MOMENTUM = 0.1


def plain_batch_norm(x, scale, bias):
    """The formula as the paper has it, to be differentiated by JAX."""
    mean = jnp.mean(x, axis=0, keepdims=True)
    var = jnp.mean((x - mean) ** 2, axis=0, keepdims=True)
    return scale[None] * (x - mean) / jnp.sqrt(var + EPS) + bias[None]


def algorithm() -> Finding:
    """Each line of the algorithm and of its gradient, in numbers."""
    finding = Finding(
        "1. The algorithm, line by line",
        (
            "A mini-batch of m = 5 examples x_i (rows) with two channels (columns). Every channel "
            "is normalised on its own: its mean and variance are those of its column.",
        ),
    )
    m = len(X)
    mean = X.sum(axis=0) / m
    var = ((X - mean) ** 2).sum(axis=0) / m
    normalised = (X - mean) / np.sqrt(var + EPS)
    y = SCALE * normalised + BIAS
    by_channel = [
        ("x", "the mini-batch", X),
        ("1  mini-batch mean", "mu = 1/m sum x_i", mean),
        ("2  mini-batch variance", "var = 1/m sum (x_i - mu)^2", var),
        ("3  normalise", "xhat_i = (x_i - mu) / sqrt(var + eps)", normalised),
        ("4  scale and shift", "y_i = gamma xhat_i + beta", y),
    ]
    finding.table(
        f"Forward, with gamma = {numbers(SCALE, 0)}, beta = {numbers(BIAS, 0)}, eps = {EPS:g}",
        ("line", "formula", "channel 1", "channel 2"),
        [(name, formula, *_columns(values)) for name, formula, values in by_channel],
    )
    arguments = tuple(map(jnp.asarray, (X, SCALE, BIAS)))
    ours, our_mean, our_var, count = batch_norm(*arguments, EPS)
    finding.check("jaxvision.ops.batch_norm gives the same y", _close(ours, y))
    finding.check(
        "... and the same mean, biased variance and count",
        _close(our_mean, mean) and _close(our_var, var) and int(count) == m,
    )
    finding.check(
        "each channel of xhat has mean 0 and variance 1 (but for eps)",
        _close(normalised.mean(axis=0), 0) and _close((normalised**2).mean(axis=0), 1),
    )
    again = batch_norm(100 * arguments[0] + 7, *arguments[1:], EPS)[0]
    finding.check("y does not change where x is scaled and shifted", _close(again, y))

    rstd = 1 / np.sqrt(var + EPS)
    dnormalised = DY * SCALE
    dvar = (dnormalised * (X - mean)).sum(axis=0) * -0.5 * rstd**3
    dmean = -(dnormalised * rstd).sum(axis=0) + dvar * (-2 * (X - mean)).sum(axis=0) / m
    dx = dnormalised * rstd + dvar * 2 * (X - mean) / m + dmean / m
    dscale, dbias = (DY * normalised).sum(axis=0), DY.sum(axis=0)
    by_channel = [
        ("dL/dy", "given", DY),
        ("dL/dxhat", "dL/dy gamma", dnormalised),
        ("dL/dvar", "-1/2 (var + eps)^(-3/2) sum dL/dxhat (x_i - mu)", dvar),
        ("dL/dmu", "-sum dL/dxhat / sqrt(var + eps) - 2/m dL/dvar sum (x_i - mu)", dmean),
        ("dL/dx", "dL/dxhat / sqrt(var + eps) + 2/m dL/dvar (x_i - mu) + 1/m dL/dmu", dx),
        ("dL/dgamma", "sum dL/dy xhat_i", dscale),
        ("dL/dbeta", "sum dL/dy", dbias),
    ]
    finding.table(
        "Backward, by the chain rule: x acts through xhat, through the variance and the mean",
        ("gradient", "formula", "channel 1", "channel 2"),
        [(name, formula, *_columns(values)) for name, formula, values in by_channel],
    )
    by_hand = (dx, dscale, dbias)
    by_autodiff = jax.vjp(plain_batch_norm, *arguments)[1](jnp.asarray(DY))
    by_ops = jax.vjp(lambda *a: batch_norm(*a, EPS)[0], *arguments)[1](jnp.asarray(DY))
    finding.check(
        "JAX, differentiating the plain formula, agrees", _all_close(by_autodiff, by_hand)
    )
    finding.check("... and so does the closed form in ops.batch_norm", _all_close(by_ops, by_hand))
    finding.check(
        "dL/dx has nothing along a shift or a scaling of x, which y does not feel",
        _close(dx.sum(axis=0), 0) and _close((dx * normalised).sum(axis=0), 0),
    )
    finding.numbers = {"y": y.tolist(), "dx": dx.tolist()}
    return finding


def running_averages(seed: int, batches: int = 100) -> Finding:
    """Training against inference: what is stored, and how it comes to fit."""
    finding = Finding(
        "2. Training against inference",
        (
            "In training a batch is normalised by its own statistics; for inference there may be "
            "no batch, so each step also moves two stored numbers a channel: stored = 0.9 stored + "
            "0.1 batch's. They begin at 0 and 1 and forget that: after n batches its weight is "
            "0.9^n. Here the values come from a population of mean 3 and variance 4.",
            "The variance that normalises is the biased one (1/m). What is stored is the unbiased "
            "one (1/(m-1)), because the average of biased ones is too small by (m-1)/m.",
        ),
    )
    rng = np.random.default_rng(seed)
    stream = _population(rng, batches, 8)
    layer = BatchNorm(momentum=MOMENTUM)
    variables = layer.init(jax.random.key(0), jnp.asarray(stream[0]), train=False)
    params, stored = variables["params"], variables["batch_stats"]
    step = jax.jit(
        lambda stored, x: layer.apply(
            {"params": params, "batch_stats": stored}, x, train=True, mutable=["batch_stats"]
        )
    )
    by_hand = np.array([0.0, 1.0])
    followed, rows = [], []
    for n, x in enumerate(stream, start=1):
        trained, new = step(stored, x)
        variables = {"params": params, "batch_stats": stored}
        inferred = layer.apply(variables, jnp.asarray(x), train=False)
        stored = new["batch_stats"]
        by_hand = (1 - MOMENTUM) * by_hand + MOMENTUM * np.array([x.mean(), x.var(ddof=1)])
        followed.append([float(stored["mean"][0]), float(stored["var"][0])])
        if n in (1, 2, 5, 10, 20, 50, batches):
            difference = float(np.abs(trained - inferred).mean())
            values = (x.mean(), followed[-1][0], x.var(ddof=1), followed[-1][1], difference)
            rows.append((n, f"{0.9**n:.4f}", *(f"{value:.3f}" for value in values)))
    finding.table(
        "A BatchNorm layer on batches of 8; the last column is how far training's output is from "
        "inference's for the same batch, with what was stored before it",
        [
            "batch",
            "weight of the start",
            "its mean",
            "stored mean",
            "its variance",
            "stored variance",
            "training - inference",
        ],
        rows,
    )
    finding.check("the layer's stored values are this recursion's", _close(followed[-1], by_hand))
    if batches >= 50:
        end = np.mean(followed[-(batches // 2) :], axis=0)
        finding.check(
            "they have come near the population's: mean within 0.5, variance within 1.5",
            abs(end[0] - POPULATION_MEAN) < 0.5 and abs(end[1] - POPULATION_VAR) < 1.5,
        )
    _biased_and_unbiased(finding, rng)
    _cumulative(finding, stream)
    x = np.arange(1, batches + 1)
    mean, var = np.array(followed).T
    truth = np.full(batches, POPULATION_MEAN), np.full(batches, POPULATION_VAR)
    for name, values, true in (("mean", mean, truth[0]), ("variance", var, truth[1])):
        lines = [Line(f"stored {name}", x, values), Line("the population's", x, true)]
        words = f"The stored {name} over batches of 8 examples: it wavers as the batches do."
        finding.charts.append((line_chart(lines, "Batch", f"Stored {name}"), words))
    finding.numbers = {"stored_mean": mean.tolist(), "stored_var": var.tolist()}
    return finding


def _biased_and_unbiased(finding: Finding, rng: np.random.Generator) -> None:
    rows, largest = [], 0.0
    for m in (2, 4, 8, 32, 128):
        many = _population(rng, 200_000 // m, m)[..., 0]
        biased, unbiased = many.var(axis=1).mean(), many.var(axis=1, ddof=1).mean()
        spread = many.var(axis=1, ddof=1).std() / POPULATION_VAR
        largest = max(largest, abs(biased - POPULATION_VAR * (m - 1) / m))
        means = (biased, POPULATION_VAR * (m - 1) / m, unbiased)
        rows.append((m, *(f"{value:.3f}" for value in means), f"{100 * spread:.0f} %"))
    finding.table(
        "The variance of a batch of m, on average over 200,000 values (true: 4)",
        ("m", "biased", "4 (m-1)/m", "unbiased", "spread from batch to batch"),
        rows,
    )
    finding.check("biased variances are too small by (m-1)/m, within 0.05", largest < 0.05)


def _cumulative(finding: Finding, stream: np.ndarray) -> None:
    layer = BatchNorm(momentum=None)
    variables = layer.init(jax.random.key(0), jnp.asarray(stream[0]), train=False)
    for x in jnp.asarray(stream[:10]):
        _, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {**variables, **new}
    mean = stream[:10].mean(axis=1).mean(axis=0)
    finding.check(
        "momentum=None stores the plain mean over all batches (here 10), for re-estimation",
        _close(variables["batch_stats"]["mean"], mean)
        and int(variables["batch_stats"]["num_batches_tracked"]) == 10,
    )


def _population(rng: np.random.Generator, batches: int, size: int) -> np.ndarray:
    values = rng.normal(POPULATION_MEAN, POPULATION_VAR**0.5, (batches, size, 1))
    return values.astype(np.float32)


def _columns(values: np.ndarray) -> tuple[str, str]:
    first, second = np.atleast_2d(values).T
    return numbers(first, 3), numbers(second, 3)


def _close(a, b, tolerance: float = 1e-4) -> bool:
    return bool(np.max(np.abs(np.asarray(a) - np.asarray(b))) <= tolerance)


def _all_close(found, expected) -> bool:
    return all(_close(a, b) for a, b in zip(found, expected, strict=True))
