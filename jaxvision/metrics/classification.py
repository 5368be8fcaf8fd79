"""Accuracy, the confusion matrix, and what is derived from it.

`accuracy`, `top_k_accuracy` and `confusion_matrix` are jnp with fixed shapes, for use inside a
jitted step. A padded example (`valid` False) never counts, whatever it holds. The rest is numpy,
for reports: the size of its results depends on the data.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Integer

from jaxvision.types import Array


def accuracy(
    logits: Float[Array, "b k"],
    labels: Integer[Array, " b"],
    valid: Bool[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Returns the share, 0 to 1, of valid examples whose largest logit is the label's.

    Equal logits go to the lowest class, as with argmax. Unlike argmax, which takes NaN for the
    largest value, a valid row that holds NaN is always wrong: a diverged model must not score on
    class 0. A label outside 0..k-1 is wrong too. With no valid example the accuracy is 0.

    >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    >>> float(accuracy(logits, jnp.array([0, 1, 1]), jnp.array([True, True, False])))
    1.0
    """
    return top_k_accuracy(logits, labels, 1, valid)


def top_k_accuracy(
    logits: Float[Array, "b k"],
    labels: Integer[Array, " b"],
    k: int,
    valid: Bool[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Returns the share of valid examples whose label is among the `k` largest logits.

    Ties, NaN, labels out of range and an empty batch are treated as in `accuracy`. `k` is static
    under jit, and at most the number of classes.

    >>> logits = jnp.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    >>> float(top_k_accuracy(logits, jnp.array([1, 2]), k=2))
    0.5
    """
    num_classes = logits.shape[1]
    if not 1 <= k <= num_classes:
        raise ValueError(f"expected k from 1 to the {num_classes} classes, got {k}")
    if valid is None:
        valid = jnp.ones(labels.shape, bool)
    # A narrow label type (uint8) would wrap around in the comparisons below.
    labels = labels.astype(jnp.int32)[:, None]
    in_range = (labels >= 0) & (labels < num_classes)
    label_logits = jnp.take_along_axis(logits, jnp.where(in_range, labels, 0), axis=1)
    classes = jnp.arange(num_classes)[None, :]
    ahead = (logits > label_logits) | ((logits == label_logits) & (classes < labels))
    is_right = in_range[:, 0] & ~jnp.isnan(logits).any(axis=1) & (ahead.sum(axis=1) < k)
    return jnp.sum(is_right, where=valid) / jnp.maximum(jnp.sum(valid), 1)


@partial(jax.jit, static_argnames="num_classes")
def confusion_matrix(
    labels: Integer[Array, " b"],
    predictions: Integer[Array, " b"],
    num_classes: int,
    valid: Bool[Array, " b"] | None = None,
) -> Int32[Array, "k k"]:
    """Returns how many valid examples of each true class (row) were given each class (column).

    A label or a prediction outside 0..num_classes-1 is not counted. `num_classes` is static under
    jit. Matrices of several batches add up.

    >>> confusion_matrix(jnp.array([0, 0, 1]), jnp.array([0, 1, 1]), num_classes=2).tolist()
    [[1, 1], [0, 1]]
    """
    if num_classes < 1:
        raise ValueError(f"expected at least one class, got num_classes={num_classes}")
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    counted = (labels >= 0) & (labels < num_classes)
    counted &= (predictions >= 0) & (predictions < num_classes)
    if valid is not None:
        counted &= valid
    # One bin more than the matrix has cells collects what is not counted, and is cut off.
    cells = jnp.where(counted, labels * num_classes + predictions, num_classes**2)
    counts = jnp.bincount(cells, length=num_classes**2 + 1)[:-1]
    return counts.astype(jnp.int32).reshape(num_classes, num_classes)


class ClassScores(NamedTuple):
    """One value a class: `precision`, `recall`, `f1` float64 [k] in 0 to 1, `support` int64 [k]."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def per_class_scores(confusion: Integer[Array, "k k"]) -> ClassScores:
    """Returns each class's precision, recall, F1 and number of examples (support).

    0/0 is 0, as with scikit-learn's `zero_division=0`: the precision of a class that was never
    predicted, the recall of one that has no example, the F1 of one that has neither.

    >>> scores = per_class_scores(np.array([[3, 1], [0, 4]]))
    >>> scores.precision.tolist(), scores.recall.tolist(), scores.support.tolist()
    ([1.0, 0.8], [0.75, 1.0], [4, 4])
    """
    confusion = np.asarray(confusion).astype(np.int64)
    hits = np.diagonal(confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassScores(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted),
        support=support,
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    zeros = np.zeros(numerator.shape, np.float64)
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def most_confused_pairs(confusion: Integer[Array, "k k"], count: int) -> Int[np.ndarray, "pairs 3"]:
    """Returns up to `count` rows (true class, predicted class, how often), most frequent first.

    Only mistakes that occur; equal counts keep the matrix's order, row by row.

    >>> most_confused_pairs(np.array([[5, 2], [3, 4]]), count=1).tolist()
    [[1, 0, 3]]
    """
    errors = np.array(confusion, np.int64)
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[: max(count, 0)]
    order = order[errors.ravel()[order] > 0]
    true, predicted = np.unravel_index(order, errors.shape)
    return np.stack([true, predicted, errors[true, predicted]], axis=1)


def most_confident_errors(
    probabilities: Float[Array, "b k"],
    labels: Integer[Array, " b"],
    count: int,
    valid: Bool[Array, " b"] | None = None,
) -> Int[np.ndarray, " errors"]:
    """Returns the indices of up to `count` wrong examples, the most confident prediction first.

    Equal confidences keep their order. A row that holds NaN predicts nothing, so it is left out, as
    a padded one is.

    >>> probabilities = np.array([[0.4, 0.6], [0.1, 0.9], [0.8, 0.2]])
    >>> most_confident_errors(probabilities, np.array([0, 0, 0]), count=2).tolist()
    [1, 0]
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    is_error = probabilities.argmax(axis=1) != labels
    is_error &= ~np.isnan(probabilities).any(axis=1)
    if valid is not None:
        is_error &= np.asarray(valid)
    (errors,) = np.nonzero(is_error)
    order = np.argsort(-probabilities[errors].max(axis=1), kind="stable")
    return errors[order][: max(count, 0)]
