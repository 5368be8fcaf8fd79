"""Pictures of what each step of a detector of the R-CNN family sees and makes."""

from collections.abc import Sequence

import numpy as np
from rcnn_steps import Regions

from jaxvision.metrics.boxes import pairwise_iou
from jaxvision.report.label_maps import draw_panels
from jaxvision.report.overlay import draw_objects, enlarge, picture_scale

SHORTEST = 256
"""Of a drawn picture, in pixels."""


def draw_boxes(image: np.ndarray, boxes: np.ndarray, strength: np.ndarray | None = None):
    """The picture, dimmed, with the outlines of many boxes: the brighter, the higher `strength`."""
    scale = picture_scale(image.shape[:2], SHORTEST)
    canvas = enlarge(image, scale) // 2
    strength = np.ones(len(boxes)) if strength is None else strength
    for i in np.argsort(strength, kind="stable"):
        x1, y1, x2, y2 = np.round(boxes[i] * scale).astype(int)
        color = np.array([255, 120 + 135 * strength[i], 60 * strength[i]]).astype(np.uint8)
        for rows, columns in (
            (slice(y1, y1 + 1), slice(x1, x2)),
            (slice(max(y2 - 1, 0), y2), slice(x1, x2)),
            (slice(y1, y2), slice(x1, x1 + 1)),
            (slice(y1, y2), slice(max(x2 - 1, 0), x2)),
        ):
            canvas[rows, columns] = color
    return canvas


def heat_map(values: np.ndarray, low: float | None = None, high: float | None = None):
    """The values [h, w] as colours, dark for `low` and yellow for `high`, by default their own."""
    from matplotlib import colormaps

    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return (255 * colormaps["inferno"](np.clip(shares, 0, 1))[..., :3]).astype(np.uint8)


def draw_objectness(
    probabilities: Sequence[np.ndarray],
    anchors: Sequence[np.ndarray],
    grids: Sequence[tuple[int, int]],
    image: np.ndarray,
) -> list[np.ndarray]:
    """For each level a row of maps, one for each of its anchors: is there an object of that shape?

    `probabilities` [h * w * a] and `anchors` [h * w * a, 4] are of each level, and `grids` its
    (h, w).
    """
    rows = []
    scale = max(1, picture_scale(image.shape[:2], 2 * SHORTEST // 3))
    for values, boxes, (h, w) in zip(probabilities, anchors, grids, strict=True):
        maps = np.asarray(values).reshape(h, w, -1)
        shapes = np.asarray(boxes).reshape(h, w, -1, 4)[0, 0]
        height, width = (side * scale for side in image.shape[:2])
        row_of, column_of = np.arange(height) * h // height, np.arange(width) * w // width
        panels = {}
        for k, (x1, y1, x2, y2) in enumerate(shapes):
            title = f"{x2 - x1:.0f} x {y2 - y1:.0f}"
            seen = heat_map(maps[row_of][:, column_of, k], 0.0, 1.0)
            panels[title] = (0.35 * enlarge(image, scale) + 0.65 * seen).astype(np.uint8)
        rows.append(draw_panels(panels))
    return rows


def draw_features(crops: Sequence[np.ndarray], features: np.ndarray, titles: Sequence[str]):
    """Each region's picture over the mean of its features [n, s, s, c] across the channels."""
    side, panels = 112, {}
    for i, (crop, title) in enumerate(zip(crops, titles, strict=True)):
        s = features.shape[1]
        seen = heat_map(np.abs(features[i]).mean(axis=-1))
        index = np.arange(side) * s // side
        panels[f"{i + 1}: {title}"] = np.concatenate([_square(crop, side), seen[index][:, index]])
    return draw_panels(panels)


def draw_regression(
    image: np.ndarray, regions: Regions, objects: np.ndarray, class_names: Sequence[str], most: int
) -> np.ndarray:
    """The best regions before (dashed) and after their boxes are moved; of each object one.

    The remark is the IoU with the nearest object.
    """
    chosen = best_regions(regions, most)
    labels = regions.scores[chosen].argmax(axis=1)
    before, after = regions.boxes[chosen], regions.moved[chosen, labels]
    panels = {}
    for title, boxes in (("as proposed", before), ("after regression", after)):
        ious = pairwise_iou(boxes, objects).max(axis=1, initial=0.0)
        panels[title] = draw_objects(
            image,
            boxes,
            labels,
            class_names,
            remarks=[f"IoU {iou:.2f}" for iou in ious],
            dashed=np.full(len(boxes), title == "as proposed"),
            scale=picture_scale(image.shape[:2]),
        )
    return draw_panels(panels)


def draw_suppression(
    image: np.ndarray, before: dict, after: dict, class_names: Sequence[str]
) -> np.ndarray:
    """All boxes that the detector would report, and what non-maximum suppression leaves."""
    panels = {
        f"before NMS, {len(before['scores'])} boxes": draw_boxes(
            image, before["boxes"], before["scores"]
        ),
        f"after NMS, {len(after['scores'])} boxes": draw_objects(
            image,
            after["boxes"],
            after["labels"],
            class_names,
            scores=after["scores"],
            scale=picture_scale(image.shape[:2], SHORTEST),
        ),
    }
    return draw_panels(panels)


def best_regions(regions: Regions, most: int, iou_threshold: float = 0.5) -> np.ndarray:
    """The indices of the regions of the highest scores that do not overlap a better one's much."""
    best = np.where(regions.valid, regions.scores.max(axis=1), -np.inf)
    chosen: list[int] = []
    for i in np.argsort(-best, kind="stable"):
        if len(chosen) == most or not regions.valid[i]:
            break
        taken = regions.boxes[chosen].reshape(-1, 4)
        if pairwise_iou(regions.boxes[i : i + 1], taken).max(initial=0.0) <= iou_threshold:
            chosen.append(int(i))
    return np.array(chosen, np.int64)


def cut_out(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of the picture within the box, at least one pixel of it."""
    h, w = image.shape[:2]
    x1, y1 = np.clip(np.floor(box[:2]), 0, (w - 1, h - 1)).astype(int)
    x2, y2 = np.clip(np.ceil(box[2:]), (x1 + 1, y1 + 1), (w, h)).astype(int)
    return image[y1:y2, x1:x2]


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    rows, columns = (np.arange(side) * length // side for length in picture.shape[:2])
    return picture[rows][:, columns]
