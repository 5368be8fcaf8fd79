"""What each task does: the jitted forward pass, and one picture's result of what came out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.errors import UserError
from jaxvision.losses import decode_picture_boxes
from jaxvision.models.detection import DETECTORS, make_detector
from jaxvision.models.equal import hashable, one_for_equal
from jaxvision.models.keypoint_rcnn import KeypointRCNN
from jaxvision.models.proposal_detection import PROPOSAL_DETECTORS, make_proposal_detector
from jaxvision.ops import BoxMasks, normalize_images
from jaxvision.ops.precision import at_least_float32
from jaxvision.predict.preparation import Prepared
from jaxvision.predict.results import (
    Classification,
    Detections,
    Localization,
    Result,
    Segmentation,
)
from jaxvision.types import PaddedInstances, PaddedPoses

Infer = Callable[..., Any]
"""Jitted `(variables, images uint8 [b, h, w, c], sizes int [b, 2]) -> arrays`, each [b, …]; of a
model that is given proposals, these [b, p, 4] and whether they are valid [b, p] come behind."""


Thresholds = Mapping[str, int | float | None]
"""What `selection_of` takes besides the model; nothing but detectors looks at them."""


class Task(NamedTuple):
    """`make_infer(model, meta, thresholds)`, and `to_result` of one row of what it returns."""

    make_infer: Callable[[nn.Module, Mapping[str, Any], Thresholds], Infer]
    to_result: Callable[[Any, Prepared, tuple[int, int], tuple[str, ...]], Result]


def task_of(meta: Mapping[str, Any]) -> str:
    """Returns a checkpoint's task; one that names none is for classification."""
    task = meta.get("task", "classification")
    if task not in TASKS:
        raise UserError(
            f"expected a checkpoint for {', '.join(TASKS)}, got one for {task!r}: it was made by "
            "another version"
        )
    return task


def _normalization(meta: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the mean and the standard deviation of a checkpoint's pictures."""
    return hashable(meta.get("mean", 0.0)), hashable(meta.get("std", 1.0))


def _forward(model: nn.Module, mean: Any, std: Any) -> Callable[[Any, Any], Any]:
    def forward(variables, images):
        return model.apply(variables, normalize_images(images, mean, std), train=False)

    return forward


# ---------------------------------------------------------------------------------- classification
def _classifier(model: nn.Module, meta: Mapping[str, Any], _: Thresholds) -> Infer:
    return _infer_classes(model, *_normalization(meta))


@one_for_equal
def _infer_classes(model: nn.Module, mean: Any, std: Any) -> Infer:
    forward = _forward(model, mean, std)

    def infer(variables, images, sizes):
        return jax.nn.softmax(at_least_float32(forward(variables, images)))

    return jax.jit(infer)


def _classification(
    row: np.ndarray, prepared: Prepared, size: tuple[int, int], class_names: tuple[str, ...]
) -> Classification:
    return Classification(row, class_names)


# ------------------------------------------------------------------------------------ localisation
def _localizer(model: nn.Module, meta: Mapping[str, Any], _: Thresholds) -> Infer:
    return _infer_boxes(model, *_normalization(meta))


@one_for_equal
def _infer_boxes(model: nn.Module, mean: Any, std: Any) -> Infer:
    forward = _forward(model, mean, std)

    @jax.jit
    def infer(variables, images, sizes):
        outputs = forward(variables, images)
        return {
            "probabilities": jax.nn.softmax(at_least_float32(outputs["logits"])),
            "box": decode_picture_boxes(outputs["box_deltas"], images.shape[1:3]),
        }

    return infer


def _localization(
    row: Mapping[str, np.ndarray],
    prepared: Prepared,
    size: tuple[int, int],
    class_names: tuple[str, ...],
) -> Localization:
    box = prepared.placement.to_original(row["box"][None])[0]
    return Localization(row["probabilities"], class_names, box)


# --------------------------------------------------------------------------------------- detection
def _detector(
    model: nn.Module, meta: Mapping[str, Any], thresholds: Thresholds, flip: bool = False
) -> Infer:
    if type(model) not in (*DETECTORS, *PROPOSAL_DETECTORS):
        raise UserError(
            f"the checkpoint's task is detection, but a {type(model).__name__} detects nothing"
        )
    given = type(model) in PROPOSAL_DETECTORS
    if given and "proposals" not in meta:
        raise UserError(
            f"a {type(model).__name__} is given proposals, but the checkpoint does not say which: "
            'expected "proposals" with "mode" and "count" in its meta'
        )
    if flip and (given or type(model) is KeypointRCNN):
        raise UserError(
            f"a {type(model).__name__} cannot look at mirror images: expected a detector that "
            "finds boxes, or boxes and masks, by itself; leave flip out"
        )
    make = make_proposal_detector if given else partial(make_detector, flip=flip)
    return make(
        model,
        mean=meta.get("mean", 0.0),
        std=meta.get("std", 1.0),
        **thresholds,
    )


def _detections(
    row: Any, prepared: Prepared, size: tuple[int, int], class_names: tuple[str, ...]
) -> Detections:
    boxes = prepared.placement.to_original(row.boxes)
    # What lies beside the picture, on the canvas of a letterbox, is nothing in the picture.
    real = row.valid & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    found = Detections(boxes[real], row.scores[real], row.labels[real], class_names, size)
    if isinstance(row, PaddedInstances):
        return replace(found, masks=BoxMasks(row.masks[real], found.boxes, size))
    if isinstance(row, PaddedPoses):
        keypoints = prepared.placement.points_to_original(row.keypoints[real])
        return replace(found, keypoints=keypoints, keypoint_scores=row.keypoint_scores[real])
    return found


# ------------------------------------------------------------------------------------ segmentation
def _segmenter(model: nn.Module, meta: Mapping[str, Any], _: Thresholds) -> Infer:
    dtype = jnp.uint8 if len(meta["class_names"]) <= 256 else jnp.int32
    return _infer_labels(model, *_normalization(meta), dtype)


@one_for_equal
def _infer_labels(model: nn.Module, mean: Any, std: Any, dtype: Any) -> Infer:
    forward = _forward(model, mean, std)

    @jax.jit
    def infer(variables, images, sizes):
        return forward(variables, images)["out"].argmax(axis=-1).astype(dtype)

    return infer


def _segmentation(
    row: np.ndarray, prepared: Prepared, size: tuple[int, int], class_names: tuple[str, ...]
) -> Segmentation:
    (top, left), (h, w) = prepared.placement.offset, prepared.placement.resized
    labels = row[top : top + h, left : left + w]
    # Each pixel of the picture takes the label at its centre's place.
    rows = ((np.arange(size[0]) + 0.5) * h / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * w / size[1]).astype(np.int64)
    return Segmentation(labels[rows][:, columns], class_names)


TASKS: dict[str, Task] = {
    "classification": Task(_classifier, _classification),
    "localization": Task(_localizer, _localization),
    "detection": Task(_detector, _detections),
    "segmentation": Task(_segmenter, _segmentation),
}
