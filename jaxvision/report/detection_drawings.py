"""Pictures of what a detector found: beside the truth, and its mistakes one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxvision.metrics.boxes import field_of
from jaxvision.metrics.coco import masks_of
from jaxvision.report.label_maps import draw_panels
from jaxvision.report.overlay import draw_objects


def draw_truth_and_found(
    image: UInt8[np.ndarray, "h w c"],
    target: Any,
    prediction: Mapping[str, Any],
    class_names: Sequence[str],
    score_threshold: int | float = 0.5,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture with its objects, beside the same with what was found in it.

    Target and prediction are as `jaxvision.metrics.boxes` says, and may have `masks`, bool
    [n, h, w] or run lengths, and `keypoints`, [m, p, 3] and [n, p, 2]. Difficult objects are
    dashed; detections below `score_threshold` are left out.
    """
    difficult = field_of(target, "difficult")
    if difficult is not None:
        difficult = np.asarray(difficult, bool)
    truth = draw_objects(
        image,
        _boxes(target),
        _labels(target),
        class_names,
        masks=masks_of(target),
        keypoints=_seen(field_of(target, "keypoints")),
        dashed=difficult,
        remarks=None if difficult is None else ["difficult" if d else "" for d in difficult],
    )
    scores = np.asarray(prediction["scores"])
    shown = np.flatnonzero(scores >= score_threshold)
    masks, keypoints = masks_of(prediction), field_of(prediction, "keypoints")
    found = draw_objects(
        image,
        _boxes(prediction)[shown],
        _labels(prediction)[shown],
        class_names,
        scores=scores[shown],
        masks=None if masks is None else masks[shown],
        keypoints=None if keypoints is None else np.asarray(keypoints)[shown],
    )
    return draw_panels({"ground truth": truth, "found": found})


def _seen(keypoints: Any) -> np.ndarray | None:
    """Returns (x, y) of each keypoint, NaN where there is none."""
    if keypoints is None:
        return None
    points = np.asarray(keypoints)
    return np.where(points[..., 2:] > 0, points[..., :2], np.nan)


def draw_mistake(
    image: UInt8[np.ndarray, "h w c"],
    target: Any,
    object_index: int,
    prediction: Mapping[str, Any],
    detection_index: int,
    class_names: Sequence[str],
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture with one detection, and dashed the object it was compared with.

    `object_index` -1, as `ErrorBreakdown` has it for the background, draws the detection alone.
    """
    boxes, labels = _boxes(prediction)[[detection_index]], _labels(prediction)[[detection_index]]
    score = float(np.asarray(prediction["scores"])[detection_index])
    remarks, dashed = [f"{100 * score:.0f} %"], [False]
    if object_index >= 0:
        boxes = np.concatenate([_boxes(target)[[object_index]], boxes])
        labels = np.concatenate([_labels(target)[[object_index]], labels])
        remarks, dashed = ["(truth)", *remarks], [True, False]
    return draw_objects(image, boxes, labels, class_names, remarks=remarks, dashed=np.array(dashed))


def draw_missed(
    image: UInt8[np.ndarray, "h w c"], target: Any, object_index: int, class_names: Sequence[str]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the picture with one object, dashed."""
    chosen = [object_index]
    return draw_objects(
        image,
        _boxes(target)[chosen],
        _labels(target)[chosen],
        class_names,
        dashed=np.array([True]),
    )


def _boxes(source: Any) -> np.ndarray:
    return np.asarray(field_of(source, "boxes"), np.float64).reshape(-1, 4)


def _labels(source: Any) -> np.ndarray:
    return np.asarray(field_of(source, "labels"), np.int64)
