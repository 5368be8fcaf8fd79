"""Pictures of a grouping: its levels in colour, and the boxes that cover the objects best."""

import colorsys
from typing import TYPE_CHECKING

import numpy as np

from jaxvision.data.grouping import Hierarchy
from jaxvision.metrics.boxes import pairwise_iou
from jaxvision.report import theme
from jaxvision.report.overlay import draw_objects, enlarge, picture_scale

if TYPE_CHECKING:
    import matplotlib.figure


def region_colors(hierarchy: Hierarchy) -> np.ndarray:
    """A colour for each region of a hierarchy, uint8 [regions, 3]: parts look like their union.

    The starting regions stand in a row in which the parts of every union are side by side; a
    region's hue is the middle of its share of that row.
    """
    n = len(hierarchy.merges) + 1
    leaves = np.ones(2 * n - 1)
    for step, parts in enumerate(hierarchy.merges):
        leaves[n + step] = leaves[parts].sum()
    start = np.zeros(2 * n - 1)
    for step in range(n - 2, -1, -1):
        first, second = hierarchy.merges[step]
        start[first] = start[n + step]
        start[second] = start[n + step] + leaves[first]
    hues = (start + leaves / 2) / n
    colors = [
        colorsys.hsv_to_rgb(0.9 * hue, (0.55, 0.8)[i % 2], (0.95, 0.75)[i // 2 % 2])
        for i, hue in enumerate(hues)
    ]
    return np.round(255 * np.array(colors)).astype(np.uint8)


def draw_level(hierarchy: Hierarchy, count: int) -> np.ndarray:
    """The picture where `count` regions are left: in their colours, with their boxes in white."""
    level = hierarchy.level(count)
    scale = picture_scale(level.shape, 256)
    drawn = enlarge(region_colors(hierarchy)[level], scale)
    if count > 64:  # more lines than picture
        return drawn
    for x1, y1, x2, y2 in hierarchy.boxes[np.unique(level)] * scale:
        drawn[y1 : y1 + 2, x1:x2] = drawn[y2 - 2 : y2, x1:x2] = 255
        drawn[y1:y2, x1 : x1 + 2] = drawn[y1:y2, x2 - 2 : x2] = 255
    return drawn


def levels_to_draw(hierarchy: Hierarchy) -> list[int]:
    """All regions, and then 64, 32, ... 4 of them, as far as there are so many."""
    n = len(hierarchy.merges) + 1
    return [n, *(count for count in (64, 32, 16, 8, 4) if count < n)]


def draw_best(image: np.ndarray, objects: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The picture with the box that covers each object best, and their IoU in per cent."""
    scale = picture_scale(image.shape[:2], 256)
    if not len(objects) or not len(boxes):
        return enlarge(image, scale)
    ious = pairwise_iou(boxes, objects)
    best = ious.argmax(axis=0)
    which = np.arange(len(objects))
    return draw_objects(
        image,
        boxes[best],
        np.zeros(len(objects), int),
        ["IoU"],
        scores=ious[best, which],
        scale=scale,
    )


def grouping_figure(rows: list[list[tuple[str, np.ndarray]]]) -> "matplotlib.figure.Figure":
    """Draws rows of titled pictures."""
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.9 * columns, 2.15 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for line, row in zip(grid, rows, strict=True):
        for axes, (title, picture) in zip(line, row, strict=False):
            axes.imshow(picture, interpolation="none")
            axes.set_title(title, fontsize=9, color=theme.INK)
    return figure
