"""Line charts: what is drawn, and what is broken."""

import numpy as np
import pytest

from jaxvision.report.lines import Line, line_chart

X = np.array([0.001, 0.01, 0.1])


def test_lines_bands_and_broken_places_are_drawn():
    y = np.array([1.0, 2.0, np.nan])
    figure = line_chart(
        [Line("a", X, y, y - 1, y + 1), Line("b", X, np.array([3.0, 4.0, 5.0]))],
        "Rate",
        "Accuracy",
        logx=True,
        ylim=(0.0, 10.0),
    )
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["a"].get_ydata(), y)
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[0.1], []]
    assert len(axes.collections) == 1
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.001", "0.01", "0.1"]
    assert (axes.get_xscale(), axes.get_ylim()) == ("log", (0.0, 10.0))


def test_one_line_needs_no_legend_and_six_are_too_many():
    line = Line("a", X, X)
    assert line_chart([line], "x", "y", logy=True).axes[0].get_legend() is None
    with pytest.raises(ValueError, match="at most 5 lines, got 6"):
        line_chart([line] * 6, "x", "y")
