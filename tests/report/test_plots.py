"""Figures: what they show, how they are embedded, and that odd values never break them."""

import re
import threading
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from jaxvision.report import plots, theme
from jaxvision.report.embed import to_png, to_svg

NAN = float("nan")


def records(losses, key="train/loss", every=10):
    return [{"step": every * (i + 1), "epoch": i + 1, key: v} for i, v in enumerate(losses)]


def words(figure):
    return [element.text for element in ElementTree.fromstring(to_svg(figure)).iter("text")]


def line(figure, label):
    (found,) = (x for x in figure.axes[0].lines if x.get_label().startswith(label))
    return found.get_xdata(), found.get_ydata()


def test_curves_show_the_values_and_label_their_axes():
    logged = records([0.5, 0.75], "val/accuracy") + records([0.25], "train/accuracy")
    figure = plots.accuracy_curves(logged)
    x, y = line(figure, "validation")
    assert (x.tolist(), y.tolist()) == ([10, 20], [50, 75])
    assert line(figure, "training")[1].tolist() == [25]
    assert {"Accuracy (%)", "Step", "Epoch", "training", "validation"} <= set(words(figure))


def test_long_series_are_averaged_but_not_shortened():
    figure = plots.loss_curves(records(np.arange(1.0, 1001.0) % 7 + 1))
    x, y = line(figure, "training")
    assert len(x) == 150
    assert x[-1] > 9900
    assert y.mean() == pytest.approx(4.0, abs=0.05)


def test_a_value_that_is_not_finite_breaks_the_line_and_is_marked():
    figure = plots.loss_curves(records([1.0, 0.5, NAN, None, 0.25, float("inf")]))
    _, y = line(figure, "training")
    np.testing.assert_array_equal(y, [1.0, 0.5, NAN, NAN, 0.25, NAN])
    assert line(figure, "first not finite")[0] == [30, 30]
    assert figure.axes[0].get_xlim()[1] > 60


@pytest.mark.parametrize(
    "losses", [[], [NAN], [None, NAN], [0.0], [3e38, 1e-30], [1.0, 1.0], [-1.0, 0.0], ["x"]]
)
def test_odd_series_are_drawn_without_a_warning(losses):
    for draw in (plots.loss_curves, plots.learning_rate_curve, plots.gradient_norm_curve):
        logged = records(losses) + records(losses, "train/learning_rate")
        ElementTree.fromstring(to_svg(draw(logged)))


def test_wide_ranges_get_a_logarithmic_axis_but_shares_do_not():
    wide = plots.loss_curves(records([1e-3, 10.0]))
    assert wide.axes[0].get_yscale() == "log"
    assert {"0.001", "0.1", "10"} <= set(words(wide))
    assert plots.loss_curves(records([0.5, 10.0])).axes[0].get_yscale() == "linear"
    shares = records([1e-3, 0.9], "val/accuracy")
    assert plots.accuracy_curves(shares).axes[0].get_yscale() == "linear"


def test_heat_map_shows_counts_and_names_of_few_classes():
    shown = words(plots.confusion_heat_map(np.array([[1234, 0], [5, 67]]), ["<a>", "$b_{$"]))
    assert {"1,234", "5", "67", "<a>", "$b_{$", "Predicted class", "True class"} <= set(shown)
    assert shown.count("<a>") == 2


def test_heat_map_colours_shares_of_rows():
    figure = plots.confusion_heat_map(np.array([[3, 1], [0, 0]]), ["a", "b"])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[75, 25], [0, 0]])


def test_many_classes_show_no_counts_and_some_names():
    k = 100
    confusion = np.full((k, k), 77)
    names = [f"class {i}" for i in range(k)]
    shown = words(plots.confusion_heat_map(confusion, names))
    assert "77" not in shown
    assert shown.count("class 4") == 2
    assert "class 5" not in shown
    at_limit = plots.MOST_LABELLED_CLASSES
    assert "77" in words(plots.confusion_heat_map(confusion[:at_limit, :at_limit], names))


def test_bars_put_the_lowest_f1_on_top_and_drop_the_best_of_many():
    confusion = np.diag(np.full(30, 10))
    confusion[7, 8] = 30
    figure = plots.per_class_bars(confusion, [f"c{i}" for i in range(30)])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:3] == ["c7", "c8", "c0"]
    assert len(labels) == plots.MOST_LABELLED_CLASSES
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    # Precision of c7 and c8, then recall of both: row 7 is 10 right and 30 given to class 8.
    assert widths[:2] == [100, 25]
    assert widths[25:27] == [25, 100]


def test_names_in_any_script_are_text_in_the_svg():
    names = ["티셔츠", "id='f' #1f2328", "\udcff\n"]
    shown = words(plots.confusion_heat_map(np.eye(3, dtype=int), names))
    assert {"티셔츠", "id='f' #1f2328", "�"} <= set(shown)


def test_svg_is_self_contained_themed_and_the_same_every_time():
    first, again = (to_svg(plots.loss_curves(records([1.0, 0.5])), 'a "b" <c>') for _ in range(2))
    assert first == again
    assert "http" not in first
    assert "font-family" not in first
    assert f"var(--blue, {theme.BLUE})" in first
    root = ElementTree.fromstring(first)
    assert root.get("aria-label") == 'a "b" <c>'
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', first)
    assert len(ids) == len(set(ids)) > 0
    assert set(used) == set(ids)
    other = to_svg(plots.loss_curves(records([1.0, 0.75])))
    assert not set(ids) & set(re.findall(r' id="([^"]+)"', other))


def test_drawing_in_threads_leaves_matplotlib_settings_alone():
    assert mpl.rcParams["svg.fonttype"] == "path"
    before = dict(mpl.rcParams)
    expected = to_svg(plots.loss_curves(records([1.0, 0.5])))
    found = []

    def draw():
        found.append(to_svg(plots.loss_curves(records([1.0, 0.5]))))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("k", [1, 10, 25, 100])
def test_no_text_is_clipped_at_the_edges(k):
    names = [f"a long name, {i:05}" for i in range(k)]
    figure = plots.confusion_heat_map(np.eye(k, dtype=int), names)
    root = ElementTree.fromstring(to_svg(figure))
    width, height = (float(value) for value in root.get("viewBox").split()[2:])
    found = {}
    for element in root.iter("text"):
        # Upright text is placed by x and y, and turned text by its transform's translation.
        numbers = re.findall(r"-?[\d.]+", element.get("transform", ""))
        x, y = (element.get("x"), element.get("y")) if element.get("x") else numbers[:2]
        found[element.text] = float(x), float(y)
    for label in ("True class", "Share of the true class (%)", "Predicted class"):
        x, y = found[label]
        assert 8 < x < width
        assert 0 < y < height


def test_png():
    assert to_png(plots.loss_curves([]), dpi=40).startswith(b"\x89PNG")
