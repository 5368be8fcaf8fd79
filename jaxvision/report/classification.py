"""The report of a classification run: report.html, from its records and its predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.metrics import (
    confusion_matrix,
    most_confident_errors,
    most_confused_pairs,
    per_class_scores,
)
from jaxvision.report import html, plots
from jaxvision.report.draw import check_images, prediction_caption
from jaxvision.report.embed import to_svg
from jaxvision.report.html import Section
from jaxvision.report.records import Record
from jaxvision.report.run_sections import (
    Metric,
    closing_sections,
    percent,
    result_section,
    training_section,
)
from jaxvision.types import Array

MOST_ERRORS_SHOWN = 24
MOST_RIGHT_SHOWN = 10
_METRICS = (Metric("accuracy", "accuracy", share=True), Metric("loss", "loss", share=False))
_CURVES = (
    (plots.loss_curves, "Loss by step", ("train/loss", "val/loss")),
    (plots.accuracy_curves, "Accuracy by step", ("train/accuracy", "val/accuracy")),
    (plots.learning_rate_curve, "Learning rate by step", ("train/learning_rate",)),
    (plots.gradient_norm_curve, "Gradient norm by step", ("train/grad_norm",)),
)


def write_classification_report(
    run_dir: str | Path,
    *,
    title: str,
    config: Mapping[str, Any],
    records: Sequence[Record],
    class_names: Sequence[str],
    labels: Array | None = None,
    probabilities: Array | None = None,
    images: Array | None = None,
    throughput: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes run_dir/report.html and returns its path.

    `records` are the lines of metrics.jsonl. `labels` int [n], `probabilities` float [n, k] and
    `images` uint8 [n, h, w, c] are the evaluated examples; without the first two the page has no
    predictions, without the last no pictures. `throughput` may hold `examples_per_second`,
    `ms_per_step`, `seconds_per_epoch` and anything else worth a line; without the first it is the
    median of the records' `train/examples_per_second`. The data's source is read from
    `config["data_source"]`.

    A run that diverged, or was never validated, gets a report that says so. A folder that can't be
    written is a `UserError`, and leaves the report that was there.
    """
    sections = [
        result_section(config, records, _METRICS, notes),
        training_section(records, _CURVES),
    ]
    if labels is not None and probabilities is not None:
        sections += _predictions(
            np.asarray(labels),
            np.asarray(probabilities),
            None if images is None else np.asarray(images),
            class_names,
        )
    sections += closing_sections(config, records, throughput)
    return html.write_page(Path(run_dir) / "report.html", title, sections)


def _predictions(
    labels: np.ndarray,
    probabilities: np.ndarray,
    images: np.ndarray | None,
    class_names: Sequence[str],
) -> list[Section]:
    _check(labels, probabilities, images, class_names)
    if not len(labels):
        return [Section("Predictions", html.paragraph("No example was evaluated."))]
    finite = np.isfinite(probabilities).all(axis=1)
    predictions = probabilities.argmax(axis=1)
    is_right = finite & (predictions == labels)
    confusion = np.asarray(confusion_matrix(labels, predictions, len(class_names), valid=finite))

    share = percent(is_right.mean())
    summary = f"{is_right.sum():,} of {len(labels):,} examples are right ({share})."
    body = html.paragraph(summary)
    if not finite.all():
        body += html.notice(
            f"{(~finite).sum():,} of {len(labels):,} examples have probabilities that are not "
            "finite: they count as wrong, and are left out of everything below."
        )
    sections = [Section("Predictions by class", body + _by_class(confusion, class_names))]
    if images is None:
        return sections

    errors = most_confident_errors(probabilities, labels, MOST_ERRORS_SHOWN, valid=finite)
    rights = _one_of_each_class(np.flatnonzero(is_right), labels)[:MOST_RIGHT_SHOWN]
    for heading, chosen, none in (
        ("Most confident mistakes", errors, "No example is wrong."),
        ("Right predictions", rights, "No example is right."),
    ):
        captions = [
            prediction_caption(
                class_names[labels[i]], class_names[predictions[i]], float(probabilities[i].max())
            )
            for i in chosen
        ]
        shown = html.pictures(images[chosen], captions, is_right[chosen])
        none = none if finite.any() else "There is no finite prediction."
        sections.append(Section(heading, shown if len(chosen) else html.paragraph(none)))
    return sections


def _check(labels, probabilities, images, class_names) -> None:
    n, k = len(labels), len(class_names)
    if labels.shape != (n,) or probabilities.shape != (n, k):
        raise ValueError(
            f"expected labels [n] and probabilities [n, {k}] for {k} class names, got "
            f"{list(labels.shape)} and {list(probabilities.shape)}"
        )
    if n and not (labels.min() >= 0 and labels.max() < k):
        raise ValueError(f"expected labels from 0 to {k - 1}, got {labels.min()} to {labels.max()}")
    if images is not None:
        if len(images) != n:
            raise ValueError(f"expected one picture for each of {n} labels, got {len(images)}")
        check_images(images)


def _by_class(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    many = len(class_names) > plots.MOST_LABELLED_CLASSES
    scores = per_class_scores(confusion)
    rows = [
        (name, percent(p, 1), percent(r, 1), percent(f, 1), f"{n:,}")
        for name, p, r, f, n in zip(class_names, *scores, strict=True)
    ]
    means = [percent(np.mean(column), 1) for column in scores[:3]]
    rows.append(("Mean over classes", *means, f"{scores.support.sum():,}"))
    by_class = html.table(("Class", "Precision", "Recall", "F1", "Examples"), rows)
    if many:
        by_class = html.details(f"Scores of all {len(class_names)} classes", by_class)
    heat_map = html.plot(
        to_svg(plots.confusion_heat_map(confusion, class_names), "Confusion matrix"), wide=True
    )
    bars = html.plot(
        to_svg(plots.per_class_bars(confusion, class_names), "Precision and recall by class"),
        "The classes of the lowest F1." if many else "Ordered by F1, the lowest on top.",
    )
    pairs = [
        (class_names[true], class_names[predicted], f"{count:,}")
        for true, predicted, count in most_confused_pairs(confusion, 10)
    ]
    parts = [bars] if many else [heat_map, by_class, bars]
    if pairs:
        parts.append(
            "<h3>Most frequent mistakes</h3>" + html.table(("True", "Predicted", "Times"), pairs)
        )
    columns = html.side_by_side(f"<div>{part}</div>" for part in parts)
    # A matrix of many classes is legible only over the page's whole width.
    return heat_map + by_class + columns if many else columns


def _one_of_each_class(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Reorders the indices: the first of every class, then the second of every class, and so on."""
    seen: dict[int, int] = {}
    turns = []
    for index in indices:
        turns.append(seen.setdefault(int(labels[index]), 0))
        seen[int(labels[index])] += 1
    return indices[np.lexsort((labels[indices], np.array(turns, int)))]
