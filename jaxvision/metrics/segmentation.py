"""How well pixels are classified: accuracy, intersection over union, and accuracy at boundaries.

Everything follows from a confusion matrix over pixels, which adds up over batches. It is jnp, so it
can be made inside a jitted step; the rest is numpy, on the host.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int32, Integer

from jaxvision.metrics.classification import confusion_matrix
from jaxvision.types import Array

IGNORED = 255
"""The label of pixels that do not count: VOC's outlines, and padding."""


class SegmentationScores(NamedTuple):
    """Shares from 0 to 1; `iou` and `accuracy` float64 [k] are NaN for a class that is absent."""

    pixel_accuracy: float
    mean_accuracy: float
    mean_iou: float
    accuracy: np.ndarray
    iou: np.ndarray


@partial(jax.jit, static_argnames="num_classes")
def segmentation_confusion(
    labels: Integer[Array, "b h w"],
    predictions: Integer[Array, "b h w"],
    num_classes: int,
    valid: Bool[Array, " b"] | Bool[Array, "b h w"] | None = None,
) -> Int32[Array, "k k"]:
    """Returns how many pixels of each class (row) were given each class (column).

    Pixels labelled 255 (`IGNORED`), those of an example or of a place that is not `valid`, and
    labels outside 0..num_classes-1 do not count. The matrices of several batches add up; as int32
    one holds up to 2^31 pixels, so sum them as `np.int64` over a data set.

    >>> labels, predictions = jnp.array([[[0, 1, 255]]]), jnp.array([[[0, 0, 1]]])
    >>> segmentation_confusion(labels, predictions, num_classes=2).tolist()
    [[1, 0], [1, 0]]
    """
    if num_classes > IGNORED:
        raise ValueError(f"expected at most {IGNORED} classes, got {num_classes}")
    if valid is not None:
        valid = jnp.reshape(valid, valid.shape + (1,) * (labels.ndim - valid.ndim))
        valid = jnp.broadcast_to(valid, labels.shape).reshape(-1)
    # 255 is outside the classes, and so left out there.
    return confusion_matrix(labels.reshape(-1), predictions.reshape(-1), num_classes, valid)


def segmentation_scores(confusion: Integer[Array, "k k"]) -> SegmentationScores:
    """Returns the scores of a confusion matrix over pixels (rows true, columns predicted).

    The IoU of a class is its hits over all pixels that are of it or were taken for it; a class of
    which there are neither is left out of the mean. Mean accuracy is over the classes that occur.
    (Long, Shelhamer, Darrell, "Fully convolutional networks", CVPR 2015, section 5; VOC's own is
    the mean IoU.) Without a pixel that counts all are NaN.

    >>> scores = segmentation_scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    >>> scores.pixel_accuracy, scores.mean_accuracy, scores.mean_iou, scores.iou.tolist()
    (0.875, 0.875, 0.775, [0.75, 0.8, nan])
    """
    confusion = np.asarray(confusion).astype(np.int64)
    hits = np.diagonal(confusion)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy, iou = _ratio(hits, true), _ratio(hits, true + predicted - hits)
    return SegmentationScores(
        pixel_accuracy=float(_ratio(hits.sum(keepdims=True), true.sum(keepdims=True))[0]),
        mean_accuracy=_mean_present(accuracy),
        mean_iou=_mean_present(iou),
        accuracy=accuracy,
        iou=iou,
    )


def boundary_band(
    labels: Integer[np.ndarray, "b h w"], distance: int | float
) -> Bool[np.ndarray, "b h w"]:
    """Returns the pixels that have one of another label within `distance` pixels, on the host.

    That is a band around every boundary of the ground truth, `distance` wide to each side: the
    trimap of Kohli et al. (IJCV 2009) and Krähenbühl and Koltun (NIPS 2011, section 5). Distances
    are between the pixels' centres. Pixels labelled 255 are a label of their own here, because
    VOC's outlines lie on the boundaries. The picture's own border is no boundary.

    >>> boundary_band(np.array([[[0, 0, 0, 1, 1, 1]]], np.uint8), distance=1).astype(int).tolist()
    [[[0, 0, 1, 1, 0, 0]]]
    """
    import cv2

    if distance < 1:
        raise ValueError(f"expected a distance of at least 1 pixel, got {distance}")
    band = np.zeros(labels.shape, bool)
    for picture, near in zip(labels, band, strict=True):
        values = np.unique(picture)
        for value in values if len(values) > 1 else ():
            inside = picture == value
            to_others = cv2.distanceTransform(
                inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )
            # Squared distances are whole numbers; OpenCV's float32 roots are not quite exact.
            near |= inside & (to_others <= distance + 1e-3)
    return band


def boundary_accuracy(
    labels: Integer[np.ndarray, "b h w"],
    predictions: Integer[np.ndarray, "b h w"],
    num_classes: int,
    distance: int | float,
    valid: Bool[np.ndarray, " b"] | None = None,
) -> float:
    """Returns the pixel accuracy within `distance` pixels of a boundary, of all pictures together.

    NaN where there is no boundary. To add up batches, or to know more of the band, such as its mean
    IoU, give `boundary_band` as `valid` to `segmentation_confusion`. (Csurka et al., "What is a
    good evaluation measure for semantic segmentation?", BMVC 2013, compare it with others.)

    >>> labels = np.array([[[0, 0, 0, 1, 1, 1]]], np.uint8)
    >>> boundary_accuracy(labels, np.array([[[0, 0, 0, 0, 1, 1]]]), num_classes=2, distance=1)
    0.5
    """
    band = boundary_band(labels, distance)
    if valid is not None:
        band &= valid[:, None, None]
    confusion = segmentation_confusion(labels, predictions, num_classes, band)
    return segmentation_scores(confusion).pixel_accuracy


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    nothing = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=nothing, where=np.asarray(denominator) > 0)


def _mean_present(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
