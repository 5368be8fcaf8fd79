"""Scores of label maps: values worked by hand, slow forms over random maps, what is ignored."""

import jax
import numpy as np
import pytest

from jaxvision import metrics
from jaxvision.metrics import boundary_accuracy, boundary_band, segmentation_scores

# Compiled whole: operation by operation takes ten times as long.
segmentation_confusion = jax.jit(metrics.segmentation_confusion, static_argnums=2)

LABELS = np.array([[[0, 0, 1], [2, 255, 1]], [[1, 1, 1], [0, 0, 0]]], np.uint8)
PREDICTIONS = np.array([[[0, 1, 1], [2, 2, 0]], [[1, 1, 0], [0, 0, 0]]], np.int32)


def test_confusion_and_scores_worked_by_hand():
    confusion = segmentation_confusion(LABELS, PREDICTIONS, 4)
    assert confusion.tolist() == [[4, 1, 0, 0], [2, 3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    scores = segmentation_scores(confusion)
    assert scores.pixel_accuracy == pytest.approx(8 / 11)
    np.testing.assert_allclose(scores.accuracy, [4 / 5, 3 / 5, 1, np.nan])
    assert scores.mean_accuracy == pytest.approx((4 / 5 + 3 / 5 + 1) / 3)
    np.testing.assert_allclose(scores.iou, [4 / 7, 3 / 6, 1, np.nan])
    assert scores.mean_iou == pytest.approx((4 / 7 + 3 / 6 + 1) / 3)


def test_a_class_that_was_only_predicted_counts_as_zero():
    scores = segmentation_scores(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(scores.iou, [3 / 4, 0, np.nan])
    assert scores.mean_iou == pytest.approx(3 / 8)
    assert scores.mean_accuracy == pytest.approx(3 / 4)
    nothing = segmentation_scores(np.zeros((2, 2), int))
    assert np.isnan(nothing[:3]).all()


def test_ignored_pixels_and_padded_examples_do_not_count_whatever_they_hold():
    expected = segmentation_confusion(LABELS[:1], PREDICTIONS[:1], 3)
    valid = np.array([True, False])

    @jax.jit
    def step(labels, predictions, valid):
        return metrics.segmentation_confusion(labels, predictions, 3, valid)

    for filler in (0, 7, 255):
        labels = np.where(valid[:, None, None], LABELS, filler).astype(np.int32)
        result = step(labels, PREDICTIONS, valid)
        np.testing.assert_array_equal(result, expected)
    pixels = np.zeros(LABELS.shape, bool)
    pixels[0, 0, :2] = True
    by_pixel = segmentation_confusion(LABELS, PREDICTIONS, 3, pixels)
    assert by_pixel.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert step._cache_size() == 1


def test_equals_a_slow_form_and_adds_up_over_batches():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 9, 7)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    predictions = rng.integers(0, 5, labels.shape)
    expected = np.zeros((5, 5), int)
    for true, predicted in zip(labels.ravel(), predictions.ravel(), strict=True):
        if true != 255:
            expected[true, predicted] += 1
    total = sum(
        np.asarray(segmentation_confusion(labels[i : i + 2], predictions[i : i + 2], 5), np.int64)
        for i in (0, 2)
    )
    np.testing.assert_array_equal(total, expected)
    scores = segmentation_scores(total)
    hits = [((labels == k) & (predictions == k)).sum() for k in range(5)]
    either = [(((labels == k) | (predictions == k)) & (labels != 255)).sum() for k in range(5)]
    np.testing.assert_allclose(scores.iou, np.array(hits) / np.array(either))


def slow_band(labels, distance):
    """Whether any pixel of another label is near, pair by pair."""
    h, w = labels.shape
    places = [(y, x) for y in range(h) for x in range(w)]
    band = np.zeros((h, w), bool)
    for y, x in places:
        band[y, x] = any(
            labels[v, u] != labels[y, x] and (y - v) ** 2 + (x - u) ** 2 <= distance**2
            for v, u in places
        )
    return band


@pytest.mark.parametrize("distance", [1, 1.5, 2, 3, 5])
def test_the_band_equals_a_slow_form(distance):
    rng = np.random.default_rng(0)
    coarse = rng.choice([0, 1, 2, 255], (4, 3, 4)).astype(np.uint8)
    labels = coarse.repeat(5, axis=1).repeat(4, axis=2)
    expected = np.stack([slow_band(picture.astype(int), distance) for picture in labels])
    np.testing.assert_array_equal(boundary_band(labels, distance), expected)
    assert expected.any()
    one_label = np.full((1, 4, 4), 3, np.uint8)
    assert not boundary_band(one_label, distance).any()


def test_a_prediction_that_is_wrong_inside_does_not_lose_boundary_accuracy():
    labels = np.zeros((1, 16, 16), np.uint8)
    labels[:, :, 8:] = 1
    inside = labels.copy()
    inside[:, :, 0] = 1
    at_boundary = labels.copy()
    at_boundary[:, :, 8] = 0
    assert boundary_accuracy(labels, inside, 2, 2) == 1.0
    assert boundary_accuracy(labels, at_boundary, 2, 2) == 0.75
    assert boundary_accuracy(labels, at_boundary, 2, 1) == 0.5
    assert np.isnan(boundary_accuracy(np.zeros_like(labels), labels, 2, 2))
    both = np.concatenate([labels, labels])
    predicted = np.concatenate([at_boundary, 1 - labels])
    assert boundary_accuracy(both, predicted, 2, 2, np.array([True, False])) == 0.75


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="a distance of at least 1 pixel, got 0"):
        boundary_band(LABELS, 0)
    with pytest.raises(ValueError, match="at most 255 classes, got 300"):
        metrics.segmentation_confusion(LABELS, PREDICTIONS, 300)
