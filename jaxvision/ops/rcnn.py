"""What is done to boxes between and behind the networks of the R-CNN family, one picture at a time.

Class 0 is the background inside these networks. It ends here: the labels of what is detected count
from 0 without it, as everywhere else.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxvision.ops.boxes import Size, boxes_at_least, clip_boxes, decode_boxes
from jaxvision.ops.detections import suppress
from jaxvision.ops.nms import batched_nms
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array, PaddedDetections

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Of the box coder in torchvision's box heads: one over the deltas' spread in Fast R-CNN."""


class Proposals(NamedTuple):
    """Boxes that may hold an object, of a fixed number n, best first; what is padding is zeros.

    A batch of pictures has a leading axis. There is no gradient.
    """

    boxes: Float[Array, "*b n 4"]
    scores: Float[Array, "*b n"]
    valid: Bool[Array, "*b n"]


def select_proposals(
    objectness: Sequence[Float[Array, "_"]],
    deltas: Sequence[Float[Array, "_ 4"]],
    anchors: Sequence[Float[Array, "_ 4"]],
    size: Size,
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float = 0.7,
    score_threshold: float = 0.0,
    min_size: float = 1e-3,
) -> Proposals:
    """Returns what a region proposal network proposes (arXiv:1506.01497, as torchvision has it).

    Of each level, by the logits `objectness`, the best `pre_nms_top_n` anchors; moved by their
    deltas, clipped to the picture of `size` (h, w), without those that are smaller than `min_size`
    or whose probability is below `score_threshold`; suppressed within their level; and of all
    levels together the best `post_nms_top_n`, or fewer where there are not so many anchors.

    >>> logits, deltas = jnp.array([2.0, 3.0]), jnp.zeros((2, 4))
    >>> anchors = np.array([[0.0, 0.0, 8.0, 8.0], [1.0, 0.0, 20.0, 8.0]], np.float32)
    >>> options = {"pre_nms_top_n": 2, "post_nms_top_n": 2}
    >>> select = jax.jit(select_proposals, static_argnames=tuple(options))
    >>> select([logits], [deltas], [anchors], (8, 16), **options).boxes.tolist()
    [[1.0, 0.0, 16.0, 8.0], [0.0, 0.0, 8.0, 8.0]]
    """
    boxes, logits, levels = [], [], []
    per_level = zip(objectness, deltas, anchors, strict=True)
    for level, (level_logits, level_deltas, level_anchors) in enumerate(per_level):
        count = min(pre_nms_top_n, len(level_logits))
        best, index = jax.lax.top_k(jax.lax.stop_gradient(at_least_float32(level_logits)), count)
        moved = jax.lax.stop_gradient(at_least_float32(level_deltas[index]))
        boxes.append(decode_boxes(moved, jnp.asarray(level_anchors)[index]))
        logits.append(best)
        levels.append(np.full(count, level, np.int32))
    boxes = clip_boxes(jnp.concatenate(boxes), size)
    scores = jax.nn.sigmoid(jnp.concatenate(logits))
    usable = boxes_at_least(boxes, min_size) & (scores >= score_threshold)
    count = min(post_nms_top_n, len(scores))
    kept, valid = batched_nms(boxes, scores, np.concatenate(levels), iou_threshold, count, usable)
    return Proposals(
        jnp.where(valid[:, None], boxes[kept], 0.0), jnp.where(valid, scores[kept], 0.0), valid
    )


def decode_rcnn(
    class_logits: Float[Array, "n k"],
    box_deltas: Float[Array, "n k 4"],
    boxes: Float[Array, "n 4"],
    size: Size,
    *,
    valid: Bool[Array, " n"] | None = None,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    min_size: float = 1e-2,
) -> PaddedDetections:
    """Returns what a box head finds in the RoIs `boxes` of a picture of `size` (h, w).

    Each RoI is a candidate for each of its classes whose probability is above `score_threshold`,
    with the box that this class's deltas make of it, clipped, if it is at least `min_size` wide and
    high; then non-maximum suppression class by class, and the best `max_detections`. Class 0, the
    background, is none: a label is the class less one. This is torchvision's postprocessing.

    >>> logits = jnp.array([[0.0, 0.0, 3.0]])
    >>> roi = jnp.array([[1.0, 2.0, 5.0, 9.0]])
    >>> decode = jax.jit(decode_rcnn, static_argnames="max_detections")
    >>> found = decode(logits, jnp.zeros((1, 3, 4)), roi, (8, 8), max_detections=2)
    >>> found.labels.tolist(), [round(score, 3) for score in found.scores.tolist()]
    ([1, 0], [0.909, 0.0])
    >>> found.boxes.tolist()[0], found.valid.tolist()
    ([1.0, 2.0, 5.0, 8.0], [True, False])
    """
    scores = jax.nn.softmax(at_least_float32(class_logits), axis=-1)[:, 1:]
    # Probabilities add up to one: only so many of a RoI's can be above the threshold.
    count = scores.shape[1]
    if score_threshold > 0:
        count = min(count, math.ceil(1 / score_threshold))
    scores, labels = jax.lax.top_k(scores, count)
    deltas = jnp.take_along_axis(at_least_float32(box_deltas)[:, 1:], labels[..., None], axis=1)
    found = clip_boxes(decode_boxes(deltas, boxes[:, None], BOX_WEIGHTS), size)
    usable = (scores > score_threshold) & boxes_at_least(found, min_size)
    if valid is not None:
        usable &= valid[:, None]
    found, scores, labels, usable = (
        x.reshape(-1, *x.shape[2:]) for x in (found, scores, labels, usable)
    )
    return suppress(found, scores, labels, usable, iou_threshold, max_detections)


def decode_regions(
    margins: Float[Array, "n k"],
    box_deltas: Float[Array, "n k 4"],
    boxes: Float[Array, "n 4"],
    size: Size,
    *,
    valid: Bool[Array, " n"] | None = None,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.3,
    max_detections: int = 100,
    max_candidates: int = 2000,
    min_size: float = 1e-2,
) -> PaddedDetections:
    """Returns what R-CNN's SVMs and box regressors find in the regions `boxes` (arXiv:1311.2524).

    A class's `margins` are its SVM's scores, and its detections' scores their logistic function,
    which keeps their order and puts the SVM's border at one half; a probability they are not. The
    best `max_candidates` pairs of a region and a class, of a score above `score_threshold` and a
    box, moved and clipped, of at least `min_size`, go through non-maximum suppression class by
    class. There is no background: a label is a column of `margins`.

    >>> box = jnp.array([[1.0, 2.0, 5.0, 9.0]])
    >>> decode = jax.jit(decode_regions, static_argnames="max_detections")
    >>> margins, deltas = jnp.array([[-9.0, 1.0]]), jnp.zeros((1, 2, 4))
    >>> found = decode(margins, deltas, box, (8, 8), max_detections=2)
    >>> found.labels.tolist(), found.valid.tolist(), round(found.scores.tolist()[0], 3)
    ([1, 0], [True, False], 0.731)
    """
    n, k = margins.shape
    scores = jax.nn.sigmoid(at_least_float32(margins))
    moved = clip_boxes(decode_boxes(at_least_float32(box_deltas), boxes[:, None]), size)
    usable = (scores > score_threshold) & boxes_at_least(moved, min_size)
    if valid is not None:
        usable &= valid[:, None]
    ranked = jnp.where(usable, scores, -jnp.inf).reshape(-1)
    best, index = jax.lax.top_k(ranked, min(max_candidates, n * k))
    return suppress(
        moved.reshape(-1, 4)[index],
        best,
        (index % k).astype(jnp.int32),
        best > -jnp.inf,
        iou_threshold,
        max_detections,
    )
