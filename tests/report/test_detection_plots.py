"""Figures of detection: what they show, for odd results too."""

import dataclasses
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxvision.metrics import detection_average_precision, error_breakdown, proposal_scores
from jaxvision.report import detection_plots as plots
from jaxvision.report.embed import to_svg

NAMES = ["$coat_{$", "<bag>"]
TARGETS = [
    {"boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 10]]), "labels": np.array([0, 0])},
    {"boxes": np.array([[0, 0, 10, 10]]), "labels": np.array([0])},
]
PREDICTIONS = [
    {
        "boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 4], [50, 50, 60, 60]]),
        "scores": np.array([0.9, 0.8, 0.4]),
        "labels": np.array([0, 0, 1]),
    },
    {"boxes": np.array([[40, 0, 50, 10]]), "scores": np.array([0.7]), "labels": np.array([0])},
]
NOTHING = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}


def words(figure):
    return [element.text for element in ElementTree.fromstring(to_svg(figure)).iter("text")]


def test_precision_and_recall_of_two_detectors_share_the_charts():
    results = {
        "one": detection_average_precision(PREDICTIONS, TARGETS, 2),
        "two": detection_average_precision([NOTHING, NOTHING], TARGETS, 2),
    }
    figure = plots.precision_recall_grid(results, NAMES)
    coat, bag = figure.axes
    assert coat.get_title() == "$coat_{$\nAP 33.3 | 0.0"
    assert bag.get_title() == "<bag>\nAP - | -"
    one, two = coat.get_lines()
    np.testing.assert_allclose(one.get_xdata(), [0, *[100 / 3] * 3])
    np.testing.assert_allclose(one.get_ydata(), [100, 100, 50, 100 / 3])
    assert len(two.get_xdata()) == 0
    assert {"one", "two", "no objects", "Recall (%)"} <= set(words(figure))
    alone = plots.precision_recall_grid({"one": results["one"]}, NAMES)
    assert alone.legends == []
    with pytest.raises(ValueError, match="1 to 4 detectors, got 0"):
        plots.precision_recall_grid({}, NAMES)


def test_pies_write_every_kind_that_occurs_beside_its_slice():
    breakdown = error_breakdown(PREDICTIONS, TARGETS, NAMES)
    nothing = error_breakdown([NOTHING, NOTHING], TARGETS, NAMES)
    shown = words(plots.error_pies({"detector": breakdown, "none": nothing}))
    assert {"detector", "none", "no detections", "correct 33.3 %"} <= set(shown)
    assert {"localisation 33.3 %", "background 33.3 %"} <= set(shown)
    assert not any(word.startswith(("similar", "other")) for word in shown)


def test_words_beside_tiny_slices_stand_apart():
    breakdown = error_breakdown(PREDICTIONS, TARGETS, NAMES)
    tiny = dataclasses.replace(breakdown, counts=np.array([[9990, 3, 3, 2, 2], [0] * 5]))
    figure = plots.error_pies({"x": tiny})
    notes = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(notes) == 5
    left = np.sort([note.xyann[1] for note in notes if note.xyann[0] < 0])
    assert len(left) == 4
    assert np.diff(left).min() > 0.2
    assert left.max() <= 1.16
    whole = dataclasses.replace(breakdown, counts=np.array([[5, 0, 0, 0, 0], [0] * 5]))
    assert "correct 100.0 %" in words(plots.error_pies({"x": whole}))


def test_curves_of_proposals():
    boxes = [np.array([[40, 40, 50, 50], [0, 0, 10, 10.0]]), np.array([[0, 0, 10, 6.0]])]
    scores = proposal_scores(boxes, TARGETS, 2, counts=(1, 2))
    recall = plots.recall_by_proposals({"a": scores}, 0.5)
    (line,) = recall.axes[0].get_lines()[:1]
    np.testing.assert_allclose(line.get_xdata(), [1, 1.5])
    np.testing.assert_allclose(line.get_ydata(), [100 / 3, 200 / 3])
    assert [label.get_text() for label in recall.axes[0].get_xticklabels()] == ["1"]
    more = proposal_scores([b.repeat(20, axis=0) for b in boxes], TARGETS, 2)
    axes = plots.mabo_by_proposals({"a": more}).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "10", "30"]
    none = proposal_scores([boxes[0][:0]] * 2, TARGETS, 2)
    assert words(plots.recall_by_proposals({"none": none}))
    mabo = plots.mabo_by_proposals({"a": scores, "b": scores})
    np.testing.assert_allclose(mabo.axes[0].get_lines()[0].get_ydata(), [0.2, 1.6 / 3])
    by_iou = plots.recall_by_iou({"a": scores})
    np.testing.assert_allclose(by_iou.axes[0].get_lines()[0].get_ydata(), [200 / 3, *[100 / 3] * 2])
    with pytest.raises(ValueError, match=r"an IoU of \(0.5, 0.7, 0.9\), got 0.6"):
        plots.recall_by_proposals({"a": scores}, 0.6)
