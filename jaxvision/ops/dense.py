"""From what one-stage detectors say of their anchors to boxes and scores, one picture at a time.

Class 0 is the background inside these networks, as in the R-CNN family. It ends here: the labels of
what is detected count from 0 without it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from jaxvision.ops.boxes import Size, clip_boxes, corners, decode_boxes
from jaxvision.ops.detections import suppress
from jaxvision.ops.precision import at_least_float32
from jaxvision.ops.rcnn import BOX_WEIGHTS
from jaxvision.types import Array, PaddedDetections


def decode_retinanet(
    class_logits: Sequence[Float[Array, "_ k"]],
    box_deltas: Sequence[Float[Array, "_ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    size: Size,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 300,
    max_candidates: int = 1000,
) -> PaddedDetections:
    """Returns what RetinaNet finds in a picture of `size` (h, w), as torchvision has it.

    Of each map the best `max_candidates` pairs of an anchor and a class whose probability is above
    `score_threshold`, with the box that the deltas make of the anchor, clipped; of all maps
    non-maximum suppression class by class, and the best `max_detections`. Class 0, the background,
    is none: a label is the class less one.

    >>> logits, deltas = jnp.array([[9.0, -9.0, 2.0]]), jnp.zeros((1, 4))
    >>> anchor = np.array([[1.0, 2.0, 5.0, 9.0]], np.float32)
    >>> decode = jax.jit(decode_retinanet, static_argnames="max_detections")
    >>> found = decode([logits], [deltas], [anchor], (8, 8), max_detections=2)
    >>> found.labels.tolist(), [round(score, 3) for score in found.scores.tolist()]
    ([1, 0], [0.881, 0.0])
    >>> found.boxes.tolist()[0], found.valid.tolist()
    ([1.0, 2.0, 5.0, 8.0], [True, False])
    """
    boxes, scores, labels = [], [], []
    for logits, deltas, of_level in zip(class_logits, box_deltas, anchors, strict=True):
        # By their logits, which are in the same order, and fewer have to be made probabilities.
        best, index, label = best_pairs(at_least_float32(logits)[:, 1:], max_candidates)
        moved = decode_boxes(at_least_float32(deltas[index]), jnp.asarray(of_level)[index])
        boxes.append(clip_boxes(moved, size))
        scores.append(jax.nn.sigmoid(best))
        labels.append(label)
    boxes, scores, labels = (jnp.concatenate(x) for x in (boxes, scores, labels))
    usable = scores > score_threshold
    return suppress(boxes, scores, labels, usable, iou_threshold, max_detections)


def decode_fcos(
    class_logits: Sequence[Float[Array, "_ k"]],
    distances: Sequence[Float[Array, "_ 4"]],
    centerness: Sequence[Float[Array, "_"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    size: Size,
    *,
    score_threshold: float = 0.2,
    iou_threshold: float = 0.6,
    max_detections: int = 100,
    max_candidates: int = 1000,
) -> PaddedDetections:
    """Returns what FCOS finds in a picture of `size` (h, w), as torchvision has it.

    As `decode_retinanet`, but that a score is the geometric mean of the class's probability and of
    the centerness's, and boxes are made by `decode_distances`.

    >>> logits, distances = jnp.array([[0.0, 0.0]]), jnp.array([[0.5, 0.25, 1.0, 1.0]])
    >>> square = np.array([[0.0, 0.0, 8.0, 8.0]], np.float32)
    >>> found = jax.jit(decode_fcos)([logits], [distances], [jnp.zeros(1)], [square], (16, 16))
    >>> found.boxes.tolist()[0], found.scores.tolist()[0]
    ([0.0, 2.0, 12.0, 12.0], 0.5)
    """
    boxes, scores, labels = [], [], []
    levels = zip(class_logits, distances, centerness, anchors, strict=True)
    for logits, of_places, middle, of_level in levels:
        probabilities = jax.nn.sigmoid(at_least_float32(logits)[:, 1:])
        both = jnp.sqrt(probabilities * jax.nn.sigmoid(at_least_float32(middle))[:, None])
        best, index, label = best_pairs(both, max_candidates)
        found = decode_distances(at_least_float32(of_places[index]), jnp.asarray(of_level)[index])
        boxes.append(clip_boxes(found, size))
        scores.append(best)
        labels.append(label)
    boxes, scores, labels = (jnp.concatenate(x) for x in (boxes, scores, labels))
    usable = scores > score_threshold
    return suppress(boxes, scores, labels, usable, iou_threshold, max_detections)


def decode_ssd(
    class_logits: Float[Array, "n k"],
    box_deltas: Float[Array, "n 4"],
    default_boxes: Float[Array, "n 4"],
    size: Size,
    *,
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    max_detections: int = 200,
    max_candidates: int = 400,
) -> PaddedDetections:
    """Returns what SSD finds in a picture of `size` (h, w), as torchvision has it.

    Of each class the best `max_candidates` boxes whose probability, a softmax with the background,
    is above `score_threshold`, clipped; then non-maximum suppression class by class, and of all
    classes together the best `max_detections`. A label is the class less one.

    >>> logits, deltas = jnp.array([[0.0, 0.0, 3.0]]), jnp.zeros((1, 4))
    >>> box = jnp.array([[1.0, 2.0, 5.0, 9.0]])
    >>> decode = jax.jit(decode_ssd, static_argnames="max_detections")
    >>> found = decode(logits, deltas, box, (8, 8), max_detections=3)
    >>> found.labels.tolist(), [round(score, 3) for score in found.scores.tolist()]
    ([1, 0, 0], [0.909, 0.045, 0.0])
    """
    boxes = clip_boxes(
        decode_boxes(at_least_float32(box_deltas), jnp.asarray(default_boxes), BOX_WEIGHTS), size
    )
    probabilities = jax.nn.softmax(at_least_float32(class_logits), axis=-1)[:, 1:]
    n, k = probabilities.shape
    count = min(max_candidates, n)
    scores, index = jax.lax.top_k(probabilities.T, count)
    labels = np.repeat(np.arange(k, dtype=np.int32), count)
    scores = scores.reshape(-1)
    usable = scores > score_threshold
    boxes = boxes[index.reshape(-1)]
    return suppress(boxes, scores, labels, usable, iou_threshold, max_detections)


def best_pairs(
    scores: Float[Array, "n k"], count: int
) -> tuple[Float[Array, " c"], Int32[Array, " c"], Int32[Array, " c"]]:
    """Returns `(scores, rows, columns)` of the best `count` pairs, or all, best first.

    Of equal scores the first row, then the first column, comes first.

    >>> scores = jnp.array([[0.1, 0.5], [0.9, 0.2], [0.3, 0.5]])
    >>> [x.tolist() for x in jax.jit(best_pairs, static_argnums=1)(scores, 3)[1:]]
    [[1, 0, 2], [0, 1, 1]]
    """
    n, k = scores.shape
    # In no more than `count` rows, those of the largest maxima: sorting these alone is faster.
    rows = jnp.sort(jax.lax.top_k(scores.max(axis=1), min(count, n))[1])
    best, flat = jax.lax.top_k(scores[rows].reshape(-1), min(count, len(rows) * k))
    return best, rows[flat // k].astype(jnp.int32), (flat % k).astype(jnp.int32)


def decode_distances(
    distances: Float[Array, "*n 4"], anchors: Float[Array, "*#n 4"]
) -> Float[Array, "*n 4"]:
    """Returns the boxes whose left, upper, right and lower sides are so far from anchors' middles.

    The unit is the anchor's width, or height: FCOS's coder, arXiv:2006.09214, section 3.1.

    >>> anchor = jnp.array([0.0, 0.0, 8.0, 8.0])
    >>> decode_distances(jnp.array([0.5, 0.25, 1.0, 2.0]), anchor).tolist()
    [0.0, 2.0, 12.0, 20.0]
    """
    x1, y1, x2, y2 = corners(anchors)
    w, h, x, y = x2 - x1, y2 - y1, 0.5 * (x1 + x2), 0.5 * (y1 + y2)
    left, up, right, down = corners(distances)
    boxes = jnp.stack([x - left * w, y - up * h, x + right * w, y + down * h], axis=-1)
    return boxes.astype(jnp.result_type(distances, anchors))
