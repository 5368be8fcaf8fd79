"""R-CNN's targets (arXiv:1311.2524): what a proposal counts as in each of its three trainings.

The thresholds differ: for the network a region is an object's where they overlap by half, so that
there are many of them; for the classifiers behind it only the object's own box is, and what
overlaps it a little is left out; boxes are learnt from regions that are nearly right. Targets are
pure functions of one picture. A batch's labels count from 0 without a background.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Int32

from jaxvision.losses.classification import cross_entropy
from jaxvision.losses.forward import call
from jaxvision.losses.objects import pictures_and_objects, usable_objects
from jaxvision.metrics import accuracy
from jaxvision.ops.boxes import encode_boxes
from jaxvision.ops.iou import box_iou
from jaxvision.ops.matching import match, sample_balanced
from jaxvision.ops.warp import warp_rois
from jaxvision.types import Array, Batch, LossFn, PerChannel

NO_CLASS = -1
"""Of a region that counts nothing."""


def finetuning_targets(
    regions: Float[Array, "n 4"],
    region_valid: Bool[Array, " n"],
    boxes: Float[Array, "m 4"],
    labels: Int[Array, " m"],
    box_valid: Bool[Array, " m"],
    *,
    iou_threshold: float = 0.5,
) -> Int32[Array, " n"]:
    """Returns each region's class for the network: its best object's label + 1, or background, 0.

    A region has an object where their IoU is at least `iou_threshold` (section 2.3). One that is
    not valid is NO_CLASS, even where it holds NaN; an object that is not valid, or without area,
    counts nothing.

    >>> regions = jnp.array([[0.0, 0.0, 4.0, 8.0], [0.0, 0.0, 3.0, 8.0], [0.0, 0.0, 8.0, 8.0]])
    >>> there, label = jnp.array([True, True, False]), jnp.array([6])
    >>> object_valid = jnp.array([True])
    >>> jax.jit(finetuning_targets)(regions, there, regions[2:], label, object_valid).tolist()
    [7, 0, -1]
    """
    boxes, labels, box_valid = usable_objects(boxes, labels, box_valid)
    iou = box_iou(boxes, jnp.where(region_valid[:, None], regions, 0.0))
    matched = match(iou, iou_threshold, iou_threshold, valid=box_valid)
    classes = jnp.where(matched >= 0, labels[jnp.maximum(matched, 0)] + 1, 0)
    return jnp.where(region_valid, classes, NO_CLASS).astype(jnp.int32)


def svm_targets(
    regions: Float[Array, "n 4"],
    region_valid: Bool[Array, " n"],
    boxes: Float[Array, "m 4"],
    labels: Int[Array, " m"],
    box_valid: Bool[Array, " m"],
    *,
    num_labels: int,
    iou_threshold: float = 0.3,
) -> Int32[Array, "n_and_m k"]:
    """Returns what regions, and behind them the objects' own boxes, are to each class: 1, -1 or 0.

    An object's box is positive for its class and no other region is; what overlaps none of a
    class's objects by an IoU of `iou_threshold` or more is negative for that class, other classes'
    objects too; the rest, and what is not valid, is left out, 0 (section 2.3, appendix B).
    `num_labels` is k, without a background.

    >>> regions = jnp.array([[0.0, 0.0, 2.0, 8.0], [0.0, 0.0, 3.0, 8.0]])
    >>> box, there = jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.array([True])
    >>> scene = regions, jnp.array([True, True]), box, jnp.array([1]), there
    >>> jax.jit(svm_targets, static_argnames="num_labels")(*scene, num_labels=2).tolist()
    [[-1, -1], [-1, 0], [-1, 1]]
    """
    m, found = len(box_valid), (boxes, labels, box_valid)
    boxes, labels, box_valid = usable_objects(*found)
    candidates = jnp.concatenate([jnp.where(region_valid[:, None], regions, 0.0), boxes])
    usable = jnp.concatenate([region_valid, box_valid])
    iou = jnp.where(box_valid[:, None], box_iou(boxes, candidates), 0.0)
    classes = jnp.arange(num_labels)
    is_class = (labels[:, None] == classes[None, :]) & box_valid[:, None]
    overlap = jnp.where(is_class[:, :, None], iou[:, None, :], 0.0).max(axis=0).T
    targets = jnp.where(overlap < iou_threshold, -1, 0)
    own = jnp.concatenate([jnp.zeros((len(regions), num_labels), bool), is_class])
    targets = jnp.where(usable[:, None], jnp.where(own, 1, targets), 0)
    return targets[: len(regions) + m].astype(jnp.int32)


def box_regression_targets(
    regions: Float[Array, "n 4"],
    region_valid: Bool[Array, " n"],
    boxes: Float[Array, "m 4"],
    labels: Int[Array, " m"],
    box_valid: Bool[Array, " m"],
    *,
    iou_threshold: float = 0.6,
) -> tuple[Int32[Array, " n"], Float[Array, "n 4"]]:
    """Returns `(labels, deltas)`: whose object's box each region is to become, and by which deltas.

    A region answers for the object that it overlaps most, where their IoU is at least
    `iou_threshold`, and the deltas are those of `encode_boxes` (appendix C, equations 6 to 9).
    Others have NO_CLASS and zeros.

    >>> region, there = jnp.array([[0.0, 0.0, 8.0, 8.0]]), jnp.array([True])
    >>> box, label = jnp.array([[0.0, 2.0, 8.0, 8.0]]), jnp.array([3])
    >>> label, deltas = jax.jit(box_regression_targets)(region, there, box, label, there)
    >>> label.tolist(), [round(x, 3) for x in deltas.ravel().tolist()]
    ([3], [0.0, 0.125, 0.0, -0.288])
    """
    boxes, labels, box_valid = usable_objects(boxes, labels, box_valid)
    regions = jnp.where(region_valid[:, None], regions, 0.0)
    matched = match(box_iou(boxes, regions), iou_threshold, iou_threshold, valid=box_valid)
    has_object = region_valid & (matched >= 0)
    index = jnp.maximum(matched, 0)
    # What has no object becomes a box of its own, without infinities.
    unit = jnp.array([[0.0, 0.0, 1.0, 1.0]], regions.dtype)
    start = jnp.where(has_object[:, None], regions, unit)
    deltas = encode_boxes(jnp.where(has_object[:, None], boxes[index], unit), start)
    return jnp.where(has_object, labels[index], NO_CLASS).astype(jnp.int32), deltas


def region_classification_loss(
    model: nn.Module,
    *,
    crop_size: int,
    padding: int = 16,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    num_regions: int = 128,
    positive_fraction: float = 0.25,
    iou_threshold: float = 0.5,
) -> LossFn:
    """Returns the `loss_fn(params, batch_stats, batch, key, train=True)` of R-CNN's fine-tuning.

    `model` classifies crops of `crop_size` squared pixels, of which the first class is the
    background. Of all regions of a batch `num_regions` are drawn, at most a fixed share of them
    with an object: 32 and 96 in the paper. Without `key`, as in evaluation, always the same.

    The batch is one for detection, see `faster_rcnn_loss`, with `proposals` [b, n, 4] and
    `proposal_valid` bool [b, n]; the objects' own boxes are regions too. The metrics are `loss` and
    `accuracy`. A batch without any region has a loss of 0.
    """

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Any, train: bool = True):
        key = jax.random.key(0) if key is None else key
        sample_key, dropout_key = jax.random.split(key)
        scenes = pictures_and_objects(batch, mean, std)
        regions = jnp.concatenate([jnp.asarray(batch["proposals"]), scenes.boxes], axis=1)
        valid = jnp.asarray(batch["proposal_valid"]) & scenes.valid[:, None]
        has_area = (scenes.boxes[..., 2:] > scenes.boxes[..., :2]).all(axis=-1)
        valid = jnp.concatenate([valid, scenes.box_valid & has_area], axis=1)

        def targets(*picture):
            return finetuning_targets(*picture, iou_threshold=iou_threshold)

        classes = jax.vmap(targets)(regions, valid, scenes.boxes, scenes.labels, scenes.box_valid)
        classes, boxes = classes.reshape(-1), regions.reshape(-1, 4)
        sample = sample_balanced(
            sample_key, classes > 0, classes == 0, num_regions, positive_fraction
        )
        picture = sample.indices // regions.shape[1]

        def crop(picture, box):
            size = (scenes.sizes[picture, 0], scenes.sizes[picture, 1])
            options = {"padding": padding, "size": size}
            return warp_rois(scenes.images[picture], box[None], crop_size, **options)[0]

        crops = jax.vmap(crop)(picture, jnp.where(sample.valid[:, None], boxes[sample.indices], 0))
        logits, batch_stats = call(
            model, params, batch_stats, dropout_key, crops, train=train, rows=sample.valid
        )
        chosen = jnp.maximum(classes[sample.indices], 0)
        loss = cross_entropy(logits, chosen, sample.valid)
        metrics = {"loss": loss, "accuracy": accuracy(logits, chosen, sample.valid)}
        return loss, (batch_stats, metrics)

    return loss_fn
