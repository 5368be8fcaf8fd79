"""Mosaic: four scenes in one, so that a batch shows more objects at more scales (arXiv:2004.10934).

A mix is a function `(example, pick, rng) -> example`, where `pick()` gives another example of the
data set, drawn by the same `rng`. `DetectionBatches` mixes before it augments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxvision.data.detection_geometry import GREY, PER_OBJECT, Fill, Keep, Placement, place
from jaxvision.data.detection_transforms import AFTER_CUT
from jaxvision.data.transforms import Example, check_probability

Pick = Callable[[], Example]


@dataclass(frozen=True)
class Mix:
    """Makes one example of up to `examples`, and so of up to that many times the objects."""

    apply: Callable[[Example, Pick, np.random.Generator], Example]
    examples: int

    def __call__(self, example: Example, pick: Pick, rng: np.random.Generator) -> Example:
        return self.apply(example, pick, rng)


def mosaic(
    size: tuple[int, int],
    *,
    p: float = 1.0,
    scale: tuple[float, float] = (0.5, 1.5),
    center: tuple[float, float] = (0.25, 0.75),
    fill: Fill = GREY,
    antialias: bool = False,
    keep: Keep = AFTER_CUT,
) -> Mix:
    """Joins the example and three others at a random point of a canvas, with probability `p`.

    The point is at a share within `center` of the canvas `size` (height, width), down and across.
    Each picture fills the quarter beside it, from that point outwards, at a scale of its own: 1 is
    what just fits into the whole canvas. What sticks out is cut, the rest is `fill`.

    An example that is not mixed keeps its size; so where `p` is below 1 the transform that follows
    must bring pictures to one size, such as `letterbox(size)`, which leaves a mosaic as it is.

    >>> mix = mosaic((128, 128), p=0.5)
    """
    check_probability(p)
    if min(size) < 2 or not 0 < scale[0] <= scale[1] or not 0 < center[0] <= center[1] < 1:
        raise ValueError(
            "expected a size of at least 2 x 2, a scale above 0 and a center within 0 and 1, "
            f"lower bound first, got {size}, {scale} and {center}"
        )

    def apply(example: Example, pick: Pick, rng: np.random.Generator) -> Example:
        if rng.random() >= p:
            return example
        down, across = rng.uniform(*center, 2)
        scales = rng.uniform(*scale, 4).tolist()
        point = (
            min(max(round(size[0] * down), 1), size[0] - 1),
            min(max(round(size[1] * across), 1), size[1] - 1),
        )
        examples = [example, *(pick() for _ in range(3))]
        return joined(examples, size, point, scales, fill=fill, antialias=antialias, keep=keep)

    return Mix(apply, examples=4)


def joined(
    examples: Sequence[Example],
    size: tuple[int, int],
    point: tuple[int, int],
    scales: Sequence[float],
    *,
    fill: Fill = GREY,
    antialias: bool = False,
    keep: Keep = AFTER_CUT,
) -> Example:
    """The four examples around `point` (down, across): top left, top right, bottom left, right.

    Everything that is not about objects, such as the picture's number, is the first one's.
    """
    image = np.empty((*size, 3), np.uint8)
    parts = []
    for i, (example, scale) in enumerate(zip(examples, scales, strict=True)):
        below, right = divmod(i, 2)
        top, left = below * point[0], right * point[1]
        quarter = (
            size[0] - point[0] if below else point[0],
            size[1] - point[1] if right else point[1],
        )
        height, width = example["image"].shape[:2]
        grow = min(size[0] / height, size[1] / width) * scale
        resized = max(1, int(height * grow)), max(1, int(width * grow))
        offset = 0 if below else quarter[0] - resized[0], 0 if right else quarter[1] - resized[1]
        placement = Placement((height, width), resized, quarter, offset)
        part = place(example, placement, fill=fill, antialias=antialias, keep=keep)
        region = slice(top, top + quarter[0]), slice(left, left + quarter[1])
        image[region] = part["image"]
        part["boxes"] = part["boxes"] + np.array([left, top, left, top], np.float32)
        if "keypoints" in part:
            there = part["keypoints"][..., 2:] > 0
            shift = np.array([left, top, 0], np.float32)
            part["keypoints"] = part["keypoints"] + np.where(there, shift, np.float32(0))
        if "masks" in part:
            masks = np.zeros((len(part["masks"]), *size), bool)
            masks[:, region[0], region[1]] = part["masks"]
            part["masks"] = masks
        parts.append(part)
    objects = {
        name: np.concatenate([part[name] for part in parts])
        for name in PER_OBJECT
        if name in examples[0]
    }
    return {**examples[0], "image": image, **objects}
