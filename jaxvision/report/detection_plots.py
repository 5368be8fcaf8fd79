"""Figures of detection: precision and recall, kinds of errors, proposals."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxvision.metrics.detection import AveragePrecision
from jaxvision.metrics.errors import ERROR_KINDS, ErrorBreakdown
from jaxvision.metrics.proposals import ProposalScores
from jaxvision.report import theme
from jaxvision.report.axes import framed_axes, plain_axes
from jaxvision.report.lines import Line, line_chart

_DETECTORS = ((theme.BLUE, "-"), (theme.ORANGE, "--"), (theme.RIGHT, "-."), (theme.WRONG, ":"))
_KIND_COLORS = (theme.RIGHT, theme.BLUE, theme.ORANGE, theme.MUTED, theme.WRONG)


def precision_recall_grid(
    results: Mapping[str, AveragePrecision], class_names: Sequence[str], columns: int = 4
) -> "matplotlib.figure.Figure":
    """Draws each class's precision against recall, one small chart a class.

    Up to four detectors share the charts; a class's AP stands in its title, in the detectors'
    order. A class without objects says so.
    """
    from matplotlib.figure import Figure

    if not 0 < len(results) <= len(_DETECTORS):
        raise ValueError(f"expected 1 to {len(_DETECTORS)} detectors, got {len(results)}")
    k = len(class_names)
    columns = max(min(columns, k), 1)
    rows = max(-(-k // columns), 1)
    figure = Figure(figsize=(2.3 * columns, 2.1 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.ravel()[k:]:
        axes.set_axis_off()
    handles = []
    for i, (axes, name) in enumerate(zip(grid.ravel(), class_names, strict=False)):
        framed_axes(axes)
        handles = []
        for result, (color, dashes) in zip(results.values(), _DETECTORS, strict=False):
            curve = result.curves[i]
            handles += axes.step(
                np.concatenate([[0.0], 100 * curve.recall]) if len(curve.recall) else [],
                100 * np.concatenate([curve.precision[:1], curve.precision]),
                where="pre",
                color=color,
                linestyle=dashes,
                linewidth=1.6,
            )
        axes.tick_params(labelbottom=i >= k - columns)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.set_xticks([0, 50, 100])
        axes.set_yticks([0, 50, 100])
        values = " | ".join(_share(result.table[0, i]) for result in results.values())
        title = f"{theme.clean(name, 22)}\nAP {values}"
        axes.set_title(title, fontsize=9, color=theme.INK, parse_math=False)
        if not any(result.num_objects[i] for result in results.values()):
            axes.text(50, 50, "no objects", ha="center", va="center", color=theme.MUTED, fontsize=9)
    figure.supxlabel("Recall (%)", fontsize=10, color=theme.INK)
    figure.supylabel("Precision (%)", fontsize=10, color=theme.INK)
    if len(results) > 1 and handles:
        style = {"ncols": len(results), "frameon": False, "fontsize": 9, "labelcolor": theme.INK}
        figure.legend(handles, list(results), loc="outside upper right", **style)
    return figure


def error_pies(breakdowns: Mapping[str, ErrorBreakdown]) -> "matplotlib.figure.Figure":
    """Draws one pie a detector: the shares of `ERROR_KINDS` among its top detections.

    As figure 4 of the YOLO paper does, with each share and its kind written beside its slice, so
    that nothing hangs on colour. A detector without detections gets no pie.
    """
    from matplotlib.figure import Figure

    if not breakdowns:
        raise ValueError("expected at least one detector")
    figure = Figure(figsize=(4.3 * len(breakdowns), 3.6), layout="constrained")
    grid = figure.subplots(1, len(breakdowns), squeeze=False)[0]
    for axes, (name, breakdown) in zip(grid, breakdowns.items(), strict=True):
        plain_axes(axes)
        axes.set_title(theme.clean(name, 40), fontsize=11, color=theme.INK, parse_math=False)
        shares = np.array([breakdown.shares[kind] for kind in ERROR_KINDS])
        if np.isnan(shares).any():
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no detections", ha="center", color=theme.MUTED)
            continue
        wedges, _ = axes.pie(
            shares,
            colors=_KIND_COLORS,
            startangle=90,
            counterclock=False,
            radius=0.85,
            wedgeprops={"edgecolor": theme.PAGE, "linewidth": 1.5},
        )
        _label_slices(axes, wedges, shares)
        axes.set_xlim(-1.9, 1.9)
        axes.set_ylim(-1.3, 1.3)
    return figure


def recall_by_proposals(
    scores: Mapping[str, ProposalScores], iou_threshold: float = 0.5
) -> "matplotlib.figure.Figure":
    """Draws recall at one of the scores' IoU thresholds against the number of boxes a picture.

    One line a method, up to five; the number is what the pictures really have on average.
    """
    lines = []
    for name, score in scores.items():
        if iou_threshold not in score.iou_thresholds:
            raise ValueError(f"expected an IoU of {score.iou_thresholds}, got {iou_threshold}")
        column = score.iou_thresholds.index(iou_threshold)
        lines.append(Line(name, score.mean_boxes, 100 * score.recall[:, column]))
    ylabel = f"Recall at IoU {iou_threshold:g} (%)"
    return _chart_by_boxes(lines, ylabel, ylim=(0.0, 102.0))


def mabo_by_proposals(scores: Mapping[str, ProposalScores]) -> "matplotlib.figure.Figure":
    """Draws the mean average best overlap against the number of boxes a picture."""
    lines = [Line(name, score.mean_boxes, score.mabo) for name, score in scores.items()]
    return _chart_by_boxes(lines, "Mean average best overlap", ylim=(0.0, 1.02))


def recall_by_iou(scores: Mapping[str, ProposalScores]) -> "matplotlib.figure.Figure":
    """Draws recall against the IoU threshold, with the largest number of boxes of each method."""
    lines = [
        Line(
            f"{name}, {score.mean_boxes[-1]:,.0f} boxes",
            np.array(score.iou_thresholds),
            100 * score.recall[-1],
        )
        for name, score in scores.items()
    ]
    return line_chart(lines, "IoU", "Recall (%)", ylim=(0.0, 102.0))


def _chart_by_boxes(
    lines: Sequence[Line], ylabel: str, ylim: tuple[float, float]
) -> "matplotlib.figure.Figure":
    """A line chart by numbers of boxes, marked at 1, 3, 10, 30, …: means are odd numbers."""
    figure = line_chart(lines, "Boxes a picture", ylabel, logx=True, ylim=ylim)
    most = max((float(line.x.max()) for line in lines if line.x.size), default=1.0)
    marks = [step * 10**power for power in range(6) for step in (1, 3)]
    marks = [mark for mark in marks if mark <= max(most, 1.0)]
    figure.axes[0].set_xticks(marks, [f"{mark:,}" for mark in marks])
    return figure


def _label_slices(axes, wedges: Sequence, shares: np.ndarray) -> None:
    """Writes each slice's kind and share beside it, on its side, lines apart from each other."""
    sides: dict[int, list[tuple[float, int]]] = {-1: [], 1: []}
    middles = np.deg2rad([(wedge.theta1 + wedge.theta2) / 2 for wedge in wedges])
    for i, middle in enumerate(middles):
        if shares[i] > 0:
            sides[1 if np.cos(middle) >= 0 else -1].append((np.sin(middle), i))
    for side, entries in sides.items():
        lowest = -1.2
        spread = []
        for height, i in sorted(entries):
            lowest = max(height, lowest)
            spread.append((lowest, i))
            lowest += 0.22
        shift = max(spread[-1][0] - 1.15, 0.0) if spread else 0.0
        for height, i in spread:
            edge = 0.85 * np.array([np.cos(middles[i]), np.sin(middles[i])])
            axes.annotate(
                f"{ERROR_KINDS[i]} {100 * shares[i]:.1f} %",
                xy=tuple(edge),
                xytext=(1.05 * side, height - shift),
                ha="left" if side > 0 else "right",
                va="center",
                fontsize=9,
                color=theme.INK,
                arrowprops={"arrowstyle": "-", "color": theme.MUTED, "linewidth": 0.8},
            )


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
