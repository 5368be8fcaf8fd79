"""What a detector found in each picture and what is there, checked and matched, in numpy.

Metrics of detection run once an epoch, over lists of every length, so they are on the host: a fixed
shape under jit would cost more than it saves. A prediction is a mapping with `boxes` [n, 4],
`scores` [n] and `labels` [n], a target a mapping, or an object with attributes, with `boxes`
[m, 4], `labels` [m] and where it has them `difficult` [m]. Boxes are (x1, y1, x2, y2) in pixels,
between pixels; one whose x2 <= x1 or y2 <= y1 is empty and overlaps nothing. Labels count from 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from jaxvision.errors import UserError


@dataclass(frozen=True, eq=False)
class Found:
    """The `n` detections of one picture."""

    boxes: Float64[np.ndarray, "n 4"]
    scores: Float64[np.ndarray, "n"]
    labels: Int64[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Truth:
    """The `m` objects of one picture; `difficult` ones neither count nor count against."""

    boxes: Float64[np.ndarray, "m 4"]
    labels: Int64[np.ndarray, "m"]
    difficult: Bool[np.ndarray, "m"]


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections of a data set, best score first, and the objects that they overlap most.

    Row by row: `picture` and `index` say where the detection stands in the predictions; `overlap`
    is its largest IoU with an object of its own class in its picture and `object` the row of that
    object, of equal ones the first, -1 where it overlaps none; `other_overlap` and `other_object`
    are the same for objects of all other classes. Detections of equal score keep their order:
    picture by picture, and as they stand within a picture.
    """

    picture: Int64[np.ndarray, "d"]
    index: Int64[np.ndarray, "d"]
    label: Int64[np.ndarray, "d"]
    score: Float64[np.ndarray, "d"]
    overlap: Float64[np.ndarray, "d"]
    object: Int64[np.ndarray, "d"]
    other_overlap: Float64[np.ndarray, "d"]
    other_object: Int64[np.ndarray, "d"]
    object_picture: Int64[np.ndarray, "q"]
    object_index: Int64[np.ndarray, "q"]
    object_label: Int64[np.ndarray, "q"]
    object_difficult: Bool[np.ndarray, "q"]

    def verdicts(self, iou_threshold: float) -> Int64[np.ndarray, "d"]:
        """Says of each detection 1 (true positive), -1 (false positive) or 0 (does not count).

        This is the devkit's rule (VOCevaldet.m): a detection claims the object of its class that it
        overlaps most, if the IoU reaches the threshold, even if that one has been claimed and
        another is free. The first claim is right, later ones are false positives; a detection
        that claims a difficult object does not count.
        """
        claims = (self.object >= 0) & (self.overlap >= iou_threshold)
        ignored = np.zeros(len(claims), bool)
        ignored[claims] = self.object_difficult[self.object[claims]]
        rows = np.flatnonzero(claims & ~ignored)
        _, first = np.unique(self.object[rows], return_index=True)
        verdicts = np.where(ignored, 0, -1)
        verdicts[rows[first]] = 1
        return verdicts


def pairwise_iou(
    boxes: Float[np.ndarray, "n 4"], others: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, "n m"]:
    """Returns the intersection over union of every pair; 0 where they share no area.

    >>> pairwise_iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [2, 0, 3, 2]])).tolist()
    [[0.3333333333333333, 0.0]]
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = np.clip(high - low, 0.0, None).prod(axis=-1)
    union = box_area(boxes)[:, None] + box_area(others)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def box_area(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """Returns each box's area in pixels, 0 for an empty one."""
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=-1)


def match_detections(
    predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any], num_classes: int
) -> Matches:
    """Returns every detection beside the objects that it overlaps most, of its class and others."""
    found, truth = read_pictures(predictions, targets, num_classes)
    pictures = [_match_picture(f, t) for f, t in zip(found, truth, strict=True)]
    starts = np.cumsum([0, *(len(t.labels) for t in truth)])
    columns = [
        np.concatenate([picture[i] for picture in pictures]) if pictures else np.zeros(0)
        for i in range(4)
    ]
    counts = [len(f.labels) for f in found]
    picture = np.repeat(np.arange(len(found)), counts)
    overlap, local, other_overlap, other_local = columns
    rows = {
        "picture": picture,
        "index": _counted(counts),
        "label": _joined([f.labels for f in found], np.int64),
        "score": _joined([f.scores for f in found], np.float64),
        "overlap": overlap,
        "object": _global(local, starts, picture),
        "other_overlap": other_overlap,
        "other_object": _global(other_local, starts, picture),
    }
    order = np.argsort(-rows["score"], kind="stable")
    object_counts = [len(t.labels) for t in truth]
    return Matches(
        **{name: column[order] for name, column in rows.items()},
        object_picture=np.repeat(np.arange(len(truth)), object_counts),
        object_index=_counted(object_counts),
        object_label=_joined([t.labels for t in truth], np.int64),
        object_difficult=_joined([t.difficult for t in truth], bool),
    )


def read_pictures(
    predictions: Sequence[Mapping[str, Any]], targets: Sequence[Any], num_classes: int
) -> tuple[list[Found], list[Truth]]:
    """Returns the pictures' detections and objects, checked.

    NaN in boxes or scores, a label outside 0..num_classes-1, or arrays that do not fit are a
    `UserError` that names the picture by its place: none of them has a meaning in a metric.
    """
    if num_classes < 1:
        raise ValueError(f"expected at least one class, got num_classes={num_classes}")
    if len(predictions) != len(targets):
        raise UserError(
            f"expected predictions for each of {len(targets)} pictures, got {len(predictions)}: "
            "give an empty one for a picture in which nothing was found"
        )
    found, truth = [], []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        where = f"the predictions of picture {i}"
        boxes, labels = _read_boxes(prediction, where, num_classes)
        scores = np.asarray(prediction["scores"], np.float64).reshape(-1)
        if len(scores) != len(boxes):
            raise UserError(f"{where}: expected {len(boxes)} scores, got {len(scores)}")
        if np.isnan(scores).any():
            raise UserError(f"{where}: expected scores that are numbers, got NaN: it has diverged?")
        found.append(Found(boxes, scores, labels))

        boxes, labels = _read_boxes(target, f"the objects of picture {i}", num_classes)
        difficult = field_of(target, "difficult")
        difficult = np.zeros(len(boxes)) if difficult is None else np.asarray(difficult)
        if difficult.shape != labels.shape:
            raise UserError(
                f"the objects of picture {i}: expected {len(boxes)} flags of what is difficult, "
                f"got {list(difficult.shape)}"
            )
        truth.append(Truth(boxes, labels, difficult.astype(bool)))
    return found, truth


def field_of(target: Any, name: str) -> Any:
    """Returns a mapping's entry or an object's attribute, None where it has none."""
    return target.get(name) if isinstance(target, Mapping) else getattr(target, name, None)


def _read_boxes(source: Any, where: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.asarray(field_of(source, "boxes"), np.float64)
    labels = np.asarray(field_of(source, "labels"))
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise UserError(
            f"{where}: expected boxes [n, 4] and labels [n], got {list(boxes.shape)} and "
            f"{list(labels.shape)}"
        )
    if not np.isfinite(boxes).all():
        raise UserError(f"{where}: expected boxes of finite numbers, got NaN or infinity")
    labels = labels.astype(np.int64)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise UserError(
            f"{where}: expected labels from 0 to {num_classes - 1}, got {labels.min()} to "
            f"{labels.max()}; background is no class here"
        )
    return boxes, labels


def _match_picture(found: Found, truth: Truth) -> tuple[np.ndarray, ...]:
    """Returns (overlap, object, other overlap, other object) of each detection, -1 for none."""
    n = len(found.labels)
    if not len(truth.labels):
        nothing = np.zeros(n), np.full(n, -1)
        return *nothing, *nothing
    ious = pairwise_iou(found.boxes, truth.boxes)
    own = found.labels[:, None] == truth.labels[None, :]
    columns = []
    for candidates in (np.where(own, ious, 0.0), np.where(own, 0.0, ious)):
        best = candidates.argmax(axis=1)
        overlap = candidates[np.arange(n), best]
        columns += [overlap, np.where(overlap > 0, best, -1)]
    return tuple(columns)


def _global(local: np.ndarray, starts: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Turns an object's place in its picture into its row among all objects."""
    local = local.astype(np.int64)
    return np.where(local >= 0, local + starts[picture], -1)


def _counted(counts: Sequence[int]) -> np.ndarray:
    """Returns 0..n-1 for each n, joined."""
    return _joined([np.arange(n) for n in counts], np.int64)


def _joined(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
