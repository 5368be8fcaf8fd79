"""The report of a segmentation run: report.html, from its records and its label maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.metrics.segmentation import (
    SegmentationScores,
    boundary_band,
    segmentation_confusion,
    segmentation_scores,
)
from jaxvision.report import html, plots
from jaxvision.report.draw import check_images
from jaxvision.report.embed import to_svg
from jaxvision.report.html import Headline, Section
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
from jaxvision.report.lines import Line, line_chart
from jaxvision.report.overlay import picture_scale
from jaxvision.report.records import Record
from jaxvision.report.run_sections import (
    Metric,
    closing_sections,
    curves_of,
    percent,
    result_section,
    training_section,
)

MOST_PICTURES_SHOWN = 12
BAND_WIDTHS = (1, 2, 3, 5, 8)
"""The widths of the band around boundaries, in pixels, at which accuracy is shown."""
_METRICS = (
    Metric("mean_iou", "mean IoU", share=True),
    Metric("pixel_accuracy", "pixel accuracy", share=True),
    Metric("loss", "loss", share=False),
)


def write_segmentation_report(
    run_dir: str | Path,
    *,
    title: str,
    config: Mapping[str, Any],
    records: Sequence[Record],
    class_names: Sequence[str],
    labels: np.ndarray | None = None,
    predictions: np.ndarray | None = None,
    images: np.ndarray | None = None,
    others: Mapping[str, np.ndarray] | None = None,
    name: str = "this run",
    throughput: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes run_dir/report.html and returns its path.

    `records` are the lines of metrics.jsonl; every `train/…loss` among them gets a curve. Of the
    evaluated pictures, `labels` and `predictions` are integer maps [n, h, w] and `images` uint8
    [n, h, w, c]; without the first two the page has no predictions, without the last no pictures.
    `class_names` starts with the background's; pixels labelled 255 do not count. `others` holds
    other networks' maps for the same pictures, by name, shown and scored beside this one's, which
    is called `name`.

    A run that diverged, or was never validated, gets a report that says so. A folder that can't be
    written is a `UserError`, and leaves the report that was there.
    """
    tiles: list[Headline] = []
    sections: list[Section] = []
    if labels is not None and predictions is not None:
        networks = {name: np.asarray(predictions), **(others or {})}
        if len(networks) != 1 + len(others or {}):
            raise ValueError(f"expected other names than {name!r} for the other networks")
        _check(labels, networks, images, class_names)
        if not len(labels):
            sections.append(Section("Predictions", html.paragraph("No picture was evaluated.")))
        else:
            tiles, sections = _evaluation(labels, networks, images, class_names)
    sections = [
        result_section(config, records, _METRICS, notes, tiles),
        training_section(records, curves_of(records)),
        *sections,
        *closing_sections(config, records, throughput),
    ]
    return html.write_page(Path(run_dir) / "report.html", title, sections)


def draw_maps(
    image: np.ndarray,
    labels: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    num_classes: int,
    *,
    mistakes: bool = False,
) -> np.ndarray:
    """Returns a picture, its true map and each network's map side by side, uint8 [h, w, 3].

    With `mistakes` a map of what the first network has wrong stands at the end.
    """
    panels = {"picture": image, "ground truth": color_labels(labels, num_classes)}
    panels |= {name: color_labels(maps, num_classes) for name, maps in predictions.items()}
    if mistakes:
        panels["mistakes"] = mark_mistakes(labels, next(iter(predictions.values())))
    return draw_panels(panels, picture_scale(labels.shape, shortest=260))


def _check(labels, networks, images, class_names) -> None:
    for name, maps in networks.items():
        if labels.ndim != 3 or maps.shape != labels.shape:
            raise ValueError(
                f"expected labels and predictions of one shape [n, h, w], got "
                f"{list(labels.shape)} and {list(maps.shape)} of {name}"
            )
        if maps.size and not (maps.min() >= 0 and maps.max() < len(class_names)):
            raise ValueError(
                f"expected predictions of {name} from 0 to {len(class_names) - 1}, got "
                f"{maps.min()} to {maps.max()}"
            )
    if images is not None and len(labels):
        check_images(images)
        if images.shape[:3] != labels.shape:
            raise ValueError(
                f"expected pictures {[*labels.shape, 3]}, got shape {list(images.shape)}"
            )


def _evaluation(
    labels: np.ndarray,
    networks: Mapping[str, np.ndarray],
    images: np.ndarray | None,
    class_names: Sequence[str],
) -> tuple[list[Headline], list[Section]]:
    k = len(class_names)
    confusions = {
        name: np.asarray(segmentation_confusion(labels, maps, k)) for name, maps in networks.items()
    }
    scores = {name: segmentation_scores(confusion) for name, confusion in confusions.items()}
    first = next(iter(networks))
    tiles = [
        Headline("Mean IoU", percent(scores[first].mean_iou)),
        Headline("Pixel accuracy", percent(scores[first].pixel_accuracy)),
        Headline("Mean accuracy", percent(scores[first].mean_accuracy), "of classes"),
    ]
    heat_map = plots.confusion_heat_map(confusions[first], class_names, percent=True)
    confusion_html = html.plot(
        to_svg(heat_map, "Confusion matrix of pixels"),
        "Of the pixels of each class, in per cent, what they were taken for.",
        wide=True,
    )
    columns = [
        f"<div>{_score_tables(scores, class_names)}</div>",
        f"<div>{_boundary_html(labels, networks, k)}</div>",
    ]
    sections = [
        Section("Classes and boundaries", html.side_by_side(columns)),
        Section("Confusion", confusion_html),
    ]
    if images is not None:
        sections.append(_pictures_section(labels, networks, images, class_names))
    return tiles, sections


def _score_tables(scores: Mapping[str, SegmentationScores], class_names: Sequence[str]) -> str:
    rows = [
        (name, *(_cell(score.iou[k]) for score in scores.values()))
        for k, name in enumerate(class_names)
    ]
    rows.append(("Mean over classes", *(_cell(score.mean_iou) for score in scores.values())))
    rows.append(("Pixel accuracy", *(_cell(score.pixel_accuracy) for score in scores.values())))
    heading = ("IoU",) if len(scores) == 1 else tuple(scores)
    return html.table(("Class", *heading), rows)


def _boundary_html(labels: np.ndarray, networks: Mapping[str, np.ndarray], k: int) -> str:
    accuracies: dict[str, list[float]] = {name: [] for name in networks}
    for width in BAND_WIDTHS:
        band = boundary_band(labels, width)
        for name, maps in networks.items():
            confusion = segmentation_confusion(labels, maps, k, band)
            accuracies[name].append(100 * segmentation_scores(confusion).pixel_accuracy)
    widths = np.array(BAND_WIDTHS)
    lines = [Line(name, widths, np.array(values)) for name, values in accuracies.items()]
    # Five lines fit a chart; a table holds them all.
    chart = line_chart(lines[:5], "Distance to a boundary, at most (pixels)", "Accuracy (%)")
    words = "Accuracy of the pixels near a boundary of the ground truth."
    rows = [
        (name, *("-" if np.isnan(v) else f"{v:.1f}" for v in values))
        for name, values in accuracies.items()
    ]
    heading = ("Accuracy (%) within", *(f"{width} px" for width in BAND_WIDTHS))
    return html.plot(to_svg(chart, "Accuracy near boundaries"), words) + html.table(heading, rows)


def _pictures_section(
    labels: np.ndarray,
    networks: Mapping[str, np.ndarray],
    images: np.ndarray,
    class_names: Sequence[str],
) -> Section:
    n, k = len(labels), len(class_names)
    chosen = np.unique(np.linspace(0, n - 1, min(MOST_PICTURES_SHOWN, n)).astype(int))
    drawings = [
        draw_maps(
            images[i],
            labels[i],
            {name: maps[i] for name, maps in networks.items()},
            k,
            mistakes=len(networks) == 1,
        )
        for i in chosen
    ]
    colors = np.concatenate([map_colors(k), np.array([IGNORED_COLOR], np.uint8)])
    names = [*class_names, "ignored"]
    if len(networks) == 1:
        colors = np.concatenate([colors, np.array([RIGHT_COLOR, WRONG_COLOR], np.uint8)])
        names += ["right", "wrong"]
    legend = draw_legend(names, colors, width=drawings[0].shape[1])
    captions = [["legend"], *([f"picture {i}"] for i in chosen)]
    body = html.drawings([legend, *drawings], captions, size="wide")
    return Section("Pictures", body)


def _cell(share: float) -> str:
    return "-" if np.isnan(share) else percent(share, 1)
