"""Curves, confusion matrices and bars as matplotlib figures.

Every function returns a `matplotlib.figure.Figure` of its own: no pyplot, so no global state,
nothing to close, and threads may draw at the same time. `jaxvision.report.embed` turns figures
into SVG or PNG.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer

from jaxvision.metrics import per_class_scores
from jaxvision.report import theme
from jaxvision.report.axes import new_figure, plain_axes
from jaxvision.report.records import Record, axis_key, epochs, number, series
from jaxvision.types import Array

MOST_LABELLED_CLASSES = 25
"""A confusion matrix of more classes than this shows neither counts nor every class's name."""

_LINES = ((theme.BLUE, "-", None), (theme.ORANGE, "-", "o"), (theme.RIGHT, "--", "s"))
_MOST_POINTS = 150


def loss_curves(records: Sequence[Record]) -> "matplotlib.figure.Figure":
    """Draws training and validation loss by step."""
    keys = {"training": "train/loss", "validation": "val/loss"}
    return metric_curves(records, keys, "Loss")


def accuracy_curves(records: Sequence[Record]) -> "matplotlib.figure.Figure":
    """Draws training and validation accuracy, in per cent, by step."""
    keys = {"training": "train/accuracy", "validation": "val/accuracy"}
    return metric_curves(records, keys, "Accuracy", percent=True)


def learning_rate_curve(records: Sequence[Record]) -> "matplotlib.figure.Figure":
    """Draws the learning rate by step."""
    return metric_curves(records, {"learning rate": "train/learning_rate"}, "Learning rate")


def gradient_norm_curve(records: Sequence[Record]) -> "matplotlib.figure.Figure":
    """Draws the L2 norm of the gradient over all parameters by step."""
    return metric_curves(records, {"gradient norm": "train/grad_norm"}, "Gradient norm (L2)")


def metric_curves(
    records: Sequence[Record], keys: Mapping[str, str], ylabel: str, *, percent: bool = False
) -> "matplotlib.figure.Figure":
    """Draws one line for each of up to three `keys`, {name in the legend: metric}, by step.

    A series of many records is drawn as means over equal numbers of them, in a band from their
    smallest to their largest. A value that is not finite breaks the line, and the first one is
    marked. The axis is logarithmic where the values span more than a hundredfold. `percent` draws
    shares of 1 as per cent, on a linear axis.
    """
    figure, axes = new_figure(5.4, 3.3)
    scale = 100.0 if percent else 1.0
    shown, broken = [], []
    for (name, key), (color, dashes, marker) in zip(keys.items(), _LINES, strict=False):
        x, values = series(records, key)
        finite = np.isfinite(values)
        broken += x[~finite][:1].tolist()
        if not finite.any():
            continue
        values = np.where(finite, values * scale, np.nan)
        shown.append(values[finite])
        x, middle, low, high = _binned(x, values)
        if marker is None and x.size == 1:
            marker = "o"
        if x.size < np.size(values):
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            name = f"{name} (mean; band: min to max)"
        axes.plot(
            x, middle, color=color, linestyle=dashes, marker=marker, markersize=4.5, label=name
        )
    _value_axis(axes, shown, logarithmic=not percent)
    _step_axis(axes, records)
    axes.set_ylabel(f"{ylabel} (%)" if percent else ylabel)
    if broken:
        axes.axvline(
            min(broken), color=theme.WRONG, linestyle=":", linewidth=1.5, label="first not finite"
        )
    if len(shown) > 1 or broken:
        axes.legend(frameon=False, fontsize=9, labelcolor=theme.INK)
    if not shown:
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=theme.MUTED
        )
    return figure


def confusion_heat_map(
    confusion: Integer[Array, "k k"], class_names: Sequence[str], *, percent: bool = False
) -> "matplotlib.figure.Figure":
    """Draws a confusion matrix (rows true, columns predicted), coloured by the share of its row.

    Up to `MOST_LABELLED_CLASSES` classes every cell that isn't zero shows its count, or with
    `percent` (for pixels, which are too many) its share of the row, and every class its name;
    beyond, some classes are named along the axes. The colour follows the square root of the share,
    so that rare mistakes are seen.
    """
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    confusion = np.asarray(confusion)
    k = len(confusion)
    shares = 100.0 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # Transparent where there is nothing: the same picture suits a light page and a dark one.
    colors = LinearSegmentedColormap.from_list("share", [theme.BLUE + "00", theme.BLUE + "ff"])
    norm = PowerNorm(0.5, 0.0, 100.0)
    side = min(max(1.6 + 0.36 * k, 3.6), 7.0)
    figure, axes = new_figure(side + 0.9, side)
    axes.grid(False)
    axes.spines[:].set(visible=True, color=theme.LINE)
    axes.imshow(shares, cmap=colors, norm=norm, interpolation="none")
    if k <= MOST_LABELLED_CLASSES:
        _write_cells(axes, shares if percent else confusion, norm(shares), percent)
    step = -(-k // MOST_LABELLED_CLASSES)
    ticks = np.arange(0, k, step)
    names = [theme.clean(class_names[i], 18) for i in ticks]
    style = {"parse_math": False, "fontsize": 9 if k <= 12 else 7}
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(ticks, names, **style)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")

    bar = axes.inset_axes([1.03, 0.0, 0.035, 1.0])
    ramp = np.linspace(0.0, 100.0, 256)[:, None]
    # Drawn as a picture: matplotlib's own colour bar shows seams where colours are transparent.
    bar.imshow(ramp, cmap=colors, norm=norm, extent=(0, 1, 0, 100), aspect="auto", origin="lower")
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    bar.set_ylabel("Share of the true class (%)", color=theme.INK, fontsize=9)
    plain_axes(bar)
    return figure


def per_class_bars(
    confusion: Integer[Array, "k k"], class_names: Sequence[str]
) -> "matplotlib.figure.Figure":
    """Draws each class's precision and recall in per cent, the class of the lowest F1 on top.

    Of more than `MOST_LABELLED_CLASSES` classes, those of the lowest F1.
    """
    scores = per_class_scores(confusion)
    order = np.argsort(scores.f1, kind="stable")[:MOST_LABELLED_CLASSES]
    rows = np.arange(len(order))
    figure, axes = new_figure(5.4, 1.2 + 0.32 * len(order))
    axes.grid(False, axis="y")
    for offset, name, values, color in (
        (-0.19, "precision", scores.precision, theme.BLUE),
        (0.19, "recall", scores.recall, theme.ORANGE),
    ):
        axes.barh(rows + offset, 100 * values[order], height=0.34, color=color, label=name)
    names = [theme.clean(class_names[i], 24) for i in order]
    axes.set_yticks(rows, names, parse_math=False)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Precision and recall (%)")
    figure.legend(
        loc="outside upper right", ncols=2, frameon=False, fontsize=9, labelcolor=theme.INK
    )
    return figure


def _binned(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns (x, mean, min, max) of up to `_MOST_POINTS` runs of neighbours; NaN where one is."""
    runs = np.array_split(np.arange(x.size), min(x.size, _MOST_POINTS))
    reductions = ((np.mean, x), (np.mean, values), (np.min, values), (np.max, values))
    return tuple(np.array([reduce(y[run]) for run in runs]) for reduce, y in reductions)


def _value_axis(axes, shown: list[np.ndarray], *, logarithmic: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    values = np.concatenate(shown) if shown else np.ones(1)
    if logarithmic and values.min() > 0 and values.max() > 100 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif np.ptp(values) == 0:
        # matplotlib's own choice around a constant is a window of a few per cent with odd numbers.
        center, margin = values[0], abs(values[0]) or 1.0
        axes.set_ylim(center - margin, center + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _step_axis(axes, records: Sequence[Record]) -> None:
    """Labels the axis below in steps and, where epochs are known, the one above in epochs."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel(axis_key(records).capitalize())
    # All curves of a run share one axis, even where a series begins late or ends in NaN.
    places = [number(record.get(axis_key(records))) for record in records]
    end = max((place for place in places if np.isfinite(place)), default=0.0)
    if end > 0:
        axes.set_xlim(-0.02 * end, 1.02 * end)
    x, numbers = epochs(records)
    if axis_key(records) == "epoch" or not x.size:
        return
    every = -(-x.size // 10)
    above = axes.secondary_xaxis("top")
    above.set_xticks(x[::-every][::-1], [f"{value:,.0f}" for value in numbers[::-every][::-1]])
    above.set_xlabel("Epoch")
    plain_axes(above)
    above.spines["top"].set_visible(False)


def _write_cells(axes, values: np.ndarray, darkness: np.ndarray, percent: bool) -> None:
    size = 9 if len(values) <= 12 else 6
    for row, column in np.argwhere(values > 0):
        color = theme.WHITE if darkness[row, column] > 0.6 else theme.INK
        value = values[row, column]
        words = f"{value:,}" if not percent else "<0.1" if value < 0.05 else f"{value:.1f}"
        style = {"ha": "center", "va": "center", "fontsize": size, "color": color}
        axes.text(column, row, words, **style)
