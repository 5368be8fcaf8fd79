"""What the reports of all tasks share: headline numbers, warnings, curves, speed, configuration."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np

from jaxvision.report import html, plots
from jaxvision.report.embed import to_svg
from jaxvision.report.html import Headline, Section
from jaxvision.report.records import (
    Point,
    Record,
    axis_key,
    best_point,
    first_not_finite,
    last_point,
    number,
    series,
)

_THROUGHPUT_NAMES = {
    "examples_per_second": "Training examples a second",
    "ms_per_step": "Time a step (ms)",
    "seconds_per_epoch": "Time an epoch (s)",
}


@dataclass(frozen=True)
class Metric:
    """A validation metric to show: its name in the records (`val/…`) and to people, and its kind.

    Of a `share`, in per cent, the largest is the best; of another the smallest, as of a loss.
    """

    key: str
    name: str
    share: bool


Curve = tuple[Callable[[Sequence[Record]], Any], str, Sequence[str]]
"""(draws the records, what the figure is called, the metrics of which it needs one)."""

ACRONYMS = {
    "ap": "AP",
    "ap50": "AP50",
    "coco": "COCO",
    "iou": "IoU",
    "rpn": "RPN",
    "voc07": "VOC07",
}
"""Words of metrics' names that are not written as other words are."""


def result_section(
    config: Mapping[str, Any],
    records: Sequence[Record],
    metrics: Sequence[Metric],
    notes: Sequence[str],
    tiles: Sequence[Headline] = (),
) -> Section:
    """Returns the first section: what is wrong, if anything, and each metric's last and best."""
    axis = axis_key(records)

    def place(point: Point) -> str:
        found = [r for r in records if number(r.get(axis)) == point.x and "epoch" in r]
        epoch = number(found[-1]["epoch"]) if found and axis == "step" else float("nan")
        return f"{axis} {point.x:,.0f}" + (f", epoch {epoch:,.4g}" if isfinite(epoch) else "")

    tiles = list(tiles)
    for metric in metrics:
        final = last_point(records, f"val/{metric.key}")
        best = best_point(records, f"val/{metric.key}", largest=metric.share)
        show = percent if metric.share else _loss
        if final is not None:
            name = f"Final validation {metric.name}"
            tiles.append(Headline(name, show(final.value), place(final)))
        if best is not None:
            tiles.append(Headline(f"Best validation {metric.name}", show(best.value), place(best)))
    for name in ("epoch", "step"):
        reached = [number(r.get(name)) for r in records]
        reached = [value for value in reached if isfinite(value)]
        if reached:
            tiles.append(Headline(f"{name.capitalize()}s", f"{round(max(reached), 2):,.10g}"))
    if config.get("data_source"):
        tiles.append(Headline("Data", str(config["data_source"])))
    body = (
        "".join(html.notice(line) for line in _warnings(records))
        + html.headlines(tiles)
        + "".join(html.paragraph(note) for note in notes)
    )
    return Section("Result", body)


def training_section(records: Sequence[Record], curves: Iterable[Curve]) -> Section:
    """Returns the curves of which at least one metric was recorded."""
    drawn = [
        html.plot(to_svg(draw(records), label))
        for draw, label, keys in curves
        if any(series(records, key)[0].size for key in keys)
    ]
    nothing = html.paragraph("No curves were recorded.")
    return Section("Training", html.side_by_side(drawn) if drawn else nothing)


def curves_of(records: Sequence[Record]) -> list[Curve]:
    """Returns the curves of a task of many losses: each loss, each validation metric, the rate.

    A metric whose name ends in "loss" is one, drawn for training and validation, the total first.
    """
    recorded = dict.fromkeys(key for record in records for key in record if "/" in key)
    losses = dict.fromkeys(key.split("/", 1)[1] for key in recorded if key.endswith("loss"))
    curves: list[Curve] = []
    for name in sorted(losses, key=lambda name: name != "loss"):
        keys = {"training": f"train/{name}", "validation": f"val/{name}"}
        curves.append(_curve(keys, name))
    for key in recorded:
        name = key.removeprefix("val/")
        if key.startswith("val/") and name not in losses:
            curves.append(_curve({"validation": key}, name))
    rate, norm = "train/learning_rate", "train/grad_norm"
    curves.append((plots.learning_rate_curve, "Learning rate by step", (rate,)))
    curves.append((plots.gradient_norm_curve, "Gradient norm by step", (norm,)))
    return curves


def _curve(keys: Mapping[str, str], name: str) -> Curve:
    first, *rest = (ACRONYMS.get(word, word) for word in name.split("_"))
    label = " ".join([first.capitalize() if first.islower() else first, *rest])
    draw = partial(plots.metric_curves, keys=keys, ylabel=label)
    return draw, f"{label} by step", tuple(keys.values())


def closing_sections(
    config: Mapping[str, Any], records: Sequence[Record], throughput: Mapping[str, Any] | None
) -> list[Section]:
    """Returns how fast it was, where that is known, and what was configured."""
    sections = []
    speed = _throughput(throughput, records)
    if speed:
        sections.append(Section("Throughput", html.table((), speed)))
    if config:
        sections.append(Section("Configuration", html.table((), _flat(config))))
    return sections


def percent(share: float, decimals: int = 2) -> str:
    """Returns a share of 1 in per cent.

    >>> percent(0.9125, 1)
    '91.2 %'
    """
    return f"{100 * share:.{decimals}f} %" if isfinite(share) else "not finite"


def _warnings(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["Nothing was recorded: the run stopped before its first record."]
    warnings = []
    broken = first_not_finite(records, ("train/loss", "val/loss", "train/grad_norm"))
    if broken is not None:
        key, x = broken
        warnings.append(
            f"The run diverged: {key} was first not finite at {axis_key(records)} {x:,.0f}."
        )
    if not any(key.startswith("val/") for record in records for key in record):
        warnings.append("No validation was recorded.")
    return warnings


def _throughput(throughput: Mapping[str, Any] | None, records: Sequence[Record]):
    _, speeds = series(records, "train/examples_per_second")
    speeds = speeds[np.isfinite(speeds)]
    recorded = {"examples_per_second": float(np.median(speeds))} if speeds.size else {}
    throughput = recorded | dict(throughput or {})
    return [(_THROUGHPUT_NAMES.get(k, k), _shown(value)) for k, value in throughput.items()]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    """Returns a measured value, to as many digits as a measurement of speed is worth."""
    if isinstance(value, float) and isfinite(value) and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _loss(value: float) -> str:
    return f"{value:.4f}" if isfinite(value) else "not finite"
