"""COCO's average precision and recall, of boxes, masks and keypoints, in memory. On the host.

The evaluation itself is faster-coco-eval's (Apache-2.0), a compiled form of pycocotools' that gives
the same numbers; here are only the conversion from our arrays and the names of the results.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from jaxvision.errors import UserError
from jaxvision.metrics.boxes import Found, Truth, box_area, field_of, read_pictures
from jaxvision.ops.masks import decode_masks, encode_masks

_AREAS = ("all", "small", "medium", "large")
_OTHER_SIGMA = 0.05
_MOST_POSES = 20
"""Of a picture and class that count where keypoints are compared, as in COCO's evaluation."""


class CocoScores(NamedTuple):
    """`summary`: COCO's 12 numbers by name, 8 of keypoints; `per_class` float64 [k]: each one's AP.

    AP is the mean over IoU 0.50, 0.55, … 0.95 and over classes, with 101 recall levels; AP50 and
    AP75 are of one IoU; AP_small, AP_medium and AP_large are of objects of an area below 32 * 32
    pixels, below 96 * 96, and beyond. AR_1, AR_10 and AR_100 are the largest recall with so many
    detections a picture, AR_small and so on those of AR_100. All from 0 to 1; NaN (where
    pycocotools says -1) without an object of that class or size.
    """

    summary: dict[str, float]
    per_class: np.ndarray


def coco_scores(
    predictions: Sequence[Mapping[str, Any]],
    targets: Sequence[Any],
    class_names: Sequence[str],
    iou_types: Sequence[str] = ("bbox",),
    max_dets: Sequence[int] = (1, 10, 100),
    sigmas: Sequence[float] | None = None,
) -> dict[str, CocoScores]:
    """Returns COCO's scores by kind of IoU: "bbox" for boxes, "segm" for masks, "keypoints".

    Predictions and targets are as `jaxvision.metrics.boxes` says, one a picture. For "segm" both
    need `masks`: bool [n, h, w], or COCO's run lengths, one an object. Difficult objects are
    treated as COCO's crowds: they are not counted, and detections that lie on them are left out. An
    object's area, by which it is small or large, is its target's `area` [m] where it has one, else
    its mask's (where masks are compared), else its box's. The last of `max_dets` is the number of
    detections a picture and class that AP takes.

    For "keypoints" targets need `keypoints` [m, p, 3] (x, y and visibility, 0 where there is none)
    and predictions [n, p, 2]. In place of the IoU is COCO's object keypoint similarity, the mean of
    exp(-d^2 / (2 area (2 sigma)^2)) over an object's keypoints; `sigmas` are by default COCO's for
    17 keypoints and 0.05 for others; of a picture and class 20 detections count.

    >>> found = [{"boxes": [[0, 0, 40, 40]], "scores": [0.9], "labels": [0]}]
    >>> there = [{"boxes": [[0, 0, 40, 45]], "labels": [0]}]
    >>> scores = coco_scores(found, there, ["bag"])["bbox"]
    >>> [round(scores.summary[name], 3) for name in ("AP", "AP50", "AP75", "AP_medium", "AR_1")]
    [0.8, 1.0, 1.0, 0.8, 0.8]
    """
    unknown = set(iou_types) - {"bbox", "segm", "keypoints"}
    if unknown or not iou_types:
        raise ValueError(
            f'expected iou_types of "bbox", "segm" and "keypoints", got {list(iou_types)}'
        )
    if not max_dets or list(max_dets) != sorted(set(max_dets)) or min(max_dets) < 1:
        raise ValueError(f"expected growing numbers of detections, got {list(max_dets)}")
    found, truth = read_pictures(predictions, targets, len(class_names))
    with_masks = "segm" in iou_types
    objects = _objects(targets, truth, with_masks)
    detections = _detections(predictions, found, with_masks)
    if "keypoints" in iou_types:
        counts = _add_keypoints(objects, targets, [len(each.labels) for each in truth], 3)
        counts |= _add_keypoints(detections, predictions, [len(each.labels) for each in found], 2)
        if len(counts) > 1:
            raise UserError(f"expected as many keypoints everywhere, got {sorted(counts)}")
        if sigmas is None:
            sigmas = None if counts == {17} else [_OTHER_SIGMA] * next(iter(counts), 1)
    return {
        kind: _evaluate(len(found), objects, detections, kind, class_names, list(max_dets), sigmas)
        for kind in iou_types
    }


def _evaluate(
    pictures: int,
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    kind: str,
    class_names: Sequence[str],
    max_dets: list[int],
    sigmas: Sequence[float] | None,
) -> CocoScores:
    from faster_coco_eval import COCO, COCOeval_faster

    sizes = _picture_sizes(pictures, objects, detections)
    images = [{"id": i + 1, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    # A detection's own area is that of what is compared.
    area = "segm_area" if kind == "segm" else "bbox_area"
    sides = [
        COCO({"images": images, "categories": categories, "annotations": annotations})
        for annotations in (
            [dict(row) for row in objects],
            [{**row, "area": row[area]} for row in detections],
        )
    ]
    evaluation = COCOeval_faster(*sides, iouType=kind, kpt_oks_sigmas=sigmas)
    sizes_counted = _AREAS[1:]
    if kind == "keypoints":
        max_dets, sizes_counted = [_MOST_POSES], _AREAS[2:]
    evaluation.params.maxDets = max_dets
    # All of them: for keypoints it takes those alone that have an object.
    evaluation.params.imgIds = [image["id"] for image in images]
    evaluation.params.catIds = [category["id"] for category in categories]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])  # [iou, recall, class, area, max_dets]
    recall = np.asarray(evaluation.eval["recall"])  # [iou, class, area, max_dets]
    summary = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
    }
    numbered = list(enumerate(sizes_counted, start=1))
    summary |= {f"AP_{size}": _mean(precision[:, :, :, a, -1]) for a, size in numbered}
    summary |= {f"AR_{n}": _mean(recall[:, :, 0, i]) for i, n in enumerate(max_dets)}
    summary |= {f"AR_{size}": _mean(recall[:, :, a, -1]) for a, size in numbered}
    per_class = [_mean(precision[:, :, k, 0, -1]) for k in range(len(class_names))]
    return CocoScores(summary, np.array(per_class))


def _objects(
    targets: Sequence[Any], truth: Sequence[Truth], with_masks: bool
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i, (target, picture) in enumerate(zip(targets, truth, strict=True)):
        where = f"the objects of picture {i}"
        masks = _run_lengths(target, where, len(picture.labels)) if with_masks else None
        areas = field_of(target, "area")
        if areas is None:
            areas = box_area(picture.boxes) if masks is None else _mask_areas(masks)
        areas = np.asarray(areas, np.float64)
        if areas.shape != picture.labels.shape:
            raise UserError(f"{where}: expected {len(picture.labels)} areas, got {areas.shape}")
        fields = {"iscrowd": picture.difficult.astype(int).tolist(), "area": areas.tolist()}
        rows += _annotations(i, picture, masks, fields, start=len(rows))
    return rows


def _detections(
    predictions: Sequence[Mapping[str, Any]], found: Sequence[Found], with_masks: bool
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i, (prediction, picture) in enumerate(zip(predictions, found, strict=True)):
        where = f"the predictions of picture {i}"
        masks = _run_lengths(prediction, where, len(picture.labels)) if with_masks else None
        fields = {"score": picture.scores.tolist(), "bbox_area": box_area(picture.boxes).tolist()}
        if masks is not None:
            fields["segm_area"] = _mask_areas(masks).tolist()
        rows += _annotations(i, picture, masks, fields, start=len(rows))
    return rows


def _add_keypoints(
    rows: Sequence[dict[str, Any]], sources: Sequence[Any], counts: Sequence[int], numbers: int
) -> set[int]:
    """Writes each object's keypoints into its row; returns how many keypoints objects have."""
    flat: list[np.ndarray] = []
    for i, (source, count) in enumerate(zip(sources, counts, strict=True)):
        keypoints = field_of(source, "keypoints")
        points = np.zeros((0, 0, numbers)) if keypoints is None else np.asarray(keypoints)
        if len(points) != count or points.ndim != 3 or points.shape[2] != numbers:
            side = "objects" if numbers == 3 else "predictions"
            raise UserError(
                f"the {side} of picture {i}: expected keypoints [{count}, p, {numbers}], got "
                f"{'none' if keypoints is None else list(points.shape)}"
            )
        flat += list(points.astype(np.float64))
    for row, points in zip(rows, flat, strict=True):
        if numbers == 2:
            points = np.pad(points, ((0, 0), (0, 1)), constant_values=1)
        row["keypoints"] = points.ravel().tolist()
        row["num_keypoints"] = int((points[:, 2] > 0).sum())
    return {len(points) for points in flat}


def _annotations(
    index: int,
    picture: Found | Truth,
    masks: list[dict[str, Any]] | None,
    fields: Mapping[str, list],
    start: int,
) -> list[dict[str, Any]]:
    """Returns one annotation an object. Ids count from 1, because 0 means unmatched."""
    sizes = np.clip(picture.boxes[:, 2:] - picture.boxes[:, :2], 0.0, None)
    boxes = np.concatenate([picture.boxes[:, :2], sizes], axis=1).tolist()
    rows = []
    for j, (box, label) in enumerate(zip(boxes, picture.labels.tolist(), strict=True)):
        row = {"id": start + j + 1, "image_id": index + 1, "category_id": label + 1, "bbox": box}
        row |= {name: values[j] for name, values in fields.items()}
        if masks is not None:
            row["segmentation"] = masks[j]
        rows.append(row)
    return rows


def _run_lengths(source: Any, where: str, count: int) -> list[dict[str, Any]]:
    masks = field_of(source, "masks")
    if masks is None and count:
        raise UserError(f'{where}: expected masks, which the "segm" scores compare; got none')
    if masks is None or not len(masks):
        encoded = []
    elif isinstance(masks[0], Mapping):
        encoded = [dict(each) for each in masks]
    else:
        pixels = np.asarray(masks)
        if pixels.ndim != 3 or pixels.dtype != bool:
            raise UserError(
                f"{where}: expected masks bool [n, h, w] or run lengths, got {pixels.dtype} "
                f"{list(pixels.shape)}"
            )
        encoded = encode_masks(pixels)
    if len(encoded) != count:
        raise UserError(f"{where}: expected {count} masks, got {len(encoded)}")
    return encoded


def masks_of(source: Any) -> Bool[np.ndarray, "n h w"] | None:
    """Returns the masks of a picture's objects as pixels, also where they are run lengths.

    None where there are none; `source` is a prediction or a target.
    """
    masks = field_of(source, "masks")
    if masks is None or isinstance(masks, np.ndarray):
        return masks
    return decode_masks(masks, tuple(masks[0]["size"])) if len(masks) else None


def _mask_areas(masks: list[dict[str, Any]]) -> np.ndarray:
    from pycocotools import mask

    return mask.area(masks).astype(np.float64) if masks else np.zeros(0)


def _picture_sizes(pictures: int, *sides: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Returns each picture's (h, w) as its masks have it; all of a picture must agree."""
    sizes: dict[int, tuple[int, int]] = {}
    for row in (row for side in sides for row in side if "segmentation" in row):
        size = tuple(row["segmentation"]["size"])
        if sizes.setdefault(row["image_id"], size) != size:
            raise UserError(
                f"picture {row['image_id'] - 1}: expected masks of one size, got "
                f"{sizes[row['image_id']]} and {size} (h, w)"
            )
    return [sizes.get(i + 1, (0, 0)) for i in range(pictures)]


def _mean(values: np.ndarray) -> float:
    """The mean of what is defined: -1 marks a class, or a size, without objects."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")
