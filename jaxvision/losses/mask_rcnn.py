"""What Mask R-CNN learns besides boxes (arXiv:1703.06870): masks, or keypoints, of regions.

Both look at the regions that Faster R-CNN's loss drew for an object, and at what was annotated of
that object.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int, Int32

from jaxvision.losses.forward import call
from jaxvision.losses.rcnn import (
    DEFAULT_SAMPLING,
    RoISample,
    Sampling,
    TrainingPass,
    faster_rcnn_pass,
)
from jaxvision.ops.masks import crop_masks
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array, Batch, LossFn, PerChannel


def mask_head_loss(
    mask_logits: Float[Array, "*n s s k"],
    classes: Int[Array, "*n"],
    targets: Float[Array, "*n s s"],
    valid: Bool[Array, "*n"],
) -> Float[Array, ""]:
    """Returns the binary cross-entropy of each RoI's mask of its own class, a mean over pixels.

    Masks of other classes do not compete (section 3). `targets` are from 0 to 1, see `crop_masks`.
    A RoI that is not `valid` adds nothing to loss or gradients, even where it holds NaN; without
    any valid one the loss is 0.

    >>> logits, whole = jnp.zeros((1, 2, 2, 3)), jnp.ones((1, 2, 2))
    >>> loss = jax.jit(mask_head_loss)(logits, jnp.array([2]), whole, jnp.array([True]))
    >>> round(float(loss), 4)
    0.6931
    """
    index = classes[..., None, None, None]
    own = jnp.take_along_axis(mask_logits, index, axis=-1)[..., 0]
    where = valid[..., None, None]
    own = at_least_float32(jnp.where(where, own, 0.0))
    losses = optax.sigmoid_binary_cross_entropy(own, jnp.where(where, targets, 0.0))
    pixels = losses.shape[-1] * losses.shape[-2]
    return jnp.sum(losses, where=where) / (jnp.maximum(valid.sum(), 1) * pixels)


def keypoint_targets(
    keypoints: Float[Array, "n p 3"], rois: Float[Array, "n 4"], size: int
) -> tuple[Int32[Array, "n p"], Bool[Array, "n p"]]:
    """Returns which of a RoI's `size` by `size` cells has each keypoint, and whether any has.

    Keypoints are (x, y, visibility) in pixels of the picture: with a visibility of 0 there is none.
    One on the right or lower border is in the last cell, one outside in none. This is torchvision's
    `keypoints_to_heatmap`.

    >>> points = jnp.array([[[2.0, 3.0, 1.0], [4.0, 4.0, 2.0], [2.0, 3.0, 0.0]]])
    >>> roi = jnp.array([[0.0, 0.0, 4.0, 4.0]])
    >>> cells, valid = jax.jit(keypoint_targets, static_argnums=2)(points, roi, 4)
    >>> cells.tolist(), valid.tolist()
    ([[14, 15, 0]], [[True, True, False]])
    """
    corner, end = rois[:, None, :2], rois[:, None, 2:]
    scale = size / (end - corner)
    place = keypoints[..., :2]
    cell = jnp.floor((place - corner) * scale)
    cell = jnp.where(place == end, size - 1, cell)
    inside = ((cell >= 0) & (cell < size)).all(axis=-1) & (keypoints[..., 2] > 0)
    cell = jnp.where(inside[..., None], cell, 0.0).astype(jnp.int32)
    return cell[..., 1] * size + cell[..., 0], inside


def keypoint_head_loss(
    keypoint_logits: Float[Array, "*n s s p"],
    cells: Int[Array, "*n _"],
    valid: Bool[Array, "*n _"],
) -> Float[Array, ""]:
    """Returns the cross-entropy of where each keypoint is, over its whole map; a mean over them.

    A keypoint that is not `valid` adds nothing to loss or gradients, even where it holds NaN;
    without any valid one the loss is 0. Of another number of keypoints than the logits' it is a
    ValueError.

    >>> logits, cell, there = jnp.zeros((1, 4, 4, 1)), jnp.array([[5]]), jnp.array([[True]])
    >>> loss = jax.jit(keypoint_head_loss)(logits, cell, there)
    >>> round(float(np.exp(loss)), 3)
    16.0
    """
    *n, s, _, p = keypoint_logits.shape
    if cells.shape[-1] != p:
        raise ValueError(
            f"the model has {p} keypoints an object and the batch {cells.shape[-1]}: build it with "
            f"num_keypoints={cells.shape[-1]}"
        )
    logits = jnp.moveaxis(keypoint_logits.reshape(*n, s * s, p), -1, -2)
    logits = at_least_float32(jnp.where(valid[..., None], logits, 0.0))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, cells)
    return jnp.sum(losses, where=valid) / jnp.maximum(valid.sum(), 1)


def mask_rcnn_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> LossFn:
    """Returns Mask R-CNN's `loss_fn(params, batch_stats, batch, key, train=True)`.

    `faster_rcnn_loss`, which says what a batch is, and `loss_mask` besides: `mask_head_loss` of the
    RoIs that were drawn for an object. The batch also has `masks` bool [b, m, h, w] of its objects.
    """

    def loss_mask(run: Callable[..., Any], rois: RoISample, batch: Batch) -> Any:
        valid = rois.valid & (rois.classes > 0)
        options = {"method": model.predict_masks, "rows": valid.reshape(-1)}
        logits, batch_stats = run(rois.boxes, **options)
        masks = _at_least_one(jnp.asarray(batch["masks"]))
        boxes = jnp.where(valid[..., None], rois.boxes, 0.0)
        sizes = batch.get("size", np.tile(masks.shape[2:], (len(masks), 1)))

        def of_one(masks, boxes, matched, size):
            return crop_masks(masks, boxes, matched, logits.shape[-2], (size[0], size[1]))

        targets = jax.vmap(of_one)(masks, boxes, rois.matched, jnp.asarray(sizes))
        return mask_head_loss(logits, rois.classes, targets, valid), batch_stats

    return _with_branch(model, "loss_mask", loss_mask, mean, std, sampling)


def keypoint_rcnn_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    sampling: Sampling = DEFAULT_SAMPLING,
) -> LossFn:
    """Returns Keypoint R-CNN's `loss_fn(params, batch_stats, batch, key, train=True)`.

    `faster_rcnn_loss`, which says what a batch is, and `loss_keypoint` besides:
    `keypoint_head_loss` of the RoIs that were drawn for an object. The batch also has `keypoints`
    float [b, m, p, 3] of its objects: x and y in pixels, and a visibility, 0 where there is none.
    """

    def loss_keypoint(run: Callable[..., Any], rois: RoISample, batch: Batch) -> Any:
        of_object = rois.valid & (rois.classes > 0)
        logits, batch_stats = run(rois.boxes, method=model.predict_keypoints)
        points = _at_least_one(jnp.asarray(batch["keypoints"]))
        points = jnp.take_along_axis(points, rois.matched[..., None, None], axis=1)
        unit = jnp.array([0.0, 0.0, 1.0, 1.0], rois.boxes.dtype).reshape(1, 1, 4)
        boxes = jnp.where(of_object[..., None], rois.boxes, unit)
        cells, inside = jax.vmap(lambda *picture: keypoint_targets(*picture, logits.shape[-2]))(
            points, boxes
        )
        return keypoint_head_loss(logits, cells, inside & of_object[..., None]), batch_stats

    return _with_branch(model, "loss_keypoint", loss_keypoint, mean, std, sampling)


def _with_branch(
    model: nn.Module,
    term: str,
    branch: Callable[..., Any],
    mean: PerChannel,
    std: PerChannel,
    sampling: Sampling,
) -> LossFn:
    """Faster R-CNN's loss and a term more, of the RoIs in which objects may have been drawn."""

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Any, train: bool = True):
        options = {"train": train, "mean": mean, "std": std, "sampling": sampling}
        passed: TrainingPass = faster_rcnn_pass(model, params, batch_stats, batch, key, **options)
        most = max(1, int(sampling.num_rois * sampling.roi_positive_fraction))
        rois = RoISample(*(part[:, :most] for part in passed.rois))  # those with objects are first

        def run(boxes, **how):
            drawn = jax.random.key(0)  # for call: nothing is drawn, these heads have no dropout
            arguments = (passed.features, boxes)
            return call(model, params, passed.batch_stats, drawn, *arguments, train=train, **how)

        loss, batch_stats = branch(run, rois, batch)
        terms = {**passed.terms, term: loss}
        total = sum(terms.values())
        return total, (batch_stats, {"loss": total, **terms})

    return loss_fn


def _at_least_one(of_objects: Array) -> Array:
    """[b, m, …] with one slot where m is 0, as the RoIs' objects have."""
    if of_objects.shape[1]:
        return of_objects
    return jnp.zeros((of_objects.shape[0], 1, *of_objects.shape[2:]), of_objects.dtype)
