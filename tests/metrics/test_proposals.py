"""Recall and overlap of proposals: values worked by hand, and a slow form over random boxes."""

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.metrics import proposal_scores

from .scenes import random_pictures, there


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, x[2] - x[0]) * max(0.0, x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def test_values_worked_by_hand():
    # Of class 0 two objects, covered by 1 and by 0.5; of class 1 one, covered by 0.6 or not at all.
    targets = [
        there((0, 0, 0, 10, 10), (1, 20, 0, 30, 10)),
        there((0, 0, 0, 10, 10), (1, 50, 50, 60, 60), difficult=[1]),
    ]
    proposals = [np.array([[0, 0, 10, 10], [20, 0, 30, 6.0]]), np.array([[0, 0, 10, 5.0]])]
    scores = proposal_scores(proposals, targets, 3, counts=(1, 2), iou_thresholds=(0.5, 0.6, 0.7))
    assert scores.num_objects.tolist() == [2, 1, 0]
    np.testing.assert_allclose(scores.recall, [[2 / 3, 1 / 3, 1 / 3], [1, 2 / 3, 1 / 3]])
    np.testing.assert_allclose(scores.abo, [[0.75, 0, np.nan], [0.75, 0.6, np.nan]])
    np.testing.assert_allclose(scores.mabo, [0.375, 0.675])
    # The integral of recall from IoU 0.5 to 1, twice: 1, 0.2 and nothing of three objects.
    np.testing.assert_allclose(scores.average_recall, [1 / 3, 1.2 / 3])
    np.testing.assert_allclose(scores.mean_boxes, [1, 1.5])


def test_equals_a_slow_form_on_random_boxes():
    for seed in range(10):
        predictions, targets = random_pictures(seed)
        proposals = [prediction["boxes"] for prediction in predictions]
        scores = proposal_scores(proposals, targets, 3, counts=(1, 5, 50))
        for c, count in enumerate((1, 5, 50)):
            best = [
                (max((slow_iou(b, box) for b in boxes[:count].astype(float)), default=0.0), label)
                for boxes, target in zip(proposals, targets, strict=True)
                for box, label, difficult in zip(*target.values(), strict=True)
                if not difficult
            ]
            overlaps = np.array([overlap for overlap, _ in best])
            for t, threshold in enumerate(scores.iou_thresholds):
                recall = (overlaps >= threshold).mean()
                np.testing.assert_allclose(scores.recall[c, t], recall, atol=1e-12)
            fine = np.linspace(0.5, 1, 4001)[:, None]
            area = (overlaps[None, :] >= fine).mean()
            np.testing.assert_allclose(scores.average_recall[c], area, atol=1e-3)
            abo = [np.mean([o for o, k in best if k == label]) for label in {k for _, k in best}]
            np.testing.assert_allclose(scores.mabo[c], np.mean(abo), atol=1e-12)


def test_recall_never_falls_with_more_boxes_nor_rises_with_the_threshold():
    predictions, targets = random_pictures(3, pictures=30)
    proposals = [prediction["boxes"] for prediction in predictions]
    scores = proposal_scores(
        proposals, targets, 3, range(1, 21), tuple(np.linspace(0.1, 0.9, 9).tolist())
    )
    assert (np.diff(scores.recall, axis=0) >= 0).all()
    assert (np.diff(scores.recall, axis=1) <= 0).all()
    assert scores.recall[0].max() < scores.recall[-1].max()
    assert (np.diff(scores.mabo) >= 0).all()


def test_no_object_and_no_proposal():
    scores = proposal_scores([np.zeros((0, 4))], [there()], 2)
    assert np.isnan(scores.recall).all()
    assert np.isnan(scores.mabo).all()
    assert scores.mean_boxes.tolist() == [0.0] * 6
    scores = proposal_scores([np.zeros((0, 4))], [there((1, 0, 0, 4, 4))], 2, counts=(7,))
    assert scores.recall.tolist() == [[0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(scores.abo, [[np.nan, 0.0]])
    assert np.isnan(proposal_scores([], [], 2).mabo).all()


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match="expected proposals for 1 pictures, got 0"):
        proposal_scores([], [there()], 1)
    with pytest.raises(ValueError, match=r"at least 1, got \[0\]"):
        proposal_scores([], [], 1, counts=(0,))
