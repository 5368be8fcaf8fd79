"""Faster R-CNN's losses: what anchors and regions of interest should say, and what it costs.

Targets are pure functions of one picture, losses of any number of anchors or RoIs. A batch's labels
count from 0 without a background; inside the R-CNN family class 0 is the background, and class
label + 1 what a batch calls label: `sample_rois` is where the one becomes the other.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int, Int32, PRNGKeyArray

from jaxvision.losses.boxes import smooth_l1
from jaxvision.losses.forward import call
from jaxvision.losses.objects import pictures_and_objects, usable_objects
from jaxvision.ops.boxes import encode_boxes
from jaxvision.ops.iou import box_iou
from jaxvision.ops.matching import BELOW_LOW_THRESHOLD, match, sample_balanced
from jaxvision.ops.precision import at_least_float32
from jaxvision.ops.rcnn import BOX_WEIGHTS
from jaxvision.types import Array, Batch, LossFn, Metrics, PerChannel

BETA = 1 / 9
"""Where smooth L1 goes over from a square to a line."""


class AnchorSample(NamedTuple):
    """Anchors that the loss looks at: positives first, then negatives, then padding."""

    indices: Int32[Array, "*b n"]
    positive: Bool[Array, "*b n"]
    target_deltas: Float[Array, "*b n 4"]
    valid: Bool[Array, "*b n"]


class RoISample(NamedTuple):
    """RoIs that the loss looks at: with an object first, then background, then padding."""

    boxes: Float[Array, "*b n 4"]
    classes: Int32[Array, "*b n"]
    """0 for the background and for padding, else the object's label + 1."""
    target_deltas: Float[Array, "*b n 4"]
    matched: Int32[Array, "*b n"]
    """Which object each has, 0 where there is none."""
    valid: Bool[Array, "*b n"]


def sample_anchors(
    key: PRNGKeyArray,
    anchors: Float[Array, "a 4"],
    boxes: Float[Array, "m 4"],
    box_valid: Bool[Array, " m"],
    *,
    size: int = 256,
    positive_fraction: float = 0.5,
    high_threshold: float = 0.7,
    low_threshold: float = 0.3,
) -> AnchorSample:
    """Draws `size` anchors of a picture, at most a fixed share of them with an object.

    An anchor has an object where their IoU is at least `high_threshold`, or where no other anchor
    suits that object better; it has none below `low_threshold`; the others are never drawn
    (arXiv:1506.01497, section 3.1.2). Objects that are not valid, or without area, count nothing.

    >>> anchors = jnp.array([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 10.0], [20.0, 0.0, 28.0, 8.0]])
    >>> key, there = jax.random.key(0), jnp.array([True])
    >>> draw = jax.jit(sample_anchors, static_argnames=("size", "positive_fraction"))
    >>> sample = draw(key, anchors, anchors[:1], there, size=4, positive_fraction=0.25)
    >>> sample.valid.tolist(), sample.positive.tolist()
    ([True, True, False, False], [True, False, False, False])
    """
    boxes, _, box_valid = usable_objects(boxes, None, box_valid)
    iou = box_iou(boxes, anchors)
    matched = match(iou, high_threshold, low_threshold, True, box_valid)
    none = matched == BELOW_LOW_THRESHOLD
    indices, positive, valid = sample_balanced(key, matched >= 0, none, size, positive_fraction)
    chosen = jnp.asarray(anchors)[indices]
    target = jnp.where(positive[:, None], boxes[jnp.maximum(matched[indices], 0)], chosen)
    return AnchorSample(indices, positive, encode_boxes(target, chosen), valid)


def rpn_loss(
    objectness: Float[Array, "*n"],
    deltas: Float[Array, "*n 4"],
    positive: Bool[Array, "*n"],
    target_deltas: Float[Array, "*n 4"],
    valid: Bool[Array, "*n"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(objectness_loss, box_loss)` of sampled anchors, each divided by their number.

    Binary cross-entropy of the logits `objectness`, and smooth L1 of the deltas of the positive
    ones, summed over the four. An anchor that is not `valid` adds nothing to losses or gradients,
    even where it holds NaN.

    >>> yes, no = jnp.array([True, True]), jnp.array([False, False])
    >>> losses = jax.jit(rpn_loss)(jnp.zeros(2), jnp.ones((2, 4)), no, jnp.zeros((2, 4)), yes)
    >>> [round(float(loss), 4) for loss in losses]
    [0.6931, 0.0]
    """
    count = jnp.maximum(valid.sum(), 1)
    logits = at_least_float32(jnp.where(valid, objectness, 0.0))
    losses = optax.sigmoid_binary_cross_entropy(logits, positive.astype(logits.dtype))
    errors = jnp.where((valid & positive)[..., None], at_least_float32(deltas) - target_deltas, 0.0)
    return jnp.sum(losses, where=valid) / count, smooth_l1(errors, BETA).sum() / count


def sample_rois(
    key: PRNGKeyArray,
    proposals: Float[Array, "n 4"],
    proposal_valid: Bool[Array, " n"],
    boxes: Float[Array, "m 4"],
    labels: Int[Array, " m"],
    box_valid: Bool[Array, " m"],
    *,
    size: int = 512,
    positive_fraction: float = 0.25,
    iou_threshold: float = 0.5,
    background_iou: float = 0.0,
) -> RoISample:
    """Draws `size` RoIs of a picture among its proposals and its objects' own boxes.

    At most a fixed share of them have an object, which they overlap with an IoU of at least
    `iou_threshold`; the rest is background, which overlaps some object by at least
    `background_iou`, if the picture has any. Objects that are not valid, or without area, count
    nothing, and neither do proposals that are not valid, even where they hold NaN.

    >>> box = jnp.array([[0.0, 0.0, 8.0, 8.0]])
    >>> there = jnp.array([True])
    >>> draw = jax.jit(sample_rois, static_argnames="size")
    >>> sample = draw(jax.random.key(0), box + 40, there, box, jnp.array([6]), there, size=4)
    >>> sample.classes.tolist(), sample.valid.tolist()
    ([7, 0, 0, 0], [True, True, False, False])
    """
    boxes, labels, box_valid = usable_objects(boxes, labels, box_valid)
    candidates = jnp.concatenate([jnp.where(proposal_valid[:, None], proposals, 0.0), boxes])
    usable = jnp.concatenate([proposal_valid, box_valid])
    iou = box_iou(boxes, candidates)
    matched = match(iou, iou_threshold, iou_threshold, valid=box_valid)
    has_object, none = usable & (matched >= 0), usable & (matched == BELOW_LOW_THRESHOLD)
    if background_iou > 0:
        best = jnp.where(box_valid[:, None], iou, 0.0).max(axis=0)
        none &= (best >= background_iou) | ~box_valid.any()
    indices, positive, valid = sample_balanced(key, has_object, none, size, positive_fraction)
    chosen = candidates[indices]
    matched = jnp.where(positive, matched[indices], 0)
    target = jnp.where(positive[:, None], boxes[matched], chosen)
    # A box without area has no deltas; as background it needs none.
    safe = jnp.where(positive[:, None], chosen, jnp.array([[0.0, 0.0, 1.0, 1.0]], chosen.dtype))
    target_deltas = encode_boxes(jnp.where(positive[:, None], target, safe), safe, BOX_WEIGHTS)
    classes = jnp.where(positive, labels[matched] + 1, 0).astype(jnp.int32)
    return RoISample(chosen, classes, target_deltas, matched, valid)


def box_head_loss(
    class_logits: Float[Array, "*n k"],
    box_deltas: Float[Array, "*n k 4"],
    classes: Int[Array, "*n"],
    target_deltas: Float[Array, "*n 4"],
    valid: Bool[Array, "*n"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(class_loss, box_loss)` of sampled RoIs, each divided by their number.

    Fast R-CNN's multitask loss (arXiv:1504.08083, equation 1): cross-entropy of the classes, of
    which 0 is the background, and smooth L1 of the deltas that belong to the right class, summed
    over the four, of all others. A RoI that is not `valid` adds nothing to losses or gradients,
    even where it holds NaN.

    >>> logits, deltas = jnp.zeros((1, 2)), jnp.full((1, 2, 4), 2.0)
    >>> classes, targets, valid = jnp.array([1]), jnp.zeros((1, 4)), jnp.array([True])
    >>> losses = jax.jit(box_head_loss)(logits, deltas, classes, targets, valid)
    >>> [round(float(loss), 4) for loss in losses]
    [0.6931, 7.7778]
    """
    count = jnp.maximum(valid.sum(), 1)
    logits = at_least_float32(jnp.where(valid[..., None], class_logits, 0.0))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    index = classes[..., None, None]
    deltas = jnp.take_along_axis(at_least_float32(box_deltas), index, axis=-2)[..., 0, :]
    foreground = (valid & (classes > 0))[..., None]
    errors = jnp.where(foreground, deltas - target_deltas, 0.0)
    return jnp.sum(losses, where=valid) / count, smooth_l1(errors, BETA).sum() / count


class Sampling(NamedTuple):
    """How many anchors and RoIs of each picture the loss looks at, and which share with objects."""

    num_anchors: int = 256
    anchor_positive_fraction: float = 0.5
    num_rois: int = 512
    roi_positive_fraction: float = 0.25


DEFAULT_SAMPLING = Sampling()


class TrainingPass(NamedTuple):
    """What one pass of Faster R-CNN over a batch gives the loss, and a head more to go on with."""

    terms: Metrics
    features: tuple[Float[Array, "b _ _ _"], ...]
    rois: RoISample
    batch_stats: Any


def faster_rcnn_pass(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    key: PRNGKeyArray | None,
    *,
    train: bool,
    mean: PerChannel,
    std: PerChannel,
    sampling: Sampling,
) -> TrainingPass:
    """Returns the four terms of `faster_rcnn_loss`, and the RoIs and feature maps behind them."""
    key = jax.random.key(0) if key is None else key
    anchor_key, roi_key, dropout_key = jax.random.split(key, 3)
    images, sizes, boxes, labels, box_valid, valid, rows = pictures_and_objects(batch, mean, std)

    def run(stage, batch_stats, *args, rows=None):
        options = {"train": train, "rows": rows, "method": stage}
        return call(model, params, batch_stats, dropout_key, *args, **options)

    features, batch_stats = run(model.extract_features, batch_stats, images, sizes, rows=rows)
    predictions, batch_stats = run(model.score_anchors, batch_stats, features)
    anchors = np.concatenate(model.apply({}, features, method=model.anchors))
    anchor_sample = jax.vmap(
        lambda key, boxes, box_valid: sample_anchors(
            key,
            anchors,
            boxes,
            box_valid,
            size=sampling.num_anchors,
            positive_fraction=sampling.anchor_positive_fraction,
        )
    )(jax.random.split(anchor_key, len(images)), boxes, box_valid)
    objectness, deltas = (jnp.concatenate(levels, axis=1) for levels in predictions)
    objectness_loss, anchor_box_loss = rpn_loss(
        jnp.take_along_axis(objectness, anchor_sample.indices, axis=1),
        jnp.take_along_axis(deltas, anchor_sample.indices[..., None], axis=1),
        anchor_sample.positive,
        anchor_sample.target_deltas,
        anchor_sample.valid & valid[:, None],
    )

    # As for training in evaluation too, so that the two losses can be compared.
    proposals = model.apply({}, features, predictions, sizes, train=True, method=model.propose)
    rois = jax.vmap(
        lambda *picture: sample_rois(
            *picture, size=sampling.num_rois, positive_fraction=sampling.roi_positive_fraction
        )
    )(
        jax.random.split(roi_key, len(images)),
        proposals.boxes,
        proposals.valid & valid[:, None],
        boxes,
        labels,
        box_valid,
    )
    (logits, box_deltas), batch_stats = run(
        model.classify_rois, batch_stats, features, rois.boxes, rows=rois.valid.reshape(-1)
    )
    class_loss, box_loss = box_head_loss(
        logits, box_deltas, rois.classes, rois.target_deltas, rois.valid
    )
    terms = {
        "loss_objectness": objectness_loss,
        "loss_rpn_box_reg": anchor_box_loss,
        "loss_classifier": class_loss,
        "loss_box_reg": box_loss,
    }
    return TrainingPass(terms, features, rois, batch_stats)


def faster_rcnn_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> LossFn:
    """Returns Faster R-CNN's `loss_fn(params, batch_stats, batch, key, train=True)`.

    The proposals and what becomes of them are learnt together, as torchvision does.

    The batch is one for detection: `image` [b, h, w, 3], uint8 or float in [0, 1]; `boxes` [b, m,
    4] in pixels, `labels` int [b, m] from 0 on and `box_valid` bool [b, m]; `size` int [b, 2], how
    much of each array is picture, by default all; and, where the batch is padded, `valid` bool [b].
    Anchors and RoIs are drawn with `key`, and without one, as in evaluation, always the same. The
    loss is the sum of torchvision's four terms, which are the metrics besides: `loss_objectness`,
    `loss_rpn_box_reg`, `loss_classifier`, `loss_box_reg`. Proposals have no gradient. Objects that
    VOC calls difficult count as any other.
    """

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Any, train: bool = True):
        passed = faster_rcnn_pass(
            model,
            params,
            batch_stats,
            batch,
            key,
            train=train,
            mean=mean,
            std=std,
            sampling=sampling,
        )
        loss = sum(passed.terms.values())
        return loss, (passed.batch_stats, {"loss": loss, **passed.terms})

    return loss_fn
