"""Classification metrics: by hand, against slow references, and with poison in the padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import metrics
from jaxvision.metrics import most_confident_errors, most_confused_pairs, per_class_scores

# Compiled whole: operation by operation takes ten times as long.
accuracy = jax.jit(metrics.accuracy)
top_k_accuracy = jax.jit(metrics.top_k_accuracy, static_argnames="k")
confusion_matrix = jax.jit(metrics.confusion_matrix, static_argnames="num_classes")

K = 4


def batch(seed, size=64):
    """Logits with many ties (few distinct values), labels, and a mask that hides a third."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-2, 3, (size, K)).astype(np.float32)
    return logits, rng.integers(0, K, size), rng.random(size) < 0.66


def slow_top_k(logits, labels, k, valid):
    right = []
    for row, label, counts in zip(logits, labels, valid, strict=True):
        if counts:
            ranking = sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))
            right.append(int(label) in ranking[:k])
    return float(np.mean(right)) if right else 0.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2, K])
def test_top_k_accuracy_equals_a_sorted_ranking(seed, k):
    logits, labels, valid = batch(seed)
    expected = slow_top_k(logits, labels, k, valid)
    for function in (metrics.top_k_accuracy, top_k_accuracy):
        assert float(function(logits, labels, k=k, valid=valid)) == pytest.approx(expected)


def test_accuracy_by_hand():
    logits = np.array([[0, 1, 0], [2, 1, 0], [0, 1, 3], [1, 1, 0]], np.float32)
    assert float(accuracy(logits, np.array([1, 1, 2, 0]))) == 0.75
    # The tie of the last row goes to class 0, so class 1 is wrong.
    assert float(accuracy(logits, np.array([1, 1, 2, 1]))) == 0.5


@pytest.mark.parametrize("poison", [0.0, 1e30, np.inf, np.nan])
def test_padding_never_counts(poison):
    logits, labels, valid = batch(7)
    expected = float(accuracy(logits[valid], labels[valid]))
    logits[~valid], labels[~valid] = poison, -1
    assert float(accuracy(logits, labels, valid)) == pytest.approx(expected)
    assert float(accuracy(logits, labels, np.zeros_like(valid))) == 0.0


def test_a_valid_row_with_nan_or_a_label_out_of_range_is_wrong():
    logits = np.array([[np.nan, 0], [0, np.nan], [np.nan, np.nan], [1, 0]], np.float32)
    assert float(accuracy(logits, np.array([0, 0, 0, 0]))) == 0.25
    assert float(accuracy(np.eye(2, dtype=np.float32), np.array([-1, 2]))) == 0.0


def test_accuracy_under_vmap_and_in_an_auxiliary_output():
    batches = [batch(seed) for seed in range(3)]
    stacked = [np.stack(parts) for parts in zip(*batches, strict=True)]
    expected = [float(accuracy(*parts)) for parts in batches]
    np.testing.assert_allclose(jax.jit(jax.vmap(accuracy))(*stacked), expected, rtol=1e-6)

    def loss(logits):
        return logits.sum(), metrics.accuracy(logits, batches[0][1])

    grads, value = jax.jit(jax.grad(loss, has_aux=True))(batches[0][0])
    assert float(value) == pytest.approx(float(accuracy(*batches[0][:2])))
    np.testing.assert_array_equal(grads, np.ones_like(grads))


def test_bfloat16_logits_and_uint8_labels():
    logits = np.eye(300, dtype=jnp.bfloat16)[:256]
    labels = np.arange(256, dtype=np.uint8)
    assert float(accuracy(logits, labels)) == 1.0
    assert float(accuracy(logits, np.roll(labels, 1))) == 0.0


@pytest.mark.parametrize("k", [0, K + 1])
def test_k_out_of_range_is_an_error(k):
    logits, labels, _ = batch(0)
    with pytest.raises(ValueError, match=f"from 1 to the 4 classes, got {k}"):
        metrics.top_k_accuracy(logits, labels, k)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
@pytest.mark.parametrize("padding_label", [0, 21])
def test_confusion_matrix_equals_a_loop(seed, dtype, padding_label):
    rng = np.random.default_rng(seed)
    k = 20  # 20 * 20 does not fit into uint8
    labels, predictions = rng.integers(0, k, (2, 500)).astype(dtype)
    valid = rng.random(500) < 0.7
    expected = np.zeros((k, k), np.int32)
    for true, predicted in zip(labels[valid], predictions[valid], strict=True):
        expected[true, predicted] += 1
    labels[~valid] = padding_label
    for function in (metrics.confusion_matrix, confusion_matrix):
        got = function(labels, predictions, num_classes=k, valid=valid)
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == jnp.int32


def test_confusion_matrix_counts_nothing_out_of_range():
    # -1 must not wrap to the last class, nor (0, 2) land in (1, 0).
    got = confusion_matrix(np.array([-1, 0, 2, 0, 1]), np.array([0, 2, 0, -1, 1]), 2)
    assert got.tolist() == [[0, 0], [0, 1]]
    assert confusion_matrix(np.zeros(0, int), np.zeros(0, int), 1).tolist() == [[0]]
    with pytest.raises(ValueError, match="num_classes=0"):
        metrics.confusion_matrix(np.zeros(1, int), np.zeros(1, int), 0)


def test_confusion_matrix_under_vmap():
    labels, predictions = np.random.default_rng(0).integers(0, 3, (2, 5, 11))
    got = jax.jit(jax.vmap(lambda a, b: metrics.confusion_matrix(a, b, 3)))(labels, predictions)
    expected = [confusion_matrix(a, b, 3) for a, b in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(got, np.stack(expected))


def test_per_class_scores_by_hand():
    #            predicted:  0  1  2  3
    confusion = np.array([[4, 1, 0, 0], [2, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    scores = per_class_scores(confusion)
    np.testing.assert_allclose(scores.precision, [4 / 7, 3 / 4, 0, 0])
    np.testing.assert_allclose(scores.recall, [4 / 5, 3 / 5, 0, 0])
    np.testing.assert_allclose(scores.f1, [2 / 3, 2 / 3, 0, 0])
    np.testing.assert_array_equal(scores.support, [5, 5, 1, 0])


def test_per_class_scores_equal_counting_the_examples():
    rng = np.random.default_rng(3)
    labels, predictions = rng.integers(0, 5, (2, 300))
    scores = per_class_scores(confusion_matrix(labels, predictions, 5))
    for k in range(5):
        precision = np.mean(labels[predictions == k] == k)
        recall = np.mean(predictions[labels == k] == k)
        assert scores.precision[k] == pytest.approx(precision)
        assert scores.recall[k] == pytest.approx(recall)
        assert scores.f1[k] == pytest.approx(2 * precision * recall / (precision + recall))


def test_most_confused_pairs_leave_out_the_diagonal_and_zeros():
    confusion = jnp.asarray(np.array([[90, 2, 0], [5, 80, 2], [0, 0, 70]], np.int32))
    assert most_confused_pairs(confusion, 9).tolist() == [[1, 0, 5], [0, 1, 2], [1, 2, 2]]
    assert most_confused_pairs(confusion, 1).tolist() == [[1, 0, 5]]
    assert most_confused_pairs(np.eye(3, dtype=int), 5).shape == (0, 3)


def test_most_confident_errors_order_ties_nan_and_padding():
    confidences = np.array([0.7, 0.9, 0.7, 0.1, 0.95, np.nan, 0.7])
    probabilities = np.stack([1 - confidences, confidences], axis=1)
    labels = np.array([0, 0, 0, 0, 0, 1, 0])
    valid = np.array([True, True, True, True, False, True, True])
    assert most_confident_errors(probabilities, labels, 9, valid).tolist() == [1, 0, 2, 6]
    assert most_confident_errors(probabilities, labels, 9).tolist() == [4, 1, 0, 2, 6]
    assert most_confident_errors(probabilities, labels, 2, valid).tolist() == [1, 0]
    assert most_confident_errors(probabilities, labels, 0).size == 0
    # Enough equal values that an unstable sort would shuffle them.
    assert most_confident_errors(
        np.tile([0.25, 0.75], (500, 1)), np.zeros(500, int), 500
    ).tolist() == (list(range(500)))
    assert most_confident_errors(np.ones((3, 1)), np.zeros(3, int), 5).size == 0
    assert most_confident_errors(np.ones((0, 2)), np.zeros(0, int), 5).size == 0
