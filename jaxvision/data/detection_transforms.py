"""Augmentation for detection: picture, boxes, labels, difficult flags and masks change together.

A transform is a function `(example, rng) -> example` of examples as `DetectionDataset.example`
gives them. Here the parameters are drawn; `detection_geometry` has the deterministic part. Colours
are changed by the transforms of `color`, which `compose` takes as well: those of `transforms` that
move the picture refuse an example with boxes. A scene may be left without objects, or have none
from the start; everything here takes that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from jaxvision.data.detection_geometry import (
    GREY,
    Fill,
    Keep,
    Placement,
    areas,
    centers_within,
    flip,
    letterbox_placement,
    place,
    select,
    shortest_side_placement,
)
from jaxvision.data.transforms import (
    IMAGENET_MEAN_COLOR,
    Box,
    Example,
    ExampleTransform,
    check_probability,
    same_size,
)

AFTER_CUT = Keep(min_size=1.0, min_visible=0.1)
"""What random cuts leave by default: no slivers of objects that nobody could name."""

IOU_OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
TRIES, ROUNDS = 40, 50


def random_flip(horizontal: float = 0.5, vertical: float = 0.0) -> ExampleTransform:
    """Mirrors left to right, and top to bottom, each with its probability.

    >>> transform = random_flip(vertical=0.5)
    """
    check_probability(horizontal)
    check_probability(vertical)

    def apply(example: Example, rng: np.random.Generator) -> Example:
        across, down = rng.random(2).tolist()
        return flip(example, horizontal=across < horizontal, vertical=down < vertical)

    return ExampleTransform(apply, same_size)


@dataclass(frozen=True)
class PlacementTransform:
    """Resizes and pads without chance: `placement(height, width)` says where a picture lies.

    For evaluation too: `placement(height, width).to_original(boxes)` takes predictions back.
    """

    placement: Callable[[int, int], Placement]
    fill: Fill = GREY
    antialias: bool = False

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of the canvas for a picture of this (height, width)."""
        return self.placement(*size).canvas

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        placement = self.placement(*example["image"].shape[:2])
        return place(example, placement, fill=self.fill, antialias=self.antialias)


def letterbox(
    size: tuple[int, int], *, fill: Fill = GREY, center: bool = True, antialias: bool = False
) -> PlacementTransform:
    """As large as fits into (height, width), aspect kept, `fill` beside it: see
    `letterbox_placement`.

    >>> transform = letterbox((416, 416))
    >>> predicted = np.array([[0, 52, 416, 364]], np.float32)
    >>> transform.placement(375, 500).to_original(predicted).tolist()
    [[0.0, 0.0, 500.0, 375.0]]
    """
    _check_size(size)
    return PlacementTransform(
        lambda height, width: letterbox_placement(height, width, size, center=center),
        fill,
        antialias,
    )


def resize_shortest_side(
    shortest: int = 800, longest: int | None = 1333, *, antialias: bool = False
) -> PlacementTransform:
    """What torchvision's detection models do first: see `shortest_side_placement`.

    They resize normalised floats, bilinearly without antialias. Here it is bytes, so values are
    rounded to a grey level.
    """
    if shortest < 1 or (longest is not None and longest < shortest):
        raise ValueError(f"expected 1 <= shortest <= longest, got {shortest} and {longest}")
    return PlacementTransform(
        lambda height, width: shortest_side_placement(height, width, shortest, longest),
        antialias=antialias,
    )


def resize_to(size: tuple[int, int], *, antialias: bool = False) -> PlacementTransform:
    """Resizes to (height, width), whatever the aspect was."""
    _check_size(size)
    return PlacementTransform(
        lambda height, width: Placement((height, width), size, size), antialias=antialias
    )


def pad_to_multiple(multiple: int = 32, *, fill: Fill = IMAGENET_MEAN_COLOR) -> PlacementTransform:
    """Pads right and bottom, to sides that are multiples of a network's stride.

    `DetectionBatches` pads to its buckets itself, and then knows the picture's size in the padding.
    """
    if multiple < 1:
        raise ValueError(f"expected a multiple of at least 1, got {multiple}")

    def placement(height: int, width: int) -> Placement:
        canvas = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        return Placement((height, width), (height, width), canvas)

    return PlacementTransform(placement, fill)


def scale_jitter(
    size: tuple[int, int],
    scale: tuple[float, float] = (0.1, 2.0),
    *,
    spread: bool = False,
    fill: Fill = GREY,
    antialias: bool = False,
    keep: Keep = AFTER_CUT,
) -> ExampleTransform:
    """Large-scale jittering (arXiv:2012.07177, section 3): a random scale, then a crop or padding.

    Scale 1 is what just fits into `size` (height, width), which is the size of the result. What is
    larger is cut at a random place; what is smaller is padded at the right and the bottom, or, with
    `spread`, lies at a random place. (0.8, 1.25) is the paper's standard jitter.

    >>> transform = scale_jitter((128, 128), (0.5, 1.5))
    """
    _check_size(size)
    _check_range("scale", scale)

    def apply(example: Example, rng: np.random.Generator) -> Example:
        height, width = example["image"].shape[:2]
        placement = jittered(height, width, size, rng, scale=scale, spread=spread)
        return place(example, placement, fill=fill, antialias=antialias, keep=keep)

    return ExampleTransform(apply, lambda before: size)


def jittered(
    height: int,
    width: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    spread: bool,
) -> Placement:
    """Draws the placement of `scale_jitter`: the scale, then the place down and across."""
    grow = min(size[0] / height, size[1] / width) * rng.uniform(*scale)
    resized = max(1, int(height * grow)), max(1, int(width * grow))
    offset = []
    for side, length, place_drawn in zip(size, resized, rng.random(2), strict=True):
        room = side - length
        if room < 0:
            offset.append(-int(place_drawn * (1 - room)))
        else:
            offset.append(int(place_drawn * (1 + room)) if spread else 0)
    return Placement((height, width), resized, size, (offset[0], offset[1]))


def random_zoom_out(
    sides: tuple[float, float] = (1.0, 4.0),
    *,
    p: float = 0.5,
    fill: Fill = IMAGENET_MEAN_COLOR,
) -> ExampleTransform:
    """Puts the picture at a random place of a canvas whose sides are longer by a random factor,
    with probability `p`: SSD's way to small objects, as torchvision's RandomZoomOut."""
    check_probability(p)
    _check_range("sides", sides, least=1.0)

    def apply(example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= p:
            return example
        placement = zoomed_out(*example["image"].shape[:2], rng, sides=sides)
        return place(example, placement, fill=fill)

    return ExampleTransform(apply, same_size if p == 0 else None)


def zoomed_out(
    height: int, width: int, rng: np.random.Generator, *, sides: tuple[float, float]
) -> Placement:
    """Draws the placement of `random_zoom_out`: the factor, then the place across and down."""
    factor = rng.uniform(*sides)
    canvas = int(height * factor), int(width * factor)
    across, down = rng.random(2)
    offset = int((canvas[0] - height) * down), int((canvas[1] - width) * across)
    return Placement((height, width), (height, width), canvas, offset)


def random_iou_crop(
    *,
    p: float = 1.0,
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (0.5, 2.0),
    options: tuple[float, ...] = IOU_OPTIONS,
    allow_empty: bool = False,
    keep: Keep = AFTER_CUT,
) -> ExampleTransform:
    """SSD's crop (arXiv:1512.02325, section 2.2): see `iou_crop_box`, with probability `p`.

    Objects whose centre is outside of the crop go, and those that `keep` does not want.
    """
    check_probability(p)
    _check_range("scale", scale, most=1.0)
    _check_range("ratio", ratio)

    def apply(example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= p:
            return example
        height, width = example["image"].shape[:2]
        box = iou_crop_box(
            height,
            width,
            example["boxes"],
            rng,
            scale=scale,
            ratio=ratio,
            options=options,
            allow_empty=allow_empty,
        )
        return example if box is None else crop(example, box, keep=keep)

    return ExampleTransform(apply)


def crop(example: Example, box: Box, *, keep: Keep = AFTER_CUT) -> Example:
    """Cuts out (top, left, height, width); objects whose centre is outside of it go as well."""
    top, left, *canvas = box
    size = example["image"].shape[:2]
    example = select(example, centers_within(example["boxes"], box))
    placement = Placement(size, size, (canvas[0], canvas[1]), (-top, -left))
    return place(example, placement, keep=keep)


def iou_crop_box(
    height: int,
    width: int,
    boxes: Float32[np.ndarray, "m 4"],
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.3, 1.0),
    ratio: tuple[float, float] = (0.5, 2.0),
    options: tuple[float, ...] = IOU_OPTIONS,
    allow_empty: bool = False,
) -> Box | None:
    """Draws (top, left, height, width), or None: leave the picture as it is.

    One of `options` is drawn: 1 or more means None; otherwise it is the IoU that the crop must have
    with at least one box whose centre it holds. Sides are a share `scale` of the picture's, of an
    aspect (width / height) within `ratio`. After 40 crops that do not fit another option is drawn.
    A picture without boxes is cropped anywhere; one with boxes loses them all only if `allow_empty`
    and the option is 0.
    """
    for _ in range(ROUNDS):
        least = options[rng.integers(len(options))]
        if least >= 1:
            return None
        for _ in range(TRIES):
            across, down = scale[0] + (scale[1] - scale[0]) * rng.random(2)
            w, h = int(width * across), int(height * down)
            if not (w and h and ratio[0] <= w / h <= ratio[1]):
                continue
            across, down = rng.random(2)
            box = int((height - h) * down), int((width - w) * across), h, w
            if not len(boxes) or (allow_empty and least == 0):
                return box
            inside = centers_within(boxes, box)
            if inside.any() and _ious(boxes[inside], box).max() >= least:
                return box
    return None  # no crop fits this picture, and no option leaves it as it is


def drop_difficult() -> ExampleTransform:
    """Leaves out the objects marked as difficult, as training on VOC usually does."""
    return ExampleTransform(
        lambda example, rng: select(example, ~example["difficult"]), output_size=same_size
    )


def _ious(boxes: Float32[np.ndarray, "n 4"], region: Box) -> Float32[np.ndarray, "n"]:
    top, left, height, width = region
    corners = np.array([left, top, left + width, top + height], np.float32)
    shared = np.concatenate(
        [np.maximum(boxes[:, :2], corners[:2]), np.minimum(boxes[:, 2:], corners[2:])], axis=1
    )
    common = areas(shared)
    return common / (areas(boxes) + np.float32(height * width) - common)


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise ValueError(f"expected a (height, width) of at least 1 pixel each, got {size}")


def _check_range(
    name: str, given: tuple[float, float], *, least: float = 0.0, most: float = np.inf
) -> None:
    low, high = given
    if not (least <= low <= high <= most and high > 0 and low > 0):
        bounds = f"above {least:g}" if least == 0 else f"from {least:g}"
        bounds += "" if most == np.inf else f" up to {most:g}"
        raise ValueError(f"expected a range of {name} {bounds}, lower bound first, got {given}")
