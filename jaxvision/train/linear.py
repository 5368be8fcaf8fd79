"""Linear models on features that do not change: SVMs with hard negative mining, ridge regression.

They are solved, not trained: each has one solution, whatever one starts from.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Integer

from jaxvision.types import Array

LEAST_ROWS = 1024
"""Rows are padded to this number, or twice it, and so on: one compile each."""


class Linear(NamedTuple):
    """`x @ kernel + bias`: one column for each class, or number that is to be told."""

    kernel: Float[Array, "d k"]
    bias: Float[Array, " k"]


def squared_hinge(
    margins: Float[Array, "n k"],
    targets: Integer[Array, "n k"],
    positive_weight: int | float | Float[Array, ""] = 1.0,
) -> Float[Array, " k"]:
    """Returns each column's sum of max(0, 1 - target * margin)^2, whose targets are 1, -1 or 0.

    A target of 0 adds nothing, a positive one `positive_weight` times as much as a negative one.

    >>> margins, targets = jnp.array([[0.5], [0.0], [9.0]]), jnp.array([[1], [-1], [0]])
    >>> squared_hinge(margins, targets, positive_weight=2).tolist()
    [1.5]
    """
    missing = jnp.maximum(1 - targets * margins, 0)
    weights = jnp.where(targets > 0, positive_weight, jnp.where(targets < 0, 1.0, 0.0))
    return (weights * missing**2).sum(axis=0)


def fit_svms(
    features: Float[Array, "n d"],
    targets: Integer[Array, "n k"],
    *,
    c: int | float = 1e-3,
    positive_weight: int | float = 1.0,
    start: Linear | None = None,
    max_steps: int = 1000,
    tolerance: float = 1e-5,
) -> Linear:
    """Returns k linear SVMs, all at once: class j's rows are those with a target, 1 or -1, there.

    Each minimises |w|^2 / 2 + `c` * `squared_hinge`, with a bias that costs nothing: what
    scikit-learn's LinearSVC does, but for its penalty on the bias. The sum is convex and smooth,
    and L-BFGS ends where its gradient is `tolerance` of what it is at zero, or after `max_steps`.
    `start`, for instance the solution for fewer rows, saves steps.

    >>> features, targets = jnp.array([[-1.0], [3.0]]), jnp.array([[-1], [1]])
    >>> svm = fit_svms(features, targets, c=100)
    >>> round(float(svm.kernel[0, 0]), 2), round(float(svm.bias[0]), 2)
    (0.5, -0.5)
    """
    features = jnp.asarray(features, jnp.float32)
    n, d = features.shape
    rows = LEAST_ROWS
    while rows < n:
        rows *= 2
    # The same SVMs, but for the bias, and far fewer steps.
    middle = features.mean(axis=0) if n else jnp.zeros(d)
    centred = jnp.pad(features - middle[None, :], ((0, rows - n), (0, 0)))
    targets = jnp.pad(jnp.asarray(targets, jnp.int32), ((0, rows - n), (0, 0)))
    if start is None:
        start = Linear(jnp.zeros((d, targets.shape[1])), jnp.zeros(targets.shape[1]))
    first = Linear(jnp.asarray(start.kernel), start.bias + middle @ start.kernel)
    numbers = (jnp.float32(c), jnp.float32(positive_weight), jnp.float32(tolerance))
    found = _minimised(first, centred, targets, *numbers, max_steps)
    return Linear(found.kernel, found.bias - middle @ found.kernel)


@partial(jax.jit, static_argnums=6)
def _minimised(start, features, targets, c, positive_weight, tolerance, max_steps):
    optimizer = optax.lbfgs()

    def objective(linear: Linear):
        margins = features @ linear.kernel + linear.bias[None, :]
        losses = squared_hinge(margins, targets, positive_weight)
        return (linear.kernel**2).sum() / 2 + c * losses.sum()

    value_and_grad = optax.value_and_grad_from_state(objective)
    zero = jax.tree.map(jnp.zeros_like, start)
    enough = tolerance * jnp.maximum(optax.tree.norm(jax.grad(objective)(zero)), 1e-6)

    def go_on(carry):
        _, _, steps, gradient_norm = carry
        return (steps < max_steps) & (gradient_norm > enough)

    def step(carry):
        linear, state, steps, _ = carry
        value, gradient = value_and_grad(linear, state=state)
        updates, state = optimizer.update(
            gradient, state, linear, value=value, grad=gradient, value_fn=objective
        )
        linear = optax.apply_updates(linear, updates)
        return linear, state, steps + 1, optax.tree.norm(optax.tree.get(state, "grad"))

    carry = (start, optimizer.init(start), 0, jnp.float32(jnp.inf))
    return jax.lax.while_loop(go_on, step, carry)[0]


class Mined(NamedTuple):
    """The SVMs, and how many rows each round had: in the end all that matter, if `converged`."""

    svms: Linear
    rows: tuple[int, ...]
    converged: bool


Block = tuple[Array, Array]
"""Rows of features [n, d] and their targets [n, k], as `fit_svms` takes them."""


def mine_svms(
    blocks: Sequence[Block],
    *,
    c: int | float = 1e-3,
    positive_weight: int | float = 1.0,
    first_negatives: int = 5000,
    most_new: int = 20_000,
    max_rounds: int = 10,
    seed: int = 0,
    announce: Callable[[str], object] = print,
) -> Mined:
    """Returns the SVMs of more rows than fit at once, found by mining hard negatives.

    `blocks` are looked at one after the other, again in every round, and may be read from files:
    (features, targets) as `fit_svms` takes them. The first round has all rows that are positive for
    a class and `first_negatives` others. Each next one adds the `most_new` worst of those that the
    SVMs of the round before have on the wrong side of the margin, until there are none: the others
    cost nothing, so these are the SVMs of all rows. Rows are never taken out again.
    """
    if max_rounds < 1:
        raise ValueError(f"expected at least one round, got {max_rounds}")
    taken = _first_rows(blocks, first_negatives, seed)
    svms, counts = None, []
    for number in range(1, max_rounds + 1):
        parts = [
            (np.asarray(features)[rows], np.asarray(targets)[rows])
            for (features, targets), rows in zip(blocks, taken, strict=True)
        ]
        features, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
        counts.append(len(features))
        svms = fit_svms(features, targets, c=c, positive_weight=positive_weight, start=svms)
        worst = [_worst(svms, *block, rows) for block, rows in zip(blocks, taken, strict=True)]
        found = sum(int(np.isfinite(each).sum()) for each in worst)
        announce(f"SVMs, round {number}: {len(features):,} regions, {found:,} hard negatives more")
        if not found:
            return Mined(svms, tuple(counts), True)
        every = np.concatenate(worst)
        limit = np.sort(every)[max(len(every) - most_new, 0)]
        for rows, each in zip(taken, worst, strict=True):
            rows |= np.isfinite(each) & (each >= limit)
    return Mined(svms, tuple(counts), False)


def _first_rows(blocks: Sequence[Block], negatives: int, seed: int) -> list[Bool[np.ndarray, " n"]]:
    rng, first = np.random.default_rng(seed), []
    targets = [np.asarray(block[1]) for block in blocks]
    total = sum(int(((t == -1).any(axis=1) & (t < 1).all(axis=1)).sum()) for t in targets)
    share = negatives / max(total, 1)
    for each in targets:
        chosen = rng.random(len(each)) < share
        first.append((each == 1).any(axis=1) | (chosen & (each == -1).any(axis=1)))
    return first


def _worst(svms: Linear, features, targets, taken) -> Float[np.ndarray, " n"]:
    """Of each row that is not taken the largest margin that should be below -1, else -inf."""
    margins = np.asarray(_margins(svms, jnp.asarray(features, jnp.float32)))
    wrong = (np.asarray(targets) == -1) & (margins > -1) & ~taken[:, None]
    return np.where(wrong, margins, -np.inf).max(axis=1, initial=-np.inf)


@jax.jit
def _margins(svms: Linear, features):
    return features @ svms.kernel + svms.bias[None, :]


def fit_ridge(
    features: Float[Array, "n d"],
    targets: Float[Array, "n t"],
    *,
    penalty: int | float = 1000.0,
) -> Linear:
    """Returns the linear regression that minimises |y - x w - b|^2 + `penalty` * |w|^2.

    R-CNN's appendix C, equation 5: closed form, in float64, in as many unknowns as there are rows
    or features, whichever are fewer. The bias costs nothing. Without any row all is zero.

    >>> line = fit_ridge(np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]]), penalty=0.0)
    >>> line.kernel.tolist(), line.bias.tolist()
    ([[2.0]], [1.0])
    """
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    n, d = x.shape
    if n == 0:
        return Linear(np.zeros((d, y.shape[1]), np.float32), np.zeros(y.shape[1], np.float32))
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    if d <= n:
        kernel = np.linalg.solve(x.T @ x + penalty * np.eye(d), x.T @ y)
    else:
        kernel = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(n), y)
    bias = y_mean - x_mean @ kernel
    return Linear(kernel.astype(np.float32), bias.astype(np.float32))
