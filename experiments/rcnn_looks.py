"""What each step of three detectors sees in one picture, as sections of a report's page."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rcnn_drawing import (
    best_regions,
    cut_out,
    draw_boxes,
    draw_features,
    draw_objectness,
    draw_regression,
    draw_suppression,
)
from rcnn_steps import NAMES, Regions, Steps

from jaxvision.metrics.boxes import pairwise_iou
from jaxvision.models.rcnn import RCNN, crop_regions
from jaxvision.models.roi_heads import pool_rois
from jaxvision.ops.rcnn import Proposals
from jaxvision.report import Section, html
from jaxvision.report.overlay import draw_objects
from jaxvision.types import PaddedDetections

MOST_PROPOSALS = 100
"""Of a picture, that are drawn."""
SURE = 0.5
"""The least score of the detections that are drawn."""


class Look(NamedTuple):
    """What a detector makes of one picture on the way to its detections."""

    features: Any
    proposals: Proposals
    outputs: Any
    regions: Regions


def look(steps: Steps, batch: Mapping[str, Any]) -> Look:
    proposals = steps.given(batch)
    features = steps.network(batch, proposals)
    if proposals is None:
        proposals = steps.propose(features, batch)
    outputs = steps.heads(features, proposals)
    return Look(features, proposals, outputs, steps.regions(outputs, proposals, batch))


def sections_of(
    steps: Mapping[str, Steps],
    batch: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    most: int,
) -> list[Section]:
    """Returns the sections for a batch of one picture, with Selective Search's proposals."""
    h, w = (int(side) for side in batch["size"][0])
    image = np.asarray(batch["image"][0])[:h, :w]
    real = np.asarray(batch["box_valid"][0])
    objects, labels = batch["boxes"][0][real], batch["labels"][0][real]
    looks = {name: look(each, batch) for name, each in steps.items()}
    truth = draw_objects(image, objects, labels, class_names)
    sections = [_proposals_section(image, truth, objects, looks)]
    if "faster" in steps:
        sections.append(_objectness_section(image, steps["faster"], looks["faster"]))
    sections += [
        _features_section(image, class_names, steps, looks, most),
        _regression_section(image, objects, class_names, looks, most),
        _suppression_section(image, class_names, steps, looks, batch),
    ]
    return sections


def _proposals_section(image, truth, objects, looks: Mapping[str, Look]) -> Section:
    drawings, captions = [truth], [["the objects"]]
    # R-CNN and Fast R-CNN have the same ones.
    for name in ("fast" if "fast" in looks else "rcnn", "faster"):
        if name not in looks:
            continue
        found = looks[name].proposals
        valid = np.asarray(found.valid[0])
        boxes, scores = np.asarray(found.boxes[0])[valid], np.asarray(found.scores[0])[valid]
        origin = "the network's own" if name == "faster" else "Selective Search"
        drawings.append(draw_boxes(image, boxes[:MOST_PROPOSALS], scores[:MOST_PROPOSALS]))
        words = [f"{origin}: the first {min(MOST_PROPOSALS, len(boxes))} of {len(boxes):,} boxes"]
        captions.append([*words, _covered(boxes, objects)])
    body = html.paragraph("Boxes that may hold an object; the brighter, the more probable.")
    return Section("Proposals", body + html.drawings(drawings, captions))


def _covered(boxes: np.ndarray, objects: np.ndarray) -> str:
    best = pairwise_iou(boxes, objects).max(axis=0, initial=0.0)
    return f"of {len(objects)} objects {int((best >= 0.5).sum())} are overlapped by half or more"


def _objectness_section(image, steps: Steps, seen: Look) -> Section:
    model = steps.model

    @jax.jit
    def score(variables, features):
        predictions = model.apply(variables, features, train=False, method=model.score_anchors)
        return [jax.nn.sigmoid(level[0]) for level in predictions.objectness]

    probabilities = score(steps.variables, seen.features)
    anchors = model.apply({}, seen.features, method=model.anchors)
    grids = [level.shape[1:3] for level in seen.features]
    rows = draw_objectness(probabilities, anchors, grids, np.asarray(image))
    captions = [
        [f"level {i} of {len(rows)}: {h} x {w} places"] for i, (h, w) in enumerate(grids, start=1)
    ]
    words = (
        "What the proposal network says of each place of each map, one picture for each anchor, of "
        "which the title has width and height: yellow where there is an object of about that shape."
    )
    return Section(
        "Objectness by anchor",
        html.paragraph(words) + html.drawings(rows, captions, size="wide"),
    )


def _features_section(image, class_names, steps, looks, most: int) -> Section:
    drawings, captions = [], []
    for name, seen in looks.items():
        chosen = best_regions(seen.regions, most)
        if not len(chosen):
            continue
        boxes = seen.regions.boxes[chosen]
        titles = [class_names[i] for i in seen.regions.scores[chosen].argmax(axis=1)]
        features = region_features(steps[name], seen, chosen)
        crops = region_crops(steps[name], image, boxes)
        drawings.append(draw_features(crops, features, titles))
        s, c = features.shape[1], features.shape[-1]
        captions.append([f"{NAMES[name]}: {s} x {s} cells of {c:,} channels, their mean strength"])
    words = (
        "The best regions, and what is known of each when it is classified: of R-CNN the last map "
        "of a network that saw this region alone, of the others the part of the picture's maps "
        "that is pooled for it."
    )
    body = html.drawings(drawings, captions, size="wide") if drawings else ""
    return Section("Features of regions", html.paragraph(words) + body)


def region_crops(steps: Steps, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """Returns the regions' pictures, of R-CNN as its network sees them."""
    if not isinstance(steps.model, RCNN):
        return [cut_out(image, box) for box in boxes]
    sizes = jnp.array([image.shape[:2]])
    crop = jax.jit(partial(crop_regions, steps.model))
    crops = crop(jnp.asarray(image)[None] / 255, sizes, boxes[None])[0]
    return list(np.asarray(jnp.round(255 * crops)).astype(np.uint8))


def region_features(steps: Steps, seen: Look, chosen: np.ndarray) -> np.ndarray:
    """Returns the features [n, s, s, c] that the heads are given of some regions of a look."""
    model = steps.model
    if isinstance(model, RCNN):
        return np.asarray(seen.features.cells[0])[chosen]
    heads = model.roi_heads
    pool = jax.jit(partial(pool_rois, strides=heads.strides, pooling=heads.pooling))
    return np.asarray(pool(seen.features, seen.regions.boxes[chosen][None])[0])


def _regression_section(image, objects, class_names, looks, most: int) -> Section:
    drawings, captions = [], []
    for name, seen in looks.items():
        drawings.append(draw_regression(image, seen.regions, objects, class_names, most))
        captions.append([NAMES[name]])
    words = "The best regions as they were proposed, dashed, and moved by their class's regression."
    return Section(
        "Boxes before and after regression",
        html.paragraph(words) + html.drawings(drawings, captions, size="wide"),
    )


def _suppression_section(image, class_names, steps, looks, batch) -> Section:
    drawings, captions = [], []
    for name, seen in looks.items():
        both = [
            _sure(steps[name].suppress(seen.outputs, seen.proposals, batch, iou))
            for iou in (1.0, None)
        ]
        drawings.append(draw_suppression(image, *both, class_names))
        captions.append([f"{NAMES[name]}, an IoU of {steps[name].iou_threshold:g} is too much"])
    words = (
        f"Boxes of a score of {SURE} or more: all of them, and what is left when of two of a class "
        "that overlap too much the better one stays."
    )
    return Section(
        "Boxes before and after suppression",
        html.paragraph(words) + html.drawings(drawings, captions, size="wide"),
    )


def _sure(found: PaddedDetections) -> dict[str, np.ndarray]:
    chosen = np.asarray(found.valid[0] & (found.scores[0] >= SURE))
    return {
        "boxes": np.asarray(found.boxes[0])[chosen],
        "scores": np.asarray(found.scores[0])[chosen],
        "labels": np.asarray(found.labels[0])[chosen],
    }
