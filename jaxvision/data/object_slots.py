"""Objects in the slots of a batch: as many of them as there is room for, and zeros behind them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from jaxvision.data.detection_geometry import areas, select


def keep_largest(example: Mapping[str, Any], most: int) -> Mapping[str, Any]:
    """The example with its `most` largest boxes, by area, in their order; of equals the first."""
    boxes = example["boxes"]
    if not len(boxes) == len(example["labels"]) == len(example["difficult"]):
        raise ValueError(
            f"expected as many of each from a transform, got {len(boxes)} boxes, "
            f"{len(example['labels'])} labels and {len(example['difficult'])} difficult flags"
        )
    if len(boxes) <= most:
        return example
    stays = np.zeros(len(boxes), bool)
    stays[np.argsort(-areas(boxes), kind="stable")[:most]] = True
    return select(example, stays)


def pad_objects(examples: Sequence[Mapping[str, Any]], slots: int) -> dict[str, np.ndarray]:
    """The arrays of a batch that describe objects, with zeros after the last one; no masks.

    >>> scene = {"boxes": np.ones((1, 4), np.float32), "labels": [7], "difficult": [False]}
    >>> batch = pad_objects([scene], slots=2)
    >>> batch["labels"].tolist(), batch["box_valid"].tolist()
    ([[7, 0]], [[True, False]])
    """
    shape = len(examples), slots
    boxes, labels = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int32)
    difficult, box_valid = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, example in enumerate(examples):
        count = len(example["boxes"])
        boxes[row, :count] = example["boxes"]
        labels[row, :count] = example["labels"]
        difficult[row, :count] = example["difficult"]
        box_valid[row, :count] = True
    return {"boxes": boxes, "labels": labels, "box_valid": box_valid, "difficult": difficult}


def pad_keypoints(
    examples: Sequence[Mapping[str, Any]], slots: int, count: int
) -> Float32[np.ndarray, "b m p 3"]:
    """The `count` keypoints of each object, with zeros after the last object."""
    keypoints = np.zeros((len(examples), slots, count, 3), np.float32)
    for row, example in zip(keypoints, examples, strict=True):
        row[: len(example["keypoints"])] = example["keypoints"]
    return keypoints
