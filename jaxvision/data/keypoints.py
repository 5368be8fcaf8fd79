"""Places of an object that have a name: an eye, an elbow, or what of it is farthest to the left.

Keypoints of m objects are float32 [m, p, 3]: x and y in pixels of the picture, between pixels as
boxes are, and COCO's visibility: 2 where it is seen, 1 where it is hidden and yet known, 0 where it
is neither there nor known, and x and y are 0.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float32
from rich.progress import track

from jaxvision.data.detection import DetectionDataset
from jaxvision.errors import UserError

EXTREME_POINTS = ("left", "top", "right", "bottom")
IN_FILES = ("coco", "coco_json")
"""The data sets whose own files may have keypoints: `load_detection(name, keypoints=True)`."""
MANY = 2000
"""Pictures that take so long that a bar shows how far it is."""


def extreme_points(masks: Bool[np.ndarray, "m h w"]) -> Float32[np.ndarray, "m 4 3"]:
    """The middle of each mask's leftmost, topmost, rightmost and bottommost pixels.

    The four that annotators click on in place of a box's corners (arXiv:1708.02750); an empty mask
    has none.

    >>> mask = np.zeros((1, 4, 5), bool)
    >>> mask[0, 1, 1:4] = mask[0, 2, 2] = True
    >>> extreme_points(mask)[0, :, :2].tolist()
    [[1.5, 1.5], [2.5, 1.5], [3.5, 1.5], [2.5, 2.5]]
    """
    points = np.zeros((len(masks), 4, 3), np.float32)
    for row, mask in zip(points, masks, strict=True):
        ys, xs = np.nonzero(mask)
        if len(xs):
            for i, (along, end) in enumerate(
                ((xs, xs.min()), (ys, ys.min()), (xs, xs.max()), (ys, ys.max()))
            ):
                there = along == end
                row[i] = xs[there].mean() + 0.5, ys[there].mean() + 0.5, 2
    return points


def with_extreme_points(dataset: DetectionDataset) -> DetectionDataset:
    """The data set whose objects have their masks' `extreme_points` as keypoints.

    For data that nobody annotated with keypoints. `UserError` where there are no masks.
    """
    if dataset.masks is None:
        raise UserError(f"{dataset.name} has no masks, whose extreme points could be keypoints")
    numbers: Iterable[int] = range(len(dataset))
    if len(dataset) >= MANY:
        numbers = track(numbers, description=f"extreme points, {dataset.split}", transient=True)
    found = tuple(extreme_points(dataset.example(i, masks=True)["masks"]) for i in numbers)
    return dataclasses.replace(dataset, keypoints=found, keypoint_names=EXTREME_POINTS)
