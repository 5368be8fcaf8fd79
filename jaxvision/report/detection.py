"""The report of a detection run: report.html, from its records and what it found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvision.metrics.boxes import field_of
from jaxvision.metrics.coco import coco_scores
from jaxvision.metrics.detection import AveragePrecision, detection_average_precision
from jaxvision.metrics.errors import ClassGroups, detection_confusion, error_breakdown
from jaxvision.report import html, plots
from jaxvision.report.detection_drawings import draw_truth_and_found
from jaxvision.report.detection_plots import precision_recall_grid
from jaxvision.report.embed import to_svg
from jaxvision.report.errors import (
    Detections,
    ImageAt,
    cell,
    error_section,
    mistakes_section,
    spread,
)
from jaxvision.report.html import Headline, Section
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
_KINDS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
_PLURALS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
_METRICS = (Metric("mAP50", "mAP at IoU 0.5", share=True), Metric("loss", "loss", share=False))


def write_detection_report(
    run_dir: str | Path,
    *,
    title: str,
    config: Mapping[str, Any],
    records: Sequence[Record],
    class_names: Sequence[str],
    predictions: Detections | None = None,
    targets: Sequence[Any] | None = None,
    image_at: ImageAt | None = None,
    similar: ClassGroups = (),
    others: Mapping[str, Detections] | None = None,
    name: str = "this run",
    score_threshold: int | float = 0.5,
    throughput: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes run_dir/report.html and returns its path.

    `records` are the lines of metrics.jsonl; every `train/…loss` among them gets a curve. Of the
    evaluated pictures, `predictions` and `targets` are as `jaxvision.metrics.boxes` says, and where
    both have `masks` or `keypoints` those are scored and drawn too. `image_at(i)` returns picture
    i, uint8 [h, w, c], and is called for those that are shown. `similar` is an entry of
    `SIMILAR_CLASSES`. `others` holds other detectors' predictions for the same pictures, by name,
    whose curves and pies stand beside this one's, called `name`. Pictures and the confusion matrix
    show detections of at least `score_threshold`; average precision takes all.

    A run that diverged, or was never validated, gets a report that says so. A folder that can't be
    written is a `UserError`, and leaves the report that was there.
    """
    tiles: list[Headline] = []
    sections: list[Section] = []
    if predictions is not None and targets is not None:
        detectors = {name: predictions, **(others or {})}
        if len(detectors) != 1 + len(others or {}):
            raise ValueError(f"expected other names than {name!r} for the other detectors")
        if not len(targets):
            sections.append(Section("Predictions", html.paragraph("No picture was evaluated.")))
        else:
            tiles, sections = _evaluation(
                detectors, targets, class_names, image_at, similar, score_threshold
            )
    sections = [
        result_section(config, records, _METRICS, notes, tiles),
        training_section(records, curves_of(records)),
        *sections,
        *closing_sections(config, records, throughput),
    ]
    return html.write_page(Path(run_dir) / "report.html", title, sections)


def _evaluation(
    detectors: Mapping[str, Detections],
    targets: Sequence[Any],
    class_names: Sequence[str],
    image_at: ImageAt | None,
    similar: ClassGroups,
    score_threshold: float,
) -> tuple[list[Headline], list[Section]]:
    k = len(class_names)
    name, predictions = next(iter(detectors.items()))
    curves = {
        each: detection_average_precision(found, targets, k) for each, found in detectors.items()
    }
    older = detection_average_precision(predictions, targets, k, method="voc07")
    both = (*predictions, *targets)
    kinds = ["bbox"]
    for field, kind in (("masks", "segm"), ("keypoints", "keypoints")):
        if all(field_of(source, field) is not None for source in both):
            kinds.append(kind)
    coco = coco_scores(predictions, targets, class_names, kinds)
    breakdowns = {
        each: error_breakdown(found, targets, class_names, similar)
        for each, found in detectors.items()
    }
    tiles = [
        Headline("mAP at IoU 0.5", percent(curves[name].mean), "VOC, area under the curve"),
        Headline("COCO AP", percent(coco["bbox"].summary["AP"]), "boxes, IoU 0.50 to 0.95"),
    ]
    for kind in kinds[1:]:
        tiles.append(Headline(f"COCO {_KINDS[kind]} AP", percent(coco[kind].summary["AP"])))
    sections = [
        _precision_section(curves, older, coco, class_names),
        _confusion_section(predictions, targets, class_names, score_threshold),
        error_section(breakdowns, class_names),
    ]
    if image_at is not None:
        sections.append(
            _pictures_section(predictions, targets, class_names, image_at, score_threshold)
        )
        sections.append(
            mistakes_section(breakdowns[name], predictions, targets, class_names, image_at)
        )
    return tiles, sections


def _precision_section(
    curves: Mapping[str, AveragePrecision],
    older: AveragePrecision,
    coco: Mapping[str, Any],
    class_names: Sequence[str],
) -> Section:
    area = next(iter(curves.values()))
    heading = ["Class", "Objects", "AP", "AP, 11 points", "COCO AP"]
    columns = [area.ap, older.ap, coco["bbox"].per_class]
    means = [area.mean, older.mean, coco["bbox"].summary["AP"]]
    for kind in list(coco)[1:]:
        heading.append(f"COCO {_KINDS[kind]} AP")
        columns.append(coco[kind].per_class)
        means.append(coco[kind].summary["AP"])
    for name, result in list(curves.items())[1:]:
        heading.append(f"AP, {name}")
        columns.append(result.ap)
        means.append(result.mean)
    rows = [
        (class_names[k], f"{area.num_objects[k]:,}", *(cell(column[k]) for column in columns))
        for k in range(len(class_names))
    ]
    rows.append(("Mean over classes", f"{area.num_objects.sum():,}", *map(cell, means)))
    summaries: dict[tuple[str, ...], list[tuple[str, ...]]] = {}  # keypoints have other columns
    for kind, scores in coco.items():
        row = (cell(value).removesuffix(" %") for value in scores.summary.values())
        summaries.setdefault(tuple(scores.summary), []).append((_PLURALS[kind], *row))
    summary = "".join(
        html.table(("COCO (%)", *columns), those) for columns, those in summaries.items()
    )
    grid = html.plot(
        to_svg(precision_recall_grid(curves, class_names), "Precision against recall by class"),
        "At an IoU of 0.5. Objects marked as difficult do not count.",
        wide=True,
    )
    return Section("Average precision", html.table(heading, rows) + grid + summary)


def _confusion_section(
    predictions: Detections,
    targets: Sequence[Any],
    class_names: Sequence[str],
    score_threshold: float,
) -> Section:
    confusion = detection_confusion(
        predictions, targets, len(class_names), score_threshold=score_threshold
    )
    figure = plots.confusion_heat_map(confusion, [*class_names, "background"])
    caption = (
        f"Detections of at least {percent(score_threshold, 0)}, at an IoU of 0.5. The last row are "
        "detections where no object is, the last column objects that were not found."
    )
    return Section("Confusion", html.plot(to_svg(figure, "Confusion matrix"), caption, wide=True))


def _pictures_section(
    predictions: Detections,
    targets: Sequence[Any],
    class_names: Sequence[str],
    image_at: ImageAt,
    score_threshold: float,
) -> Section:
    chosen = spread(len(targets), MOST_PICTURES_SHOWN)
    drawings = [
        draw_truth_and_found(image_at(i), targets[i], predictions[i], class_names, score_threshold)
        for i in chosen
    ]
    words = f"Detections of at least {percent(score_threshold, 0)}, from all over the data set."
    captions = [[f"picture {i}"] for i in chosen]
    return Section("Pictures", html.paragraph(words) + html.drawings(drawings, captions))
