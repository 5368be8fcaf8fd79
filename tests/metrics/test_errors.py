"""Kinds of errors, on pictures worked by hand."""

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.metrics import (
    ERROR_KINDS,
    SIMILAR_CLASSES,
    detection_average_precision,
    detection_confusion,
    error_breakdown,
)
from jaxvision.metrics.errors import similar_matrix

from .scenes import found, nothing, random_pictures, there

NAMES = ["Coat", "Shirt", "Bag"]
SIMILAR = (("Coat", "Shirt"),)
COAT, SHIRT, BAG = range(3)


def kinds(breakdown):
    return [ERROR_KINDS[kind] for kind in breakdown.kind]


def test_one_of_each_kind():
    # Six coats, so that six detections of coats count; the seventh, a perfect one, does not.
    targets = [
        there((COAT, 0, 0, 10, 10), (COAT, 20, 0, 30, 10), (COAT, 40, 0, 50, 10)),
        there((COAT, 0, 0, 10, 10), (SHIRT, 20, 0, 30, 10), (BAG, 40, 0, 50, 10)),
        there((COAT, 0, 0, 10, 10), (COAT, 20, 0, 30, 10)),
    ]
    predictions = [
        found((COAT, 0.9, 0, 0, 10, 10), (COAT, 0.8, 0, 1, 10, 10), (COAT, 0.7, 20, 0, 30, 3)),
        found((COAT, 0.6, 20, 0, 30, 2), (COAT, 0.5, 40, 0, 50, 9)),
        found((COAT, 0.4, 12, 0, 18, 9), (COAT, 0.3, 0, 0, 10, 10)),
    ]
    result = error_breakdown(predictions, targets, NAMES, SIMILAR)
    assert kinds(result) == [
        "correct",
        "localisation",  # IoU 0.9 with a coat that the first detection has claimed
        "localisation",  # IoU 0.3
        "similar",  # IoU 0.2 with a shirt
        "other",  # on a bag
        "background",
    ]
    assert result.picture.tolist() == [0, 0, 0, 1, 1, 2]
    assert result.index.tolist() == [0, 1, 2, 0, 1, 0]
    assert result.object_index.tolist() == [0, 0, 1, 1, 2, -1]
    np.testing.assert_allclose(result.overlap, [1, 0.9, 0.3, 0.2, 0.9, 0], atol=1e-6)
    assert result.counts.tolist() == [[1, 2, 1, 1, 1], [0] * 5, [0] * 5]
    missed = list(zip(result.missed_picture.tolist(), result.missed_index.tolist(), strict=True))
    assert missed == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    # Only coats have detections; of their six, in the mean over classes with detections.
    assert list(result.shares) == list(ERROR_KINDS)
    assert list(result.shares.values()) == pytest.approx([1 / 6, 2 / 6, 1 / 6, 1 / 6, 1 / 6])
    assert result.missed_share == pytest.approx((5 / 6 + 1 + 1) / 3)


EDGES = [(10, "correct"), (5, "correct"), (4.99, "localisation"), (1, "localisation")]
EDGES += [(0.99, "background")]


@pytest.mark.parametrize(("height", "kind"), EDGES)
def test_the_edges_of_localisation(height, kind):
    result = error_breakdown(
        [found((COAT, 0.9, 0, 0, 10, height))], [there((COAT, 0, 0, 10, 10))], NAMES
    )
    assert kinds(result) == [kind]


def test_what_is_overlapped_most_decides_between_similar_and_other():
    # On a shirt with IoU 0.3 and on a bag with IoU 0.5, and the other way round.
    targets = [there((SHIRT, 0, 0, 10, 3), (BAG, 0, 5, 10, 10), (COAT, 40, 40, 50, 50))]
    predictions = [found((COAT, 0.9, 0, 0, 10, 10))]
    assert kinds(error_breakdown(predictions, targets, NAMES, SIMILAR)) == ["other"]
    targets = [there((SHIRT, 0, 0, 10, 5), (BAG, 0, 7, 10, 10), (COAT, 40, 40, 50, 50))]
    assert kinds(error_breakdown(predictions, targets, NAMES, SIMILAR)) == ["similar"]
    assert kinds(error_breakdown(predictions, targets, NAMES)) == ["other"]


def test_own_class_comes_before_a_better_overlap_with_another():
    targets = [there((COAT, 0, 0, 10, 2), (SHIRT, 0, 0, 10, 10))]
    result = error_breakdown([found((COAT, 0.9, 0, 0, 10, 10))], targets, NAMES, SIMILAR)
    assert kinds(result) == ["localisation"]
    assert result.object_index.tolist() == [0]


def test_difficult_objects_are_left_out_but_are_no_background():
    targets = [
        there((COAT, 0, 0, 10, 10), (COAT, 20, 0, 30, 10), (BAG, 40, 0, 50, 10), difficult=[1, 2])
    ]
    # On the difficult coat, twice; then a wrong one on the difficult bag; N is one.
    predictions = [
        found((COAT, 0.9, 20, 0, 30, 10), (COAT, 0.8, 20, 0, 30, 9), (COAT, 0.7, 40, 0, 50, 10))
    ]
    result = error_breakdown(predictions, targets, NAMES)
    assert kinds(result) == ["other"]
    assert result.num_objects.tolist() == [1, 0, 0]
    assert (result.missed_picture.tolist(), result.missed_index.tolist()) == ([0], [0])
    near_difficult = [found((COAT, 0.9, 20, 0, 30, 3))]
    assert kinds(error_breakdown(near_difficult, targets, NAMES)) == ["localisation"]


@pytest.mark.parametrize("integer", [False, True])
def test_correct_ones_are_the_true_positives_of_average_precision(integer):
    for seed in range(30):
        predictions, targets = random_pictures(seed, integer=integer)
        result = error_breakdown(predictions, targets, NAMES, SIMILAR)
        curves = detection_average_precision(predictions, targets, 3).curves
        for k, curve in enumerate(curves):
            n = result.num_objects[k]
            considered = min(n, len(curve.precision))
            assert result.counts[k].sum() == considered
            hits = round(curve.precision[considered - 1] * considered) if considered else 0
            assert result.counts[k, 0] == hits
        missed_places = zip(result.missed_picture, result.missed_index, strict=True)
        missed = [targets[i]["labels"][j] for i, j in missed_places]
        left = result.num_objects - result.counts[:, 0]
        np.testing.assert_array_equal(np.bincount(np.array(missed, int), minlength=3), left)


def test_nothing_found_and_nothing_there():
    result = error_breakdown([nothing()], [there((COAT, 0, 0, 4, 4))], NAMES)
    assert all(np.isnan(share) for share in result.shares.values())
    assert result.missed_share == 1.0
    result = error_breakdown([found((COAT, 0.9, 0, 0, 4, 4))], [there()], NAMES)
    assert kinds(result) == []
    assert np.isnan(result.missed_share)
    assert error_breakdown([], [], NAMES).counts.tolist() == [[0] * 5] * 3


def test_similar_classes_are_symmetric_and_known():
    matrix = similar_matrix(["a", "b", "c", "d"], (("a", "b"), ("b", "c")))
    assert matrix.astype(int).tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0] * 4]
    with pytest.raises(UserError, match="expected similar classes of Coat, Shirt, Bag; got Dress"):
        error_breakdown([], [], NAMES, (("Coat", "Dress"),))


def test_the_data_sets_own_names_fit_their_groups():
    from jaxvision.data.builders.fashion_mnist import CLASS_NAMES
    from jaxvision.weights.catalog import VOC_SEGMENTATION_CLASSES

    garments = similar_matrix(CLASS_NAMES, SIMILAR_CLASSES["garments"])
    assert garments.sum() == 5 * 4 + 3 * 2
    voc = similar_matrix(VOC_SEGMENTATION_CLASSES[1:], SIMILAR_CLASSES["voc"])
    assert voc.sum() == 7 * 6 + 7 * 6 + 3 * 2 + 2


def test_confusion_with_the_background():
    targets = [
        there((COAT, 0, 0, 10, 10), (SHIRT, 20, 0, 30, 10), (BAG, 40, 0, 50, 10), difficult=[2])
    ]
    predictions = [
        found(
            (SHIRT, 0.9, 0, 0, 10, 10),  # a coat taken for a shirt
            (COAT, 0.8, 0, 0, 10, 9),  # the coat is taken: a detection of nothing
            (BAG, 0.7, 40, 0, 50, 10),  # difficult: does not count
            (BAG, 0.2, 20, 0, 30, 10),  # below the threshold: the shirt is missed
        )
    ]
    result = detection_confusion(predictions, targets, 3)
    expected = np.zeros((4, 4), int)
    expected[COAT, SHIRT] = expected[3, COAT] = expected[SHIRT, 3] = 1
    np.testing.assert_array_equal(result, expected)
    lower = detection_confusion(predictions, targets, 3, score_threshold=0.1)
    assert (lower[SHIRT, BAG], lower[SHIRT, 3]) == (1, 0)
    assert detection_confusion([nothing()], [there()], 3).sum() == 0
