"""Average precision as PASCAL VOC defines it, on the host in numpy.

Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2, and
the challenge's development kit (VOCevaldet.m, VOCap.m). `jaxvision.metrics.coco` has COCO's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from jaxvision.metrics.boxes import Matches, match_detections

VocMethod = Literal["voc07", "voc12"]


class PrecisionRecall(NamedTuple):
    """One class's curve: after each detection that counts, best score first, float64 [d]."""

    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """What `detection_average_precision` found.

    `table` float64 [t, k] holds one AP a threshold and class, NaN for a class without an object
    that counts; `curves` are the k classes' at the first threshold; `num_objects` [k] leaves
    difficult objects out.
    """

    table: Float64[np.ndarray, "t k"]
    iou_thresholds: tuple[float, ...]
    num_objects: Int64[np.ndarray, "k"]
    curves: tuple[PrecisionRecall, ...]

    @property
    def ap(self) -> Float64[np.ndarray, "k"]:
        """Each class's AP, the mean over the thresholds."""
        return self.table.mean(axis=0)

    @property
    def mean(self) -> float:
        """The mean over the classes that have objects (mAP); NaN where none has."""
        present = self.ap[self.num_objects > 0]
        return float(present.mean()) if present.size else float("nan")


def detection_average_precision(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Any],
    num_classes: int,
    iou_threshold: float | Sequence[float] = 0.5,
    method: VocMethod = "voc12",
) -> AveragePrecision:
    """Returns each class's average precision, at one IoU threshold or several.

    Predictions and targets are as `jaxvision.metrics.boxes` says, one a picture. Detections are
    matched as `Matches.verdicts` says. "voc07" is the mean of the precision at recall 0, 0.1, … 1,
    where the precision at a recall is the best at that recall or a higher one; "voc12" is the area
    under that same curve (all points, since 2010). Recall levels are compared exactly; MATLAB,
    which rounds 0.3 up, may leave a recall of just 3/10 out.

    The devkit counts pixels and so adds 1 to widths and heights; our boxes lie between pixels,
    where that is done already.

    >>> found = [{"boxes": [[0, 0, 4, 4], [5, 5, 9, 9]], "scores": [0.9, 0.8], "labels": [0, 0]}]
    >>> there = [{"boxes": [[0, 0, 4, 4], [20, 20, 30, 30]], "labels": [0, 0]}]
    >>> result = detection_average_precision(found, there, num_classes=1)
    >>> result.ap.tolist(), result.mean, result.curves[0].precision.tolist()
    ([0.5], 0.5, [1.0, 0.5])
    """
    if method not in ("voc07", "voc12"):
        raise ValueError(f'expected method "voc07" or "voc12", got {method!r}')
    thresholds = tuple(float(x) for x in np.atleast_1d(iou_threshold))
    if not thresholds or not all(0 <= x <= 1 for x in thresholds):
        raise ValueError(f"expected IoU thresholds from 0 to 1, got {iou_threshold}")
    matches = match_detections(predictions, targets, num_classes)
    counted = matches.object_label[~matches.object_difficult]
    num_objects = np.bincount(counted, minlength=num_classes)
    area = _area_eleven_points if method == "voc07" else _area_all_points

    table = np.full((len(thresholds), num_classes), np.nan)
    curves: list[PrecisionRecall] = []
    for t, threshold in enumerate(thresholds):
        verdicts = matches.verdicts(threshold)
        for k in range(num_classes):
            hits, curve = _curve(matches, verdicts, k, int(num_objects[k]))
            if num_objects[k]:
                table[t, k] = area(hits, curve, int(num_objects[k]))
            if t == 0:
                curves.append(curve)
    return AveragePrecision(table, thresholds, num_objects, tuple(curves))


def _curve(
    matches: Matches, verdicts: np.ndarray, label: int, num_objects: int
) -> tuple[np.ndarray, PrecisionRecall]:
    """Returns how many detections are right after each that counts, and the curve they make."""
    rows = np.flatnonzero((matches.label == label) & (verdicts != 0))
    hits = np.cumsum(verdicts[rows] > 0)
    precision = hits / np.arange(1, len(rows) + 1)
    recall = hits / num_objects if num_objects else np.full(len(rows), np.nan)
    return hits, PrecisionRecall(recall, precision, matches.score[rows])


def _best_from_here_on(precision: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area_eleven_points(hits: np.ndarray, curve: PrecisionRecall, num_objects: int) -> float:
    best = np.append(_best_from_here_on(curve.precision), 0.0)
    # Whole numbers on both sides: 3 / 10 is smaller than 3 * 0.1 in floating point.
    levels = np.searchsorted(10 * hits, np.arange(11) * num_objects)
    return float(best[levels].sum() / 11)


def _area_all_points(hits: np.ndarray, curve: PrecisionRecall, num_objects: int) -> float:
    # Recall rises only where a detection is right, each time by one object.
    is_hit = np.diff(hits, prepend=0) > 0
    return float(_best_from_here_on(curve.precision)[is_hit].sum() / num_objects)
