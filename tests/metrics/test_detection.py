"""VOC's average precision against a slow, literal form of the devkit's algorithm."""

from fractions import Fraction

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.metrics import detection_average_precision
from jaxvision.metrics.boxes import match_detections, pairwise_iou

from .scenes import found, nothing, random_pictures, there

NAN = float("nan")
ONE = found((0, 0.5, 0, 0, 1, 1))


def devkit(predictions, targets, label, iou_threshold):
    """VOCevaldet.m, line by line, for one class; returns (tp, fp, npos), by descending score.

    The devkit's widths are x2 - x1 + 1 because it counts pixels; ours lie between them.
    """
    truth, npos = [], 0
    for target in targets:
        mine = [j for j, each in enumerate(target["labels"]) if each == label]
        difficult = [bool(target["difficult"][j]) for j in mine]
        boxes = [[float(v) for v in target["boxes"][j]] for j in mine]
        truth.append({"bb": boxes, "diff": difficult, "det": [False] * len(mine)})
        npos += difficult.count(False)
    detections = []
    for i, prediction in enumerate(predictions):
        for j, each in enumerate(prediction["labels"]):
            if each == label:
                box = [float(v) for v in prediction["boxes"][j]]
                detections.append((float(prediction["scores"][j]), i, box))
    detections.sort(key=lambda row: -row[0])  # Python's sort, like MATLAB's, keeps ties in order
    tp, fp = [], []
    for _, i, bb in detections:
        gt, ovmax, jmax = truth[i], -np.inf, None
        for j, bbgt in enumerate(gt["bb"]):
            iw = min(bb[2], bbgt[2]) - max(bb[0], bbgt[0])
            ih = min(bb[3], bbgt[3]) - max(bb[1], bbgt[1])
            if iw > 0 and ih > 0 and bb[2] > bb[0] and bb[3] > bb[1]:
                area = (bb[2] - bb[0]) * (bb[3] - bb[1])
                ua = area + (bbgt[2] - bbgt[0]) * (bbgt[3] - bbgt[1]) - iw * ih
                if iw * ih / ua > ovmax:
                    ovmax, jmax = iw * ih / ua, j
        tp.append(0)
        fp.append(0)
        if ovmax >= iou_threshold:
            if not gt["diff"][jmax]:
                if not gt["det"][jmax]:
                    tp[-1], gt["det"][jmax] = 1, True
                else:
                    fp[-1] = 1
        else:
            fp[-1] = 1
    return tp, fp, npos


def devkit_ap(tp, fp, npos, method):
    """The devkit's average precision; with fractions, because its recall levels are tenths."""
    tp, fp = np.cumsum(tp).tolist(), np.cumsum(fp).tolist()
    rec = [Fraction(int(t), npos) for t in tp]
    prec = [
        Fraction(int(t), int(t + f)) if t + f else Fraction(0) for t, f in zip(tp, fp, strict=True)
    ]
    if method == "voc07":
        ap = Fraction(0)
        for level in range(11):
            reached = [p for p, r in zip(prec, rec, strict=True) if r >= Fraction(level, 10)]
            ap += max(reached, default=Fraction(0)) / 11
        return float(ap)
    mrec, mpre = [Fraction(0), *rec, Fraction(1)], [Fraction(0), *prec, Fraction(0)]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    changes = [i for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1]]
    return float(sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in changes))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.5, 0.0, 0.75, 1.0])
def test_equals_the_devkit_on_random_and_hostile_detections(integer, iou_threshold):
    classes_with_objects = 0
    for seed in range(60):
        predictions, targets = random_pictures(seed, integer=integer)
        for method in ("voc07", "voc12"):
            result = detection_average_precision(predictions, targets, 3, iou_threshold, method)
            for label in range(3):
                tp, fp, npos = devkit(predictions, targets, label, iou_threshold)
                expected = devkit_ap(tp, fp, npos, method) if npos else NAN
                assert result.num_objects[label] == npos
                np.testing.assert_allclose(result.ap[label], expected, rtol=0, atol=1e-9)
                classes_with_objects += npos > 0
                counts = np.array(tp) + np.array(fp) > 0
                precision = np.cumsum(tp) / np.maximum(np.cumsum(tp) + np.cumsum(fp), 1)
                curve = result.curves[label]
                np.testing.assert_allclose(curve.precision, precision[counts], atol=1e-12)
                if npos:
                    recall = (np.cumsum(tp) / npos)[counts]
                    np.testing.assert_allclose(curve.recall, recall, atol=1e-12)
    assert classes_with_objects > 250


def test_a_case_worked_by_hand():
    # Right, wrong, right, of three objects: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    predictions = [
        found((0, 0.9, 0, 0, 4, 4), (0, 0.7, 10, 10, 14, 14)),
        found((0, 0.8, 30, 30, 34, 34)),
    ]
    targets = [there((0, 0, 0, 4, 4), (0, 10, 10, 14, 14)), there((0, 0, 0, 4, 4))]
    area = detection_average_precision(predictions, targets, 1)
    assert area.ap[0] == pytest.approx((1 + 2 / 3) / 3, abs=1e-12)
    # Recall 0 to 0.3 is reached with precision 1, 0.4 to 0.6 with 2/3, 0.7 and above never.
    points = detection_average_precision(predictions, targets, 1, method="voc07")
    assert points.ap[0] == pytest.approx((4 + 3 * 2 / 3) / 11, abs=1e-12)
    assert area.curves[0].recall.tolist() == [1 / 3, 1 / 3, 2 / 3]
    assert area.curves[0].score.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_recall_of_exactly_three_tenths_reaches_that_level():
    # Three of ten objects are found: levels 0, 0.1, 0.2 and 0.3 have precision 1.
    targets = [there(*[(0, 10 * i, 0, 10 * i + 8, 8) for i in range(10)])]
    predictions = [found(*[(0, 0.5, 10 * i, 0, 10 * i + 8, 8) for i in range(3)])]
    result = detection_average_precision(predictions, targets, 1, method="voc07")
    assert result.ap[0] == pytest.approx(4 / 11, abs=1e-12)


def test_difficult_objects_neither_count_nor_count_against():
    targets = [there((0, 0, 0, 4, 4), (0, 20, 20, 30, 30), difficult=[1])]
    right = (0, 0.5, 0, 0, 4, 4)
    alone = detection_average_precision([found(right)], targets, 1)
    twice = found((0, 0.9, 20, 20, 30, 30), (0, 0.8, 20, 20, 30, 30), right)
    with_difficult = detection_average_precision([twice], targets, 1)
    assert alone.ap.tolist() == with_difficult.ap.tolist() == [1.0]
    assert len(with_difficult.curves[0].precision) == 1
    only_difficult = [there((0, 20, 20, 30, 30), difficult=[0])]
    result = detection_average_precision([twice], only_difficult, 1)
    assert np.isnan(result.ap[0])
    assert np.isnan(result.mean)


def test_a_detection_claims_the_object_it_overlaps_most_even_if_that_is_taken():
    # Both lie best on the first object; the second object, of IoU 0.6, stays unclaimed.
    targets = [there((0, 0, 0, 10, 10), (0, 0, 2, 10, 12))]
    predictions = [found((0, 0.9, 0, 0, 10, 10), (0, 0.8, 0, 0.5, 10, 10.5))]
    matches = match_detections(predictions, targets, 1)
    assert pairwise_iou(predictions[0]["boxes"], targets[0]["boxes"])[1, 1] > 0.5
    assert matches.verdicts(0.5).tolist() == [1, -1]


def test_equal_scores_keep_their_order_picture_by_picture():
    targets = [there((0, 0, 0, 4, 4)), there((0, 0, 0, 4, 4))]
    right, wrong = (0, 0.5, 0, 0, 4, 4), (0, 0.5, 9, 9, 10, 10)
    first = detection_average_precision([found(right), found(wrong)], targets, 1)
    assert first.ap[0] == 0.5
    last = detection_average_precision([found(wrong), found(right)], targets, 1)
    assert last.ap[0] == 0.25
    matches = match_detections([found(wrong, right), found(right)], targets, 1)
    assert (matches.picture.tolist(), matches.index.tolist()) == ([0, 0, 1], [0, 1, 0])


def test_several_thresholds_are_averaged_and_classes_without_objects_left_out():
    predictions = [found((0, 0.9, 0, 0, 10, 6), (2, 0.3, 0, 0, 1, 1))]
    targets = [there((0, 0, 0, 10, 10), (1, 20, 20, 30, 30))]
    result = detection_average_precision(predictions, targets, 3, (0.5, 0.75))
    np.testing.assert_array_equal(result.table, [[1, 0, NAN], [0, 0, NAN]])
    np.testing.assert_array_equal(result.ap, [0.5, 0, NAN])
    assert result.mean == 0.25


def test_targets_may_be_objects_of_a_data_set():
    from jaxvision.data.detection import Objects

    target = Objects.of([(0.0, 0.0, 4.0, 4.0), (9.0, 9.0, 12.0, 12.0)], [0, 0], [False, True])
    result = detection_average_precision([found((0, 0.9, 0, 0, 4, 4))], [target], 1)
    assert (result.ap.tolist(), result.num_objects.tolist()) == ([1.0], [1])


def test_empty_everything():
    for targets in ([], [there()], [there(), there()]):
        result = detection_average_precision([nothing()] * len(targets), targets, 2)
        assert np.isnan(result.ap).all()
        assert np.isnan(result.mean)
    result = detection_average_precision([nothing()], [there((1, 0, 0, 4, 4))], 2)
    np.testing.assert_array_equal(result.ap, [NAN, 0.0])
    empty_box = [found((0, 0.9, 4, 4, 4, 4), (0, 0.8, 8, 8, 2, 2))]
    result = detection_average_precision(empty_box, [there((0, 0, 0, 10, 10))], 1)
    assert result.curves[0].precision.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (found((0, NAN, 0, 0, 1, 1)), "predictions of picture 1: expected scores .* got NaN"),
        (found((0, 0.5, 0, NAN, 1, 1)), "predictions of picture 1: expected boxes of finite"),
        (found((3, 0.5, 0, 0, 1, 1)), "expected labels from 0 to 2, got 3 to 3"),
        (found((-1, 0.5, 0, 0, 1, 1)), "got -1 to -1; background is no class here"),
        (
            {**found((0, 0.5, 0, 0, 1, 1)), "labels": np.zeros(2, int)},
            r"labels \[n\], got \[1, 4\]",
        ),
        ({**ONE, "labels": np.zeros(2, int)}, r"labels \[n\], got \[1, 4\] and \[2\]"),
        ({**ONE, "scores": np.zeros(2)}, "expected 1 scores, got 2"),
    ],
)
def test_what_has_no_meaning_is_named(prediction, message):
    with pytest.raises(UserError, match=message):
        detection_average_precision([nothing(), prediction], [there(), there()], 3)


def test_wrong_arguments_are_named():
    with pytest.raises(UserError, match="for each of 2 pictures, got 1"):
        detection_average_precision([nothing()], [there(), there()], 1)
    bad = {**there((0, 0, 0, 1, 1)), "difficult": np.zeros(3, bool)}
    with pytest.raises(UserError, match=r"objects of picture 0: expected 1 flags .* got \[3\]"):
        detection_average_precision([nothing()], [bad], 1)
    with pytest.raises(ValueError, match="expected IoU thresholds from 0 to 1, got 50"):
        detection_average_precision([], [], 1, 50.0)
