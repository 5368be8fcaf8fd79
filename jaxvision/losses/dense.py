"""The losses of RetinaNet, FCOS and SSD: which anchors have which object, and what it costs.

Targets and losses are torchvision's. A batch's labels count from 0 without a background; inside
these networks class 0 is the background, and class label + 1 what a batch calls label.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int, Int32

from jaxvision.losses.boxes import generalized_box_iou_loss, smooth_l1
from jaxvision.losses.focal import sigmoid_focal_loss
from jaxvision.losses.forward import call
from jaxvision.losses.objects import Scenes, pictures_and_objects, usable_objects
from jaxvision.ops.boxes import corners, decode_boxes, encode_boxes
from jaxvision.ops.dense import decode_distances
from jaxvision.ops.iou import box_iou
from jaxvision.ops.matching import (
    BETWEEN_THRESHOLDS,
    match,
    match_every_object,
    match_places,
)
from jaxvision.ops.precision import at_least_float32
from jaxvision.ops.rcnn import BOX_WEIGHTS
from jaxvision.types import Array, Batch, LossFn, PerChannel

Terms = dict[str, Float[Array, ""]]
NEGATIVES = 3
"""SSD's loss looks at so many background boxes for one with an object (section 2.2)."""


class Targets(NamedTuple):
    """What one picture's anchors should say."""

    foreground: Bool[Array, "*b n"]
    classes: Int32[Array, "*b n"]
    """The object's label + 1, 0 for the background."""
    boxes: Float[Array, "*b n 4"]
    """The object's, and the anchor's own where there is none."""
    considered: Bool[Array, "*b n"]
    """False for anchors that are neither, and add nothing."""


def targets_of(
    matched: Int32[Array, " n"],
    anchors: Float[Array, "n 4"],
    boxes: Float[Array, "m 4"],
    labels: Int[Array, " m"],
) -> Targets:
    """Returns the targets of anchors whose object is `matched`, negative where there is none.

    >>> anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 9.0, 9.0]])
    >>> matched, label = jnp.array([0, -1]), jnp.array([6])
    >>> target = jax.jit(targets_of)(matched, anchors, jnp.array([[1.0, 1.0, 5.0, 5.0]]), label)
    >>> target.classes.tolist(), target.boxes.tolist()
    ([7, 0], [[1.0, 1.0, 5.0, 5.0], [8.0, 8.0, 9.0, 9.0]])
    """
    foreground = matched >= 0
    index = jnp.where(foreground, matched, 0)
    classes = jnp.where(foreground, labels[index] + 1, 0).astype(jnp.int32)
    target_boxes = jnp.where(foreground[:, None], boxes[index], anchors)
    return Targets(foreground, classes, target_boxes, matched != BETWEEN_THRESHOLDS)


# -------------------------------------------------------------------------------------- RetinaNet
def retinanet_terms(
    class_logits: Float[Array, "n k"],
    box_deltas: Float[Array, "n 4"],
    anchors: Float[Array, "n 4"],
    targets: Targets,
    box_loss: Literal["l1", "giou"] = "l1",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(class_loss, box_loss)` of one picture, each over the number of positive anchors.

    Focal loss of all classes of the anchors that are considered; and of the positive ones the
    distance of the deltas, or 1 - the generalised IoU of the box that they make.

    >>> anchors, logits = jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.zeros((1, 2))
    >>> targets = jax.jit(targets_of)(jnp.array([0]), anchors, anchors + 2, jnp.array([0]))
    >>> losses = jax.jit(retinanet_terms)(logits, jnp.zeros((1, 4)), anchors, targets)
    >>> [round(float(loss), 3) for loss in losses]
    [0.173, 0.5]
    """
    foreground, classes, boxes, considered = targets
    count = jnp.maximum(foreground.sum(), 1)
    class_sum = _focal_sum(class_logits, foreground, classes, considered)
    # Zeros where there is no object, so that no NaN gets into the gradient.
    deltas = jnp.where(foreground[:, None], at_least_float32(box_deltas), 0.0)
    if box_loss == "giou":
        losses = generalized_box_iou_loss(decode_boxes(deltas, anchors), boxes, foreground)
    else:
        wanted = jnp.where(foreground[:, None], encode_boxes(boxes, anchors), 0.0)
        losses = smooth_l1(deltas - wanted, beta=0)
    return class_sum / count, losses.sum() / count


def retinanet_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    high_threshold: float = 0.5,
    low_threshold: float = 0.4,
) -> LossFn:
    """Returns RetinaNet's `loss_fn(params, batch_stats, batch, key, train=True)`.

    An anchor has the object that it overlaps most where their IoU is at least `high_threshold`, or
    where no other anchor suits that object better; it has none below `low_threshold`; the others
    are left out. The loss is the sum of torchvision's two terms, which are the metrics besides:
    `classification` and `bbox_regression`, means over the valid pictures of `retinanet_terms`.

    The batch is that of `faster_rcnn_loss`. One without any object trains the classes alone.
    """

    def terms(outputs: Any, scenes: Scenes) -> Terms:
        logits, deltas, anchors = _joined(outputs)

        def one_picture(logits, deltas, boxes, labels, box_valid):
            boxes, labels, box_valid = usable_objects(boxes, labels, box_valid)
            iou = box_iou(boxes, anchors)
            matched = match(iou, high_threshold, low_threshold, True, box_valid)
            targets = targets_of(matched, anchors, boxes, labels)
            return retinanet_terms(logits, deltas, anchors, targets, model.box_loss)

        objects = (scenes.boxes, scenes.labels, scenes.box_valid)
        class_losses, box_losses = jax.vmap(one_picture)(logits, deltas, *objects)
        count = jnp.maximum(scenes.valid.sum(), 1)
        return {
            "classification": jnp.sum(class_losses, where=scenes.valid) / count,
            "bbox_regression": jnp.sum(box_losses, where=scenes.valid) / count,
        }

    return _loss_of(model, terms, mean, std)


# ------------------------------------------------------------------------------------------- FCOS
def fcos_terms(
    class_logits: Float[Array, "n k"],
    distances: Float[Array, "n 4"],
    centerness: Float[Array, " n"],
    squares: Float[Array, "n 4"],
    targets: Targets,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Returns `(class_loss, box_loss, centerness_loss)` of one picture, as sums.

    Focal loss of all classes of all places; of those with an object 1 - the generalised IoU, and
    cross-entropy of the centerness, sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b)) of the
    distances to the object's sides (arXiv:2006.09214, equation 3).

    >>> squares, logits = jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.zeros((1, 2))
    >>> box, first = jnp.array([[2.0, 0.0, 8.0, 8.0]]), jnp.array([0])
    >>> targets = jax.jit(targets_of)(first, squares, box, first)
    >>> outputs = logits, jnp.full((1, 4), 0.5), jnp.zeros(1)
    >>> losses = jax.jit(fcos_terms)(*outputs, squares, targets)
    >>> [round(float(loss), 3) for loss in losses]
    [0.173, 0.25, 0.693]
    """
    foreground, classes, boxes, considered = targets
    class_sum = _focal_sum(class_logits, foreground, classes, considered)
    distances = jnp.where(foreground[:, None], at_least_float32(distances), 0.0)
    box_losses = generalized_box_iou_loss(decode_distances(distances, squares), boxes, foreground)
    x1, y1, x2, y2 = corners(squares)
    x, y = 0.5 * (x1 + x2), 0.5 * (y1 + y2)
    left, up, right, down = corners(boxes)
    wanted = jnp.sqrt(_evenness(x - left, right - x) * _evenness(y - up, down - y))
    logits = at_least_float32(jnp.where(foreground, centerness, 0.0))
    losses = optax.sigmoid_binary_cross_entropy(logits, wanted.astype(logits.dtype))
    return class_sum, box_losses.sum(), jnp.sum(losses, where=foreground)


def fcos_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    radius: float = 1.5,
) -> LossFn:
    """Returns FCOS's `loss_fn(params, batch_stats, batch, key, train=True)`.

    `match_places` says which place answers for which object. The loss is the sum of torchvision's
    three terms, which are the metrics besides: `classification`, `bbox_regression` and
    `bbox_ctrness`, of `fcos_terms`, over the number of places of the batch that have an object.

    The batch is that of `faster_rcnn_loss`. One without any object trains the classes alone.
    """

    def terms(outputs: Any, scenes: Scenes) -> Terms:
        logits, distances, squares = _joined((*outputs[:2], outputs[3]))
        centerness = jnp.concatenate(outputs[2], axis=1)

        def one_picture(logits, distances, centerness, boxes, labels, box_valid):
            boxes, labels, box_valid = usable_objects(boxes, labels, box_valid)
            matched = match_places(boxes, outputs[3], box_valid, radius)
            targets = targets_of(matched, squares, boxes, labels)
            sums = fcos_terms(logits, distances, centerness, squares, targets)
            return sums, targets.foreground.sum()

        objects = (scenes.boxes, scenes.labels, scenes.box_valid)
        sums, counts = jax.vmap(one_picture)(logits, distances, centerness, *objects)
        return _per_foreground(
            ("classification", "bbox_regression", "bbox_ctrness"), sums, counts, scenes
        )

    return _loss_of(model, terms, mean, std)


# -------------------------------------------------------------------------------------------- SSD
def ssd_terms(
    class_logits: Float[Array, "n k"],
    box_deltas: Float[Array, "n 4"],
    default_boxes: Float[Array, "n 4"],
    targets: Targets,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(box_loss, class_loss)` of one picture, as sums.

    Smooth L1 of the positive boxes' deltas; cross-entropy of the positive ones' classes, and of
    the three times as many background boxes for which it is largest (hard negatives, section 2.2).

    >>> boxes, logits = jnp.array([[0.0, 0.0, 8.0, side] for side in (7, 8, 9)]), jnp.zeros((3, 2))
    >>> matched, label = jnp.array([0, -1, -1]), jnp.array([0])
    >>> targets = jax.jit(targets_of)(matched, boxes, boxes[:1], label)
    >>> losses = jax.jit(ssd_terms)(logits, jnp.ones((3, 4)), boxes, targets)
    >>> [round(float(loss), 3) for loss in losses]
    [2.0, 2.079]
    """
    foreground, classes, boxes, _ = targets
    wanted = jnp.where(foreground[:, None], encode_boxes(boxes, default_boxes, BOX_WEIGHTS), 0.0)
    deltas = jnp.where(foreground[:, None], at_least_float32(box_deltas), 0.0)
    box_sum = smooth_l1(deltas - wanted, beta=1).sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(
        at_least_float32(class_logits), classes
    )
    hardness = jnp.where(foreground, -jnp.inf, jax.lax.stop_gradient(losses))
    rank = jnp.argsort(jnp.argsort(-hardness))
    hard = (rank < NEGATIVES * foreground.sum()) & ~foreground
    return box_sum, jnp.sum(losses, where=foreground | hard)


def ssd_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    iou_threshold: float = 0.5,
) -> LossFn:
    """Returns SSD's `loss_fn(params, batch_stats, batch, key, train=True)`.

    `match_every_object` says which default box has which object. The loss is the sum of
    torchvision's two terms, which are the metrics besides: `bbox_regression` and `classification`,
    of `ssd_terms`, over the number of boxes of the batch that have an object.

    The batch is that of `faster_rcnn_loss`. From one without any object nothing is learnt.
    """

    def terms(outputs: Any, scenes: Scenes) -> Terms:
        logits, deltas, default_boxes = _joined(outputs)

        def one_picture(logits, deltas, boxes, labels, box_valid):
            boxes, labels, box_valid = usable_objects(boxes, labels, box_valid)
            iou = box_iou(boxes, default_boxes)
            matched = match_every_object(iou, iou_threshold, box_valid)
            targets = targets_of(matched, default_boxes, boxes, labels)
            sums = ssd_terms(logits, deltas, default_boxes, targets)
            return sums, targets.foreground.sum()

        objects = (scenes.boxes, scenes.labels, scenes.box_valid)
        sums, counts = jax.vmap(one_picture)(logits, deltas, *objects)
        return _per_foreground(("bbox_regression", "classification"), sums, counts, scenes)

    return _loss_of(model, terms, mean, std)


# ---------------------------------------------------------------------------------------- for all
def _loss_of(
    model: nn.Module,
    terms_of: Callable[[Any, Scenes], Terms],
    mean: PerChannel,
    std: PerChannel,
) -> LossFn:
    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Any, train: bool = True):
        scenes = pictures_and_objects(batch, mean, std)
        outputs, batch_stats = call(
            model,
            params,
            batch_stats,
            key,
            scenes.images,
            scenes.sizes,
            train=train,
            rows=scenes.rows,
        )
        terms = terms_of(outputs, scenes)
        loss = sum(terms.values())
        return loss, (batch_stats, {"loss": loss, **terms})

    return loss_fn


def _joined(outputs):
    """Returns logits [b, n, k], deltas [b, n, 4] and anchors [n, 4] of all maps together."""
    logits, deltas, anchors = outputs
    return (
        jnp.concatenate(logits, axis=1),
        jnp.concatenate(deltas, axis=1),
        jnp.concatenate([jnp.asarray(each) for each in anchors]),
    )


def _per_foreground(names, sums, counts, scenes: Scenes) -> Terms:
    """Returns each term of the batch over the number of anchors that have an object."""
    count = jnp.maximum(jnp.sum(counts, where=scenes.valid), 1)
    totals = (jnp.sum(each, where=scenes.valid) / count for each in sums)
    return dict(zip(names, totals, strict=True))


def _focal_sum(class_logits, foreground, classes, considered):
    logits = at_least_float32(jnp.where(considered[:, None], class_logits, 0.0))
    columns = jnp.arange(logits.shape[1])[None, :]
    right = (columns == classes[:, None]) & foreground[:, None]
    losses = sigmoid_focal_loss(logits, right.astype(logits.dtype))
    # A class without a logit would be learnt as background; so it is NaN, as in a cross-entropy.
    unknown = (considered & foreground & (classes >= logits.shape[1])).any()
    return jnp.sum(losses, where=considered[:, None]) + jnp.where(unknown, jnp.nan, 0.0)


def _evenness(one, other):
    """Returns the smaller distance over the larger; 1 where the place is not inside."""
    inside = (one > 0) & (other > 0)
    one, other = (jnp.where(inside, each, 1.0) for each in (one, other))
    return jnp.minimum(one, other) / jnp.maximum(one, other)
