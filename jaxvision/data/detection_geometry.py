"""Moving a picture with its objects: flips, and placing it on a canvas, with boxes and masks.

Nothing here is random. Every move but the flip is one `Placement`: a picture is resized, and lies
at an offset on a canvas; where it sticks out it is cut. That covers crops, padding, letterboxes and
their inverse. Boxes are (x1, y1, x2, y2) in pixels, sizes (height, width), offsets (top, left).
An example that carries `proposals`, boxes of no object, has them moved and clipped as well; those
of which nothing is left go. Keypoints (see `keypoints`) that leave the picture are not there any
more.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8

from jaxvision.data.geometry import resize
from jaxvision.data.transforms import Box, Example

Fill = int | tuple[int, int, int]
"""The colour beside the picture: a grey level, or red, green and blue."""

GREY = 114
PER_OBJECT = ("boxes", "labels", "difficult", "masks", "keypoints")


@dataclass(frozen=True)
class Placement:
    """A picture of size `original`, resized to `resized`, at `offset` on a `canvas`.

    A negative offset cuts off what is above or left of the canvas. Boxes scale by what the sides
    really grew by, whole pixels included, so the two directions are each other's inverse.

    >>> placement = letterbox_placement(50, 100, (200, 200))
    >>> placement.to_canvas(np.array([[0, 0, 100, 50]], np.float32)).tolist()
    [[0.0, 50.0, 200.0, 150.0]]
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]
    offset: tuple[int, int] = (0, 0)

    @property
    def scale(self) -> tuple[float, float]:
        """By what the height and the width grow."""
        return self.resized[0] / self.original[0], self.resized[1] / self.original[1]

    def to_canvas(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """The boxes of the original picture where they are on the canvas; nothing is clipped."""
        scale_y, scale_x = self.scale
        top, left = self.offset
        scales = np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        return boxes * scales + np.array([left, top, left, top], np.float32)

    def points_to_canvas(self, points: Float32[np.ndarray, "*n 2"]) -> Float32[np.ndarray, "*n 2"]:
        """Points (x, y) of the original picture where they are on the canvas."""
        scale_y, scale_x = self.scale
        top, left = self.offset
        return points * np.array([scale_x, scale_y], np.float32) + np.array([left, top], np.float32)

    def to_original(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """Boxes on the canvas, such as predictions, in pixels of the original, clipped to it."""
        corners = self.points_to_original(boxes.reshape(-1, 2))
        return clip(corners.reshape(-1, 4), *self.original)

    def points_to_original(
        self, points: Float32[np.ndarray, "*n 2"]
    ) -> Float32[np.ndarray, "*n 2"]:
        """Points (x, y) on the canvas, in pixels of the original; nothing is clipped."""
        scale_y, scale_x = self.scale
        top, left = self.offset
        scales = np.array([scale_x, scale_y], np.float32)
        return (points - np.array([left, top], np.float32)) / scales


@dataclass(frozen=True)
class Keep:
    """Which objects stay after a cut; one without area, or with an empty mask, never does.

    `min_size` is the least width and height, in pixels of the result, `min_visible` the least share
    of a box's area that must still be in the picture, from 0 to 1. `centers` asks for the box's
    centre to be in the picture. `boxes_from_masks` draws each box tightly around what is left of
    its mask.
    """

    min_size: float = 0.0
    min_visible: float = 0.0
    centers: bool = False
    boxes_from_masks: bool = False

    def __post_init__(self) -> None:
        if not (self.min_size >= 0 and 0 <= self.min_visible <= 1):
            raise ValueError(
                "expected min_size of at least 0 and min_visible from 0 to 1, got "
                f"{self.min_size} and {self.min_visible}"
            )


ALL = Keep()


def place(
    example: Example,
    placement: Placement,
    *,
    fill: Fill = GREY,
    antialias: bool = False,
    keep: Keep = ALL,
) -> Example:
    """The example with its picture, boxes and masks on the canvas, and without what is cut away.

    The picture is resized bilinearly: without `antialias` by OpenCV, which is what torchvision's
    detection models do to tensors, to a grey level; with it by Pillow, bit-equal to torchvision on
    Pillow's pictures. Masks take the nearest pixel, and False beside the picture.
    """
    moved = {
        **example,
        "image": place_image(example["image"], placement, fill=fill, antialias=antialias),
        "boxes": placement.to_canvas(example["boxes"]),
    }
    if "proposals" in example:
        moved["proposals"] = placement.to_canvas(example["proposals"])
    if "keypoints" in example:
        moved["keypoints"] = move_keypoints(example["keypoints"], placement)
    if "masks" in example:
        masks = resize_masks(example["masks"], placement.resized)
        moved["masks"] = _on_canvas(masks.transpose(1, 2, 0), placement, False).transpose(2, 0, 1)
    return cut(moved, keep)


def place_image(
    image: UInt8[np.ndarray, "h w c"],
    placement: Placement,
    *,
    fill: Fill = GREY,
    antialias: bool = False,
) -> UInt8[np.ndarray, "h2 w2 c"]:
    """The picture alone: see `place`."""
    resized = resize(image, placement.resized, antialias=antialias)
    return _on_canvas(resized, placement, fill)


def cut(example: Example, keep: Keep) -> Example:
    """Clips the boxes to the picture and leaves out the objects that `keep` does not want."""
    height, width = example["image"].shape[:2]
    boxes = example["boxes"]
    clipped = clip(boxes, height, width)
    stays = np.ones(len(boxes), bool)
    if keep.min_visible > 0:
        # At least that share, but for the rounding of a box that is wholly visible.
        stays &= areas(clipped) >= (keep.min_visible - 1e-6) * areas(boxes)
    if keep.centers:
        stays &= centers_within(boxes, (0, 0, height, width))
    if "masks" in example:
        stays &= example["masks"].any(axis=(1, 2))
        if keep.boxes_from_masks:
            clipped = masks_to_boxes(example["masks"])
    if "keypoints" in example:
        example = {**example, "keypoints": inside(example["keypoints"], height, width)}
    sides = clipped[:, 2:] - clipped[:, :2]
    stays &= (sides > 0).all(axis=1) & (sides >= keep.min_size).all(axis=1)
    clipped_example = {**example, "boxes": clipped}
    if "proposals" in example:
        proposals = clip(example["proposals"], height, width)
        clipped_example["proposals"] = proposals[(proposals[:, 2:] > proposals[:, :2]).all(axis=1)]
    return select(clipped_example, stays)


def select(example: Example, stays: Bool[np.ndarray, "m"]) -> Example:
    """The example with those objects alone."""
    if stays.all():
        return example
    return {**example, **{name: example[name][stays] for name in PER_OBJECT if name in example}}


def flip(example: Example, *, horizontal: bool = False, vertical: bool = False) -> Example:
    """Mirrors left to right, or top to bottom, or both.

    >>> example = {"image": np.zeros((4, 10, 3), np.uint8)}
    >>> example["boxes"] = np.array([[1, 0, 4, 2]], np.float32)
    >>> flip(example, horizontal=True)["boxes"].tolist()
    [[6.0, 0.0, 9.0, 2.0]]
    """
    if not (horizontal or vertical):
        return example
    import cv2

    code = -1 if horizontal and vertical else int(horizontal)
    image = example["image"]
    height, width = image.shape[:2]
    flipped = {**example, "image": cv2.flip(image, code).reshape(image.shape)}
    for name in ("boxes", "proposals"):
        if name in example:
            x1, y1, x2, y2 = example[name].T
            if horizontal:
                x1, x2 = width - x2, width - x1
            if vertical:
                y1, y2 = height - y2, height - y1
            flipped[name] = np.stack([x1, y1, x2, y2], axis=1)
    if "keypoints" in example:
        if vertical:
            raise ValueError("keypoints are mirrored from left to right only: vertical=0")
        points = example["keypoints"][:, example["keypoint_mirror"]]
        there = points[..., 2:] > 0
        mirrored = np.concatenate([width - points[..., :1], points[..., 1:]], axis=-1)
        flipped["keypoints"] = np.where(there, mirrored, np.float32(0))
    if "masks" in example:
        rows, columns = slice(None, None, -1 if vertical else 1), slice(None, None, -1)
        flipped["masks"] = example["masks"][:, rows, columns if horizontal else slice(None)]
    return flipped


def mirrored_names(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint the number of the one whose place it takes in a mirror image.

    What has "left" in its name is what has "right" there, as in COCO's names; all others stay.

    >>> mirrored_names(["nose", "left_eye", "right_eye"])
    (0, 2, 1)
    """
    other = {"left": "right", "right": "left"}
    mirrored = [re.sub("left|right", lambda side: other[side[0]], name) for name in names]
    return tuple(
        names.index(there) if there in names else here for here, there in enumerate(mirrored)
    )


def move_keypoints(
    keypoints: Float32[np.ndarray, "*m 3"], placement: Placement
) -> Float32[np.ndarray, "*m 3"]:
    """The keypoints on the canvas; those that are not there stay at 0."""
    there = keypoints[..., 2:] > 0
    xy = np.where(there, placement.points_to_canvas(keypoints[..., :2]), np.float32(0))
    return np.concatenate([xy, keypoints[..., 2:]], axis=-1)


def inside(
    keypoints: Float32[np.ndarray, "*m 3"], height: int, width: int
) -> Float32[np.ndarray, "*m 3"]:
    """The keypoints, zeros where they are out of the picture."""
    x, y = keypoints[..., :1], keypoints[..., 1:2]
    there = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    return np.where(there, keypoints, np.float32(0))


def letterbox_placement(
    height: int, width: int, size: tuple[int, int], *, center: bool = True
) -> Placement:
    """As large as fits into `size` with the aspect kept, in its middle, or at its top left.

    Sides are rounded to whole pixels, at least 1; an odd rest is larger at the bottom and right.
    """
    scale = min(size[0] / height, size[1] / width)
    resized = _sides(height, width, scale, round)
    offset = ((size[0] - resized[0]) // 2, (size[1] - resized[1]) // 2) if center else (0, 0)
    return Placement((height, width), resized, size, offset)


def shortest_side_placement(
    height: int, width: int, shortest: int, longest: int | None = None
) -> Placement:
    """The shorter side becomes `shortest`, or less, so that the longer one stays within `longest`.

    Both sides are rounded down after the multiplication, as torchvision's detection models do; so
    the shorter one may be a pixel less, by the rounding of the scale.

    >>> shortest_side_placement(375, 500, 800, 1333).canvas
    (800, 1066)
    """
    scale = shortest / min(height, width)
    if longest is not None:
        scale = min(scale, longest / max(height, width))
    resized = _sides(height, width, scale, math.floor)
    return Placement((height, width), resized, resized)


def _sides(
    height: int, width: int, scale: float, rounding: Callable[[float], int]
) -> tuple[int, int]:
    return max(1, rounding(height * scale)), max(1, rounding(width * scale))


def clip(boxes: Float32[np.ndarray, "n 4"], height: int, width: int) -> Float32[np.ndarray, "n 4"]:
    """The boxes, with what is outside of the picture cut off; one outside gets no area."""
    most = np.array([width, height, width, height], np.float32)
    return np.minimum(np.maximum(boxes, np.float32(0)), most)


def areas(boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n"]:
    """Width times height; 0 for a box whose sides are negative."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(0))
    return sides[:, 0] * sides[:, 1]


def centers_within(boxes: Float32[np.ndarray, "n 4"], region: Box) -> Bool[np.ndarray, "n"]:
    """Whether each box's centre is inside (top, left, height, width), its border left out."""
    top, left, height, width = region
    x, y = (boxes[:, :2] + boxes[:, 2:]).T / 2
    return (left < x) & (x < left + width) & (top < y) & (y < top + height)


def masks_to_boxes(masks: Bool[np.ndarray, "m h w"]) -> Float32[np.ndarray, "m 4"]:
    """The smallest box around each mask's pixels, between pixels; zeros around none.

    >>> masks_to_boxes(np.eye(3, 4, dtype=bool)[None]).tolist()
    [[0.0, 0.0, 3.0, 3.0]]
    """
    height, width = masks.shape[1:]
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    ends = [columns.argmax(1), rows.argmax(1)]
    ends += [width - columns[:, ::-1].argmax(1), height - rows[:, ::-1].argmax(1)]
    return np.where(rows.any(axis=1)[:, None], np.stack(ends, axis=1), 0).astype(np.float32)


def resize_masks(
    masks: Bool[np.ndarray, "m h w"], size: tuple[int, int]
) -> Bool[np.ndarray, "m h2 w2"]:
    """Each pixel of the result takes the one at its place, rounded down, as torch's "nearest"."""
    height, width = masks.shape[1:]
    if (height, width) == size:
        return masks
    rows = np.arange(size[0]) * height // size[0]
    columns = np.arange(size[1]) * width // size[1]
    return masks[:, rows][:, :, columns]


def _on_canvas(
    pixels: Shaped[np.ndarray, "h w c"], placement: Placement, fill: Fill | bool
) -> Shaped[np.ndarray, "h2 w2 c"]:
    if placement.canvas == placement.resized and placement.offset == (0, 0):
        return pixels
    here, there = [], []
    for length, side, offset in zip(
        placement.resized, placement.canvas, placement.offset, strict=True
    ):
        first, last = max(0, offset), min(side, offset + length)
        last = max(first, last)  # nothing of it is on the canvas
        there.append(slice(first, last))
        here.append(slice(first - offset, last - offset))
    inside = pixels[tuple(here)]
    if inside.shape[:2] == placement.canvas:
        return np.ascontiguousarray(inside)
    canvas = np.empty((*placement.canvas, pixels.shape[2]), pixels.dtype)
    canvas[:] = fill
    canvas[tuple(there)] = inside
    return canvas
