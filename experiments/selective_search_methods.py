"""What is compared: OpenCV's Selective Search (opencv-contrib), and single strategies of ours.

They are functions of a module of their own because other processes call them.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from jaxvision.data.selective_search import (
    BLUR,
    REFERENCE_AREA,
    Strategy,
    in_color_space,
    rank_boxes,
    region_hierarchies,
    selective_search,
    strategies_of,
)

Search = Callable[[np.ndarray], np.ndarray]
_PARTS = cv2.ximgproc.segmentation
_KINDS = {
    "C": _PARTS.createSelectiveSearchSegmentationStrategyColor,
    "T": _PARTS.createSelectiveSearchSegmentationStrategyTexture,
    "S": _PARTS.createSelectiveSearchSegmentationStrategySize,
    "F": _PARTS.createSelectiveSearchSegmentationStrategyFill,
}


def as_it_comes(image: np.ndarray, mode: str) -> np.ndarray:
    """The boxes (x1, y1, x2, y2) of OpenCV's own mode.

    Its scales k are 150, 300 and so on for pictures of any size, its smallest region has 100
    pixels, and it groups hue as if it went to 255.
    """
    search = _PARTS.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    switch = {
        "single": search.switchToSingleStrategy,
        "fast": search.switchToSelectiveSearchFast,
        "quality": search.switchToSelectiveSearchQuality,
    }
    switch[mode]()
    return _corners(search.process())


def with_our_settings(image: np.ndarray, mode: str) -> np.ndarray:
    """The boxes of OpenCV's grouping where it is given our colours, scales and similarities."""
    strategies = strategies_of(mode)
    search = _PARTS.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    for space in dict.fromkeys(each.color_space for each in strategies):
        search.addImage(in_color_space(image, space))
    side = (image.shape[0] * image.shape[1] / REFERENCE_AREA) ** 0.5
    for k in dict.fromkeys(each.k for each in strategies):
        smallest = max(round(k * side), 1)
        search.addGraphSegmentation(_PARTS.createGraphSegmentation(BLUR, k * side, smallest))
    for kinds in dict.fromkeys(each.similarities for each in strategies):
        together = _PARTS.createSelectiveSearchSegmentationStrategyMultiple
        search.addStrategy(together(*(_KINDS[kind]() for kind in kinds)))
    return _corners(search.process())


def sides_of(mode: str) -> dict[str, Search]:
    """The three searches of a mode, ours first."""
    return {
        "jaxvision": lambda image: selective_search(image, mode=mode),
        "OpenCV": lambda image: as_it_comes(image, mode),
        "OpenCV, our settings": lambda image: with_our_settings(image, mode),
    }


def time_in_turn(
    sides: Mapping[str, Search], images: Sequence[np.ndarray], repeats: int
) -> dict[str, np.ndarray]:
    """Seconds [images] of each side, the quickest of `repeats`; on each picture, they take turns.

    Seconds of processor time with a single thread, so that it counts little what else the machine
    does.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        taken = np.full((len(sides), len(images), repeats), np.nan)
        for search in sides.values():
            search(images[0])  # what is imported and allocated the first time
        for i, image in enumerate(images):
            for repeat in range(repeats):
                for j, search in enumerate(sides.values()):
                    since = time.process_time()
                    search(image)
                    taken[j, i, repeat] = time.process_time() - since
    finally:
        cv2.setNumThreads(threads)
    return dict(zip(sides, taken.min(axis=2), strict=True))


def each_alone(image: np.ndarray, strategies: Sequence[Strategy]) -> list[np.ndarray]:
    """The ranked boxes of each strategy's own hierarchy."""
    return [rank_boxes([each]) for each in region_hierarchies(image, strategies)]


def _corners(rectangles: np.ndarray) -> np.ndarray:
    boxes = np.asarray(rectangles, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
