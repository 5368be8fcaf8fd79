"""Line charts of any few series, with bands, for experiments that compare networks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxvision.report import theme
from jaxvision.report.axes import new_figure

_LOOKS = (
    (theme.BLUE, "-", "o"),
    (theme.ORANGE, "-", "s"),
    (theme.RIGHT, "--", "^"),
    (theme.WRONG, ":", "D"),
    (theme.MUTED, "-.", "v"),
)
_MOST_MARKERS = 16


@dataclass(frozen=True, eq=False)
class Line:
    """One series, all arrays [n]; `low` and `high` bound a band around it.

    Where `y` is not finite the line is broken and a cross on the axis marks the place.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def line_chart(
    lines: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    logx: bool = False,
    logy: bool = False,
    ylim: tuple[float, float] | None = None,
) -> "matplotlib.figure.Figure":
    """Draws up to five lines, each with a colour, dashes and a marker of its own.

    Several get a legend. A logarithmic x axis is marked at the lines' own places, if they are few.

    >>> figure = line_chart([Line("a", np.arange(3), np.array([1.0, np.nan, 2.0]))], "Step", "Loss")
    >>> figure.axes[0].get_ylabel()
    'Loss'
    """
    if len(lines) > len(_LOOKS):
        raise ValueError(f"expected at most {len(_LOOKS)} lines, got {len(lines)}")
    figure, axes = new_figure(5.4, 3.3)
    if logx:
        axes.set_xscale("log")
        places = sorted({float(x) for line in lines for x in line.x})
        if len(places) <= _MOST_MARKERS:  # the values that were tried, not powers of ten
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.set_xticks([], minor=True)
    if logy:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7, labelcolor=theme.MUTED)
    for line, (color, dashes, marker) in zip(lines, _LOOKS, strict=False):
        x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
        finite = np.isfinite(y)
        if line.low is not None and line.high is not None:
            axes.fill_between(x, line.low, line.high, color=color, alpha=0.2, linewidth=0)
        axes.plot(
            x,
            np.where(finite, y, np.nan),
            color=color,
            linestyle=dashes,
            marker=marker if x.size <= _MOST_MARKERS else None,
            markersize=4.5,
            label=line.name,
        )
        # At the height of the axis, whatever the values are.
        axes.plot(
            x[~finite],
            np.zeros((~finite).sum()),
            color=color,
            linestyle="none",
            marker="x",
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
    if ylim is not None:
        axes.set_ylim(*ylim)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.INK)
    return figure
