"""What detectors get wrong: the pies of Hoiem's analysis, tables, and pictures of each kind."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.metrics.errors import ERROR_KINDS, ClassGroups, ErrorBreakdown, error_breakdown
from jaxvision.report import html
from jaxvision.report.detection_drawings import draw_missed, draw_mistake
from jaxvision.report.detection_plots import error_pies
from jaxvision.report.embed import to_svg
from jaxvision.report.html import Section
from jaxvision.report.run_sections import percent

MOST_OF_A_KIND_SHOWN = 4

Detections = Sequence[Mapping[str, Any]]
ImageAt = Callable[[int], np.ndarray]


def write_error_report(
    path: str | Path,
    *,
    title: str,
    class_names: Sequence[str],
    detectors: Mapping[str, Detections],
    targets: Sequence[Any],
    image_at: ImageAt,
    similar: ClassGroups = (),
    notes: Sequence[str] = (),
) -> dict[str, ErrorBreakdown]:
    """Writes the page `path`, on which detectors stand side by side; returns their breakdowns.

    `detectors` holds each one's predictions for the same pictures, by name; these, `targets` and
    `similar` are as `error_breakdown` takes them. `image_at(i)` returns picture i, uint8 [h, w, c].

    >>> write_error_report("errors.html", title="v1 and YOLOX", class_names=names,
    ...     detectors={"v1": found, "YOLOX": others}, targets=objects,
    ...     image_at=dataset.image)  # doctest: +SKIP
    """
    if not detectors:
        raise ValueError("expected the predictions of at least one detector")
    breakdowns = {
        name: error_breakdown(found, targets, class_names, similar)
        for name, found in detectors.items()
    }
    sections = [Section("Result", "".join(html.paragraph(note) for note in notes))] if notes else []
    sections.append(error_section(breakdowns, class_names))
    for name, found in detectors.items():
        section = mistakes_section(breakdowns[name], found, targets, class_names, image_at)
        sections.append(Section(f"Mistakes of {name}", section.body_html))
    html.write_page(Path(path), title, sections)
    return breakdowns


def error_section(breakdowns: Mapping[str, ErrorBreakdown], class_names: Sequence[str]) -> Section:
    """Returns the pies of all detectors, and how many of each kind the first one has."""
    pies = html.plot(
        to_svg(error_pies(breakdowns), "Kinds of errors"),
        "Each class's best detections, as many as it has objects; the mean over classes (Hoiem et "
        "al., 2012).",
        wide=len(breakdowns) > 1,
    )
    summary = [
        (name, *(cell(b.shares[kind]) for kind in ERROR_KINDS), cell(b.missed_share))
        for name, b in breakdowns.items()
    ]
    heading = tuple(kind.capitalize() for kind in ERROR_KINDS)
    body = pies + html.table(("Detector", *heading, "Missed objects"), summary)
    first = next(iter(breakdowns.values()))
    missed = first.num_objects - first.counts[:, 0]
    rows = [
        (name, *(f"{count:,}" for count in counts), f"{left:,}")
        for name, counts, left in zip(class_names, first.counts, missed, strict=True)
    ]
    by_class = html.table(("Class", *heading, "Missed objects"), rows)
    return Section("Errors", body + html.details("By class", by_class))


def mistakes_section(
    breakdown: ErrorBreakdown,
    predictions: Detections,
    targets: Sequence[Any],
    class_names: Sequence[str],
    image_at: ImageAt,
) -> Section:
    """Shows the best detections of each kind of error, and objects that were missed."""
    parts = [
        html.paragraph(
            "The detections of the highest scores among the mistakes; dashed is the object that "
            "decides what kind of mistake it is."
        )
    ]
    for kind in range(1, len(ERROR_KINDS)):
        drawings, captions = [], []
        for row in np.flatnonzero(breakdown.kind == kind)[:MOST_OF_A_KIND_SHOWN]:
            i, j = int(breakdown.picture[row]), int(breakdown.object_index[row])
            found = predictions[i], int(breakdown.index[row])
            drawings.append(draw_mistake(image_at(i), targets[i], j, *found, class_names))
            overlap = f", IoU {breakdown.overlap[row]:.2f}" if j >= 0 else ""
            captions.append([f"picture {i}{overlap}"])
        parts.append(_kind_html(ERROR_KINDS[kind].capitalize(), drawings, captions))
    drawings, captions = [], []
    for row in spread(len(breakdown.missed_index), MOST_OF_A_KIND_SHOWN):
        i, j = int(breakdown.missed_picture[row]), int(breakdown.missed_index[row])
        drawings.append(draw_missed(image_at(i), targets[i], j, class_names))
        captions.append([f"picture {i}"])
    parts.append(_kind_html("Missed", drawings, captions))
    return Section("Mistakes of each kind", "".join(parts))


def _kind_html(heading: str, drawings: list[np.ndarray], captions: list[list[str]]) -> str:
    body = html.drawings(drawings, captions, size="small") if drawings else html.paragraph("None.")
    return f"<h3>{html.text(heading)}</h3>{body}"


def spread(number: int, most: int) -> list[int]:
    """Returns up to `most` places evenly over 0..number-1: the first ones are no sample."""
    return np.unique(np.linspace(0, number - 1, min(most, number)).astype(int)).tolist()


def cell(share: float) -> str:
    return "-" if np.isnan(share) else percent(share, 1)
