"""Label maps in colour, mistakes, legends and panels."""

import numpy as np
import pytest

from jaxvision.report.label_maps import (
    IGNORED_COLOR,
    RIGHT_COLOR,
    WRONG_COLOR,
    color_labels,
    draw_legend,
    draw_panels,
    map_colors,
    mark_mistakes,
)
from jaxvision.report.overlay import class_colors


def test_labels_take_their_colours_and_classes_those_of_boxes():
    colors = map_colors(4)
    np.testing.assert_array_equal(colors[1:], class_colors(3))
    labels = np.array([[0, 3], [255, 1]], np.uint8)
    drawn = color_labels(labels, 4)
    np.testing.assert_array_equal(drawn[[0, 0, 1], [0, 1, 1]], colors[[0, 3, 1]])
    assert tuple(drawn[1, 0]) == IGNORED_COLOR
    with pytest.raises(ValueError, match=r"labels from 0 to 3 or 255, got \[4, 9\]"):
        color_labels(np.array([[4, 9, 1]]), 4)
    with pytest.raises(ValueError, match=r"got \[-1\]"):
        color_labels(np.array([[-1, 0]]), 4)


def test_mistakes_are_marked_and_ignored_pixels_are_neither():
    drawn = mark_mistakes(np.array([[0, 1, 255]], np.uint8), np.array([[0, 2, 1]]))
    assert [tuple(pixel) for pixel in drawn[0]] == [RIGHT_COLOR, WRONG_COLOR, IGNORED_COLOR]


def test_panels_stand_side_by_side_at_their_scale():
    left, right = np.full((6, 30, 1), 10, np.uint8), np.full((4, 30, 3), 200, np.uint8)
    drawn = draw_panels({"the picture": left, "a long title that can't fit": right}, scale=3)
    assert drawn.shape == (22 + 18, 90 + 8 + 90, 3)
    assert (drawn[22:, :90] == 10).all()
    assert (drawn[22:34, 98:] == 200).all()
    assert (drawn[:22, 98 + 90 :] == drawn[0, 95]).all()
    assert (drawn[:22, :90] < 100).any()  # letters
    with pytest.raises(ValueError, match="at least one picture"):
        draw_panels({})


def test_a_legend_holds_every_colour_and_wraps():
    colors = class_colors(12)
    names = [f"class number {i}" for i in range(12)]
    wide, narrow = (draw_legend(names, colors, width) for width in (2000, 300))
    for drawn, width in ((wide, 2000), (narrow, 300)):
        assert drawn.shape[1] == width
        for color in colors:
            assert (drawn == color).all(axis=-1).sum() >= 14 * 14
    assert narrow.shape[0] > 3 * wide.shape[0]
