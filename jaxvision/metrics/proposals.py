"""How well proposals cover the objects: recall, average recall, and best overlap. On the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from jaxvision.errors import UserError
from jaxvision.metrics.boxes import pairwise_iou, read_pictures


@dataclass(frozen=True, eq=False)
class ProposalScores:
    """What the first `counts[c]` proposals of every picture cover; a picture may have fewer.

    `recall` [c, t] is the share of objects that a proposal overlaps by `iou_thresholds[t]` or more.
    `average_recall` [c] is the mean recall over all IoUs from 0.5 to 1, as an integral (Hosang et
    al., "What makes for effective detection proposals?", PAMI 2016, section 5.4). `abo` [c, k] is
    each class's average best overlap, NaN for a class without objects, and `mabo` [c] the mean over
    the others (Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, section 5).
    `mean_boxes` [c] is how many proposals a picture has on average. All are NaN without an object.
    """

    counts: tuple[int, ...]
    iou_thresholds: tuple[float, ...]
    recall: Float64[np.ndarray, "c t"]
    average_recall: Float64[np.ndarray, "c"]
    abo: Float64[np.ndarray, "c k"]
    mabo: Float64[np.ndarray, "c"]
    mean_boxes: Float64[np.ndarray, "c"]
    num_objects: Int64[np.ndarray, "k"]


def proposal_scores(
    proposals: Sequence[np.ndarray],
    targets: Sequence[Any],
    num_classes: int,
    counts: Sequence[int] = (10, 30, 100, 300, 1000, 3000),
    iou_thresholds: Sequence[float] = (0.5, 0.7, 0.9),
) -> ProposalScores:
    """Returns how well each picture's first boxes cover its objects.

    `proposals` are boxes [n, 4], xyxy in pixels, one array a picture, the best first; targets are
    as `jaxvision.metrics.boxes` says. Difficult objects do not count.

    >>> boxes = np.array([[0.0, 0, 4, 4], [10, 10, 14, 18]])
    >>> there = [{"boxes": [[0, 0, 4, 8], [10, 10, 14, 18]], "labels": [0, 1]}]
    >>> scores = proposal_scores([boxes], there, num_classes=2, counts=(1, 2))
    >>> scores.recall[:, 0].tolist(), scores.abo.tolist(), scores.mabo.tolist()
    ([0.5, 1.0], [[0.5, 0.0], [0.5, 1.0]], [0.25, 0.75])
    """
    counts = tuple(int(count) for count in counts)
    if not counts or min(counts) < 1:
        raise ValueError(f"expected numbers of boxes of at least 1, got {list(counts)}")
    if len(proposals) != len(targets):
        raise UserError(f"expected proposals for {len(targets)} pictures, got {len(proposals)}")
    predictions = [
        {"boxes": boxes, "labels": np.zeros(len(boxes), int), "scores": np.zeros(len(boxes))}
        for boxes in proposals
    ]
    found, truth = read_pictures(predictions, targets, num_classes)
    pairs = list(zip(found, truth, strict=True))
    best = [_best_overlaps(f.boxes, t.boxes[~t.difficult], counts) for f, t in pairs]
    overlaps = np.concatenate([np.zeros((len(counts), 0)), *best], axis=1)
    labels = np.concatenate([np.zeros(0, int), *(t.labels[~t.difficult] for t in truth)])
    sizes = np.array([len(f.boxes) for f in found])
    num_objects = np.bincount(labels, minlength=num_classes)

    abo = np.full((len(counts), num_classes), np.nan)
    for k in np.flatnonzero(num_objects):
        abo[:, k] = overlaps[:, labels == k].mean(axis=1)
    thresholds = tuple(float(threshold) for threshold in iou_thresholds)
    reached = overlaps[:, :, None] >= np.array(thresholds)
    beyond_half = 2 * np.clip(overlaps - 0.5, 0.0, None)
    boxes = np.minimum(sizes[None, :], np.array(counts)[:, None])
    return ProposalScores(
        counts=counts,
        iou_thresholds=thresholds,
        recall=_mean(reached, axis=1),
        average_recall=_mean(beyond_half, axis=1),
        abo=abo,
        mabo=_mean(abo[:, num_objects > 0], axis=1),
        mean_boxes=_mean(boxes, axis=1),
        num_objects=num_objects,
    )


def _best_overlaps(boxes: np.ndarray, objects: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Returns each object's best IoU with the first boxes, [c, m]; 0 where there are none."""
    ious = pairwise_iou(boxes, objects)
    return np.stack([ious[:count].max(axis=0, initial=0.0) for count in counts])


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean, NaN (without a warning) over nothing."""
    if values.shape[axis] == 0:
        return np.full(np.delete(values.shape, axis), np.nan)
    return values.mean(axis=axis, dtype=np.float64)
