"""What kind of mistakes a detector makes: Hoiem et al.'s breakdown, and a confusion matrix.

Hoiem, Chodpathumwan, Dai, "Diagnosing Error in Object Detectors", ECCV 2012, section 2, as the YOLO
paper uses it (Redmon et al., CVPR 2016, section 4.2 and figure 4). On the host, in numpy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from jaxvision.errors import UserError
from jaxvision.metrics.boxes import Matches, match_detections, pairwise_iou, read_pictures

ERROR_KINDS = ("correct", "localisation", "similar", "other", "background")
CORRECT, LOCALISATION, SIMILAR, OTHER, BACKGROUND = range(len(ERROR_KINDS))

RIGHT_IOU = 0.5
NEAR_IOU = 0.1

ClassGroups = tuple[tuple[str, ...], ...]

SIMILAR_CLASSES: Mapping[str, ClassGroups] = {
    # The authors' own: animals with the person, vehicles, furniture, and what flies.
    "voc": (
        ("bird", "cat", "cow", "dog", "horse", "person", "sheep"),
        ("aeroplane", "bicycle", "boat", "bus", "car", "motorbike", "train"),
        ("chair", "diningtable", "sofa"),
        ("aeroplane", "bird"),
    ),
    "garments": (
        ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"),
        ("Sandal", "Sneaker", "Ankle Boot"),
    ),
}
"""By data set, groups of class names of which any two are similar; a class may be in several."""


@dataclass(frozen=True, eq=False)
class ErrorBreakdown:
    """The kind of each class's best detections, and the objects that none of them found.

    `counts` [k, 5] says how many of class k's detections are of each of `ERROR_KINDS`, of at most
    `num_objects` [k]. Row by row, best score first, `picture` and `index` say where a detection
    stands in the predictions; `kind` is its place in `ERROR_KINDS`; `object_index` is the object of
    its picture that decided it, -1 for the background, and `overlap` their IoU. `missed_picture`
    and `missed_index` are the objects, not difficult ones, that no correct detection claims: for
    each class num_objects - correct.
    """

    counts: Int64[np.ndarray, "k 5"]
    num_objects: Int64[np.ndarray, "k"]
    picture: Int64[np.ndarray, "d"]
    index: Int64[np.ndarray, "d"]
    kind: Int64[np.ndarray, "d"]
    object_index: Int64[np.ndarray, "d"]
    overlap: Float64[np.ndarray, "d"]
    missed_picture: Int64[np.ndarray, "q"]
    missed_index: Int64[np.ndarray, "q"]

    @property
    def shares(self) -> dict[str, float]:
        """Each kind's share of a class's detections, the mean over the classes that have some.

        So that frequent classes do not rule, as in the YOLO paper. NaN where there are none at all.
        """
        totals = self.counts.sum(axis=1, keepdims=True)
        present = totals[:, 0] > 0
        if not present.any():
            return dict.fromkeys(ERROR_KINDS, float("nan"))
        means = (self.counts[present] / totals[present]).mean(axis=0)
        return {kind: float(share) for kind, share in zip(ERROR_KINDS, means, strict=True)}

    @property
    def missed_share(self) -> float:
        """The share of a class's objects that were missed, the mean over classes with objects."""
        present = self.num_objects > 0
        if not present.any():
            return float("nan")
        return float(1 - (self.counts[present, CORRECT] / self.num_objects[present]).mean())


def error_breakdown(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Any],
    class_names: Sequence[str],
    similar: ClassGroups = (),
) -> ErrorBreakdown:
    """Returns what the top N detections of each class are, N being the class's objects.

    correct: IoU of at least 0.5 with an object of its class, not claimed by a better detection.
    localisation: IoU of 0.1 to 0.5 with one of its class, or a duplicate. Otherwise what it
    overlaps most of all other objects, with an IoU of at least 0.1, makes it similar (an object of
    a similar class) or other; without one it is background.

    Decisions: a duplicate of an object that has been detected is a localisation error, as in the
    paper. Objects are claimed by the VOC devkit's rule (`Matches.verdicts`), so that correct means
    a true positive of average precision; the authors' tool looks for a free object instead. A
    detection that claims a difficult object is left out before the top N are taken, and difficult
    objects are never missed; to an otherwise wrong detection they are objects like any other.

    Predictions and targets are as `jaxvision.metrics.boxes` says; `similar` as `SIMILAR_CLASSES`.

    >>> found = [{"boxes": [[0, 0, 4, 4], [0, 1, 4, 9]], "scores": [0.9, 0.8], "labels": [0, 0]}]
    >>> there = [{"boxes": [[0, 0, 4, 4], [0, 6, 4, 10]], "labels": [0, 0]}]
    >>> result = error_breakdown(found, there, ["Bag"])
    >>> result.counts.tolist(), result.missed_index.tolist()
    ([[1, 1, 0, 0, 0]], [1])
    """
    num_classes = len(class_names)
    is_similar = similar_matrix(class_names, similar)
    matches = match_detections(predictions, targets, num_classes)
    counted = ~matches.object_difficult
    num_objects = np.bincount(matches.object_label[counted], minlength=num_classes)

    verdicts = matches.verdicts(RIGHT_IOU)
    rows = _top_rows(matches.label, verdicts != 0, num_objects)
    kind, object_row, overlap = _kinds(matches, verdicts, rows, is_similar)
    counts = np.zeros((num_classes, len(ERROR_KINDS)), np.int64)
    np.add.at(counts, (matches.label[rows], kind), 1)
    is_missed = counted
    is_missed[object_row[kind == CORRECT]] = False
    nowhere = np.append(matches.object_index, -1)  # row -1, no object, gives -1
    return ErrorBreakdown(
        counts=counts,
        num_objects=num_objects,
        picture=matches.picture[rows],
        index=matches.index[rows],
        kind=kind,
        object_index=nowhere[object_row],
        overlap=overlap,
        missed_picture=matches.object_picture[is_missed],
        missed_index=matches.object_index[is_missed],
    )


def similar_matrix(class_names: Sequence[str], groups: ClassGroups) -> Bool[np.ndarray, "k k"]:
    """Returns which classes are similar; no class is similar to itself.

    A group that names a class there is not is a `UserError`.

    >>> similar_matrix(["cat", "dog", "car"], (("cat", "dog"),)).astype(int).tolist()
    [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    places = {name: i for i, name in enumerate(class_names)}
    matrix = np.zeros((len(places), len(places)), bool)
    for group in groups:
        unknown = [name for name in group if name not in places]
        if unknown:
            raise UserError(
                f"expected similar classes of {', '.join(class_names)}; got {', '.join(unknown)}"
            )
        members = [places[name] for name in group]
        matrix[np.ix_(members, members)] = True
    np.fill_diagonal(matrix, False)
    return matrix


def detection_confusion(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Any],
    num_classes: int,
    *,
    score_threshold: int | float = 0.5,
    iou_threshold: float = 0.5,
) -> Int64[np.ndarray, "k1 k1"]:
    """Returns how often objects of each class (row) were taken for each class (column).

    The last row and column are the background: a detection where no object is, an object that was
    missed. In each picture the detections of at least `score_threshold`, best first, take the free
    object which they overlap most, whatever its class, if the IoU reaches `iou_threshold`.
    Difficult objects are not missed, and detections that overlap them most do not count.

    >>> found = [{"boxes": [[0, 0, 4, 4], [8, 8, 9, 9]], "scores": [0.9, 0.8], "labels": [1, 0]}]
    >>> there = [{"boxes": [[0, 0, 4, 4]], "labels": [0]}]
    >>> detection_confusion(found, there, num_classes=2).tolist()
    [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    """
    confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    background = num_classes
    for found, truth in zip(*read_pictures(predictions, targets, num_classes), strict=True):
        order = np.argsort(-found.scores, kind="stable")
        order = order[found.scores[order] >= score_threshold]
        ious = pairwise_iou(found.boxes[order], truth.boxes)
        free = np.ones(len(truth.labels), bool)
        for label, overlaps in zip(found.labels[order], ious, strict=True):
            overlaps = np.where(free & (overlaps >= iou_threshold), overlaps, 0.0)
            best = int(overlaps.argmax()) if overlaps.any() else None
            if best is None:
                confusion[background, label] += 1
            elif not truth.difficult[best]:
                confusion[truth.labels[best], label] += 1
                free[best] = False
        missed = truth.labels[free & ~truth.difficult]
        np.add.at(confusion, (missed, background), 1)
    return confusion


def _top_rows(labels: np.ndarray, counts: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Returns the first `most[k]` rows that count of each class k, in their order."""
    kept = np.zeros(len(labels), bool)
    for k, number in enumerate(most):
        kept[np.flatnonzero(counts & (labels == k))[:number]] = True
    return np.flatnonzero(kept)


def _kinds(
    matches: Matches, verdicts: np.ndarray, rows: np.ndarray, is_similar: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (kind, the object's row or -1, their IoU) of each of `rows`."""
    own = matches.overlap[rows] >= NEAR_IOU
    another = ~own & (matches.other_overlap[rows] >= NEAR_IOU)
    object_row = np.where(own, matches.object[rows], -1)
    object_row = np.where(another, matches.other_object[rows], object_row)
    overlap = np.where(own, matches.overlap[rows], 0.0)
    overlap = np.where(another, matches.other_overlap[rows], overlap)

    kind = np.full(len(rows), BACKGROUND)
    kind[own] = LOCALISATION
    kind[verdicts[rows] > 0] = CORRECT
    seen = matches.object_label[object_row[another]]
    alike = is_similar[matches.label[rows][another], seen]
    kind[another] = np.where(alike, SIMILAR, OTHER)
    return kind, object_row, overlap
