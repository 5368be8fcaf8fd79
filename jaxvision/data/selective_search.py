"""Selective Search: boxes that may hold an object, of any class, from a picture's regions alone.

J. Uijlings, K. van de Sande, T. Gevers and A. Smeulders, "Selective Search for Object Recognition",
IJCV 2013. A picture is cut into small regions by Felzenszwalb and Huttenlocher's graph segmentation
(IJCV 2004; OpenCV's), and those are grouped by similarity (`jaxvision.data.grouping`). Every region
on the way gives a box. Several colour spaces, segmentations and similarities make up for what each
of them misses: those of the paper's table 5.

OpenCV has a Selective Search too, as quick in these modes. This one is used because it gives the
same boxes in the same order every time (OpenCV's order comes from the C library's `rand`, which
`cv2.setRNGSeed` does not reach), puts large regions first as the paper does where OpenCV's puts
them last, so that the first hundreds of boxes cover more, fits the scales to the picture's size,
and shows the hierarchy. `experiments/selective_search.py` compares the two.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from jaxvision.data.grouping import Hierarchy, bin_pixels, describe_regions, group_regions
from jaxvision.errors import UserError

VERSION = 1
"""Goes up with every change that changes boxes: proposals kept on disk are then computed anew."""
REFERENCE_AREA = 500 * 375
"""Pixels of a picture of VOC, for which the paper chose its scales k."""
BLUR = 0.8
"""The standard deviation, in pixels, of the Gaussian before the graph segmentation."""


class Strategy(NamedTuple):
    """One grouping: a colour space, the scale k of its segmentation, and its similarities."""

    color_space: str
    k: int
    similarities: str


def _every(spaces: Sequence[str], ks: Sequence[int], kinds: Sequence[str]) -> list[Strategy]:
    return [Strategy(*each) for each in product(spaces, ks, kinds)]


MODES: dict[str, list[Strategy]] = {
    "single": _every(["HSV"], [100], ["CTSF"]),
    "fast": _every(["HSV", "Lab"], [50, 100], ["CTSF", "TSF"]),
    "quality": _every(
        ["HSV", "Lab", "rgI", "H", "I"], [50, 100, 150, 300], ["CTSF", "TSF", "F", "S"]
    ),
}
"""The strategies of each mode: 1, 8 and 80 of them."""


def selective_search(
    image: UInt8[np.ndarray, "h w 3"],
    *,
    mode: str = "fast",
    max_boxes: int | None = None,
    seed: int = 0,
) -> Float32[np.ndarray, "n 4"]:
    """Boxes (x1, y1, x2, y2) of a picture that may hold an object, ranked, no two alike.

    The picture is RGB, of any size up to 65,535 a side. `mode` is one of `MODES`: single, fast or
    quality. The same picture, mode and seed give the same boxes, and `max_boxes` takes the first
    ones of them. A picture of one colour has one box: itself.

    >>> picture = np.zeros((32, 48, 3), np.uint8)
    >>> picture[8:24, 4:20] = 255
    >>> [4, 8, 20, 24] in selective_search(picture, mode="single").tolist()
    True
    """
    return rank_boxes(region_hierarchies(image, strategies_of(mode)), seed=seed)[:max_boxes]


def strategies_of(mode: str) -> list[Strategy]:
    """The strategies of a mode: single, fast or quality."""
    if mode not in MODES:
        raise UserError(f"expected a mode of Selective Search ({', '.join(MODES)}), got {mode!r}")
    return MODES[mode]


def region_hierarchies(
    image: UInt8[np.ndarray, "h w 3"], strategies: Sequence[Strategy]
) -> list[Hierarchy]:
    """The hierarchy of regions that each strategy makes of a picture.

    >>> hierarchy = region_hierarchies(picture, MODES["single"])[0]  # doctest: +SKIP
    >>> hierarchy.level(5).shape == picture.shape[:2]  # doctest: +SKIP
    True
    """
    pictures = {each.color_space: in_color_space(image, each.color_space) for each in strategies}
    bins = {space: bin_pixels(picture) for space, picture in pictures.items()}
    starts = {}
    for space, k, _ in strategies:
        if (space, k) not in starts:
            starts[space, k] = describe_regions(segment(pictures[space], k), bins[space])
    regions = [starts[space, k] for space, k, _ in strategies]
    return group_regions(regions, [kinds for _, _, kinds in strategies])


def segment(image: UInt8[np.ndarray, "h w c"], k: int) -> Int32[np.ndarray, "h w"]:
    """Cuts a picture into regions, numbered from 0; the larger `k`, the fewer.

    `k` is meant for a picture of VOC, and shrinks or grows with the sides of this one; it is also
    the smallest region's size in pixels, as in the paper's own programs.
    """
    import cv2

    scale = k * (image.shape[0] * image.shape[1] / REFERENCE_AREA) ** 0.5
    method = cv2.ximgproc.segmentation.createGraphSegmentation(BLUR, scale, max(round(scale), 1))
    return method.processImage(image)


def in_color_space(image: UInt8[np.ndarray, "h w 3"], space: str) -> UInt8[np.ndarray, "h w c"]:
    """An RGB picture in one of the paper's colour spaces, each channel from 0 to 255.

    HSV, Lab, rgI (the shares of red and green, and intensity), H (hue alone) or I (intensity).
    """
    import cv2

    if space == "Lab":
        return cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    if space in ("HSV", "H"):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # FULL: hue up to 255, not 179
        return hsv if space == "HSV" else hsv[..., :1]
    intensity = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    if space == "I":
        return intensity
    if space != "rgI":
        raise ValueError(f"expected HSV, Lab, rgI, H or I, got {space!r}")
    total = np.maximum(image.sum(axis=-1, keepdims=True, dtype=np.float32), 1)
    shares = np.rint(255 * (image[..., :2] / total)).astype(np.uint8)
    return np.concatenate([shares, intensity], axis=-1)


def rank_boxes(hierarchies: Sequence[Hierarchy], *, seed: int = 0) -> Float32[np.ndarray, "n 4"]:
    """All boxes of several hierarchies, ranked as the paper's section 3.3 does, without duplicates.

    A region's place is its position in its hierarchy, counted from 1 at the top, times a random
    number from 0 to 1: so large regions come early, but not all of them first, and a box that
    several hierarchies have comes early too.
    """
    boxes = np.concatenate([each.boxes for each in hierarchies])
    positions = np.concatenate([np.arange(len(each.boxes), 0, -1) for each in hierarchies])
    # Philox's raw words, because NumPy guarantees them from version to version.
    chance = np.random.Philox(seed).random_raw(len(boxes)) * 2.0**-64
    boxes = boxes[np.argsort(chance * positions, kind="stable")].astype(np.uint16)
    _, first = np.unique(boxes.view(np.uint64), return_index=True)
    return boxes[np.sort(first)].astype(np.float32)
