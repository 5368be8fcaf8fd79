"""Boxes, masks and names on pictures, to the pixel."""

import numpy as np
import pytest

from jaxvision.report import overlay
from jaxvision.report.overlay import class_colors, draw_objects, enlarge, picture_scale

NAMES = ["bag", "shirt"]
BLACK = np.zeros((12, 20, 3), np.uint8)


def is_color(drawn, label):
    return (drawn == class_colors(len(NAMES))[label]).all(axis=-1)


def without_names(monkeypatch):
    monkeypatch.setattr(overlay, "_draw_name", lambda *arguments: None)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_boxs_line_is_just_inside_it(scale, monkeypatch):
    without_names(monkeypatch)
    drawn = draw_objects(
        BLACK, np.array([[3, 2, 9, 10]], np.float32), np.array([1]), NAMES, scale=scale
    )
    assert drawn.shape == (12 * scale, 20 * scale, 3)
    expected = np.zeros(drawn.shape[:2], bool)
    expected[2 * scale : 10 * scale, 3 * scale : 9 * scale] = True
    expected[2 * scale + 2 : 10 * scale - 2, 3 * scale + 2 : 9 * scale - 2] = False
    np.testing.assert_array_equal(is_color(drawn, 1), expected)
    assert (drawn[~expected] == 0).all()


def test_boxes_outside_thin_or_empty_are_no_error(monkeypatch):
    without_names(monkeypatch)
    boxes = np.array([[-5, -5, 50, 50], [-9, -9, -2, -2], [4, 4, 4, 9], [9, 9, 3, 3], [5, 5, 6, 6]])
    drawn = draw_objects(BLACK, boxes, np.array([0, 0, 0, 0, 1]), NAMES, scale=1)
    assert is_color(drawn, 1).sum() == 1
    assert not is_color(drawn, 0).any()
    touching = draw_objects(BLACK, np.array([[0, 0, 20, 12]]), np.array([0]), NAMES, scale=1)
    assert is_color(touching, 0)[[0, -1, 5, 5], [5, 5, 0, -1]].all()


def test_a_dashed_box_is_partly_drawn(monkeypatch):
    without_names(monkeypatch)
    boxes, labels = np.array([[2, 2, 18, 10]]), np.array([0])
    solid = is_color(draw_objects(BLACK, boxes, labels, NAMES, scale=4), 0)
    dashed = draw_objects(BLACK, boxes, labels, NAMES, scale=4, dashed=np.array([True]))
    dashed = is_color(dashed, 0)
    assert not (dashed & ~solid).any()
    assert 0.4 < dashed.sum() / solid.sum() < 0.8


def test_masks_are_tinted_and_have_a_contour(monkeypatch):
    without_names(monkeypatch)
    image = np.full((12, 20, 3), 100, np.uint8)
    mask = np.zeros((1, 12, 20), bool)
    mask[0, 3:9, 0:8] = True  # touches the picture's border
    empty = np.zeros((1, 4))
    drawn = draw_objects(image, empty, np.array([1]), NAMES, masks=mask, scale=3)
    inside = enlarge(mask[0], 3)
    assert (drawn[~inside] == 100).all()
    contour = is_color(drawn, 1)
    expected = inside.copy()
    expected[3 * 3 + 2 : 9 * 3 - 2, 2 : 8 * 3 - 2] = False
    np.testing.assert_array_equal(contour, expected)
    tint = (0.6 * 100 + 0.4 * class_colors(2)[1].astype(float)).astype(np.uint8)
    np.testing.assert_array_equal(drawn[18, 12], tint)


def test_names_are_within_the_picture_and_do_not_cover_each_other(monkeypatch):
    places = []
    real = overlay._draw_name

    def spy(draw, corners, words, color, taken, shown):
        real(draw, corners, words, color, taken, shown)
        places.append((words, taken[-1]))

    monkeypatch.setattr(overlay, "_draw_name", spy)
    boxes = np.array([[10, 40, 60, 90], [12, 42, 62, 92], [-20, -20, 30, 30], [90, 90, 128, 128.0]])
    drawn = draw_objects(
        np.zeros((128, 128, 1), np.uint8),
        boxes,
        np.array([0, 1, 0, 1]),
        NAMES,
        scores=np.array([0.5, 0.912, 0.3, 0.2]),
        remarks=["", "truth", "", ""],
    )
    assert drawn.shape == (384, 384, 3)
    assert [words for words, _ in places] == [
        "shirt 91 % truth",
        "bag 50 %",
        "bag 30 %",
        "shirt 20 %",
    ]
    for i, (_, a) in enumerate(places):
        assert 0 <= a[0] < a[2] <= 384
        assert 0 <= a[1] < a[3] <= 384
        assert all(overlay._shared(a, b) == 0 for _, b in places[:i])
    assert is_color(drawn, 0).any()


def test_the_best_score_is_on_top(monkeypatch):
    without_names(monkeypatch)
    boxes, labels = np.array([[2, 2, 12, 10], [2, 2, 12, 10]]), np.array([0, 1])
    for scores, top in (([0.9, 0.1], 0), ([0.1, 0.9], 1)):
        drawn = draw_objects(BLACK, boxes, labels, NAMES, scores=np.array(scores), scale=2)
        assert is_color(drawn, top).any()
        assert not is_color(drawn, 1 - top).any()


def test_colours_differ_and_scales_are_whole():
    colors = class_colors(30).astype(int)
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=-1) + 1000 * np.eye(30, dtype=int)
    assert apart.min() > 12
    assert [picture_scale((s, 2 * s)) for s in (28, 128, 224, 500)] == [13, 3, 2, 1]
    np.testing.assert_array_equal(enlarge(np.array([[1, 2]]), 2), [[1, 1, 2, 2], [1, 1, 2, 2]])
