"""YOLOX's loss (arXiv:2107.08430): IoU, objectness and classes of the cells that SimOTA picks."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from jaxvision.losses.boxes import smooth_l1
from jaxvision.losses.forward import forward
from jaxvision.ops.boxes import xyxy_to_cxcywh
from jaxvision.ops.iou import intersection_and_union
from jaxvision.ops.simota import simota
from jaxvision.ops.yolox import decode_cells, grid_cells, join_levels
from jaxvision.types import Array, Batch, LossFn, PerChannel

BOX_WEIGHT = 5.0
"""What the IoU's term is multiplied by."""


def yolox_terms(
    outputs: Sequence[Float[Array, "b _ _ c"]],
    strides: Sequence[int],
    boxes: Float[Array, "b m 4"],
    labels: Int[Array, "b m"],
    box_valid: Bool[Array, "b m"],
    valid: Bool[Array, " b"] | None = None,
    *,
    use_l1: bool = False,
) -> dict[str, Float[Array, ""]]:
    """Returns YOLOX's terms by name: "iou_loss", "objectness_loss", "class_loss" and "l1_loss".

    The loss is their sum. Each is summed over the batch and divided by the number of foreground
    cells, those to which `simota` gives an object (by 1, where there are none): 5 (1 - IoU^2) of
    these; binary cross-entropy of "there is an object", of all cells; binary cross-entropy of the
    classes of the foreground, whose target is the IoU for the right class; and, where `use_l1` is
    set, as Megvii does in the last epochs, the distance |prediction - target| of the four raw
    numbers of the foreground. "foreground_per_object" is not a loss.

    `outputs` are the network's, `boxes` in pixels. Objects that are not `box_valid`, and pictures
    that are not `valid`, add nothing to losses or gradients, even where they hold NaN. The terms
    are float32 or better, also of bfloat16 outputs.
    """
    sizes = [x.shape[1:3] for x in outputs]
    cells, sides = grid_cells(sizes, strides)
    raw = join_levels(outputs)
    if valid is None:
        valid = jnp.ones(raw.shape[:1], bool)
    raw = jnp.where(valid[:, None, None], raw, 0.0)
    box_valid = box_valid & valid[:, None]
    boxes = boxes.astype(raw.dtype)
    predicted = decode_cells(raw[..., :4], cells, sides)
    objectness, classes = raw[..., 4], raw[..., 5:]

    points = (cells + 0.5) * sides[:, None]
    assign = jax.vmap(simota, in_axes=(0, 0, 0, None, None, 0, 0, 0))
    matched, iou = assign(predicted, objectness, classes, points, sides, boxes, labels, box_valid)
    foreground = matched >= 0
    num_foreground = jnp.maximum(foreground.sum(), 1)
    index = jnp.where(foreground, matched, 0)
    if boxes.shape[1] == 0:  # nothing to take from
        boxes, labels = jnp.zeros_like(raw[:, :1, :4]), jnp.zeros_like(index[:, :1])
    target_boxes = jnp.take_along_axis(boxes, index[..., None], axis=1)
    target_labels = jnp.take_along_axis(labels, index, axis=1)

    def mean(losses):
        return jnp.sum(losses, where=foreground) / num_foreground

    target = jax.nn.one_hot(target_labels, classes.shape[-1], dtype=raw.dtype) * iou[..., None]
    class_losses = optax.sigmoid_binary_cross_entropy(classes, target).sum(axis=-1)
    objectness_losses = optax.sigmoid_binary_cross_entropy(objectness, foreground)
    objectness_loss = jnp.sum(objectness_losses, where=valid[:, None]) / num_foreground
    terms = {
        "iou_loss": BOX_WEIGHT * mean(_iou_losses(predicted, target_boxes, foreground)),
        "objectness_loss": objectness_loss,
        "class_loss": mean(class_losses),
        "foreground_per_object": foreground.sum() / jnp.maximum(box_valid.sum(), 1),
    }
    if use_l1:
        target = _raw_of(target_boxes, cells, sides)
        errors = jnp.where(foreground[..., None], raw[..., :4] - target, 0.0)
        terms["l1_loss"] = mean(smooth_l1(errors, beta=0).sum(axis=-1))
    return terms


def yolox_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    use_l1: bool = False,
) -> LossFn:
    """Returns the detection task's `loss_fn(params, batch_stats, batch, key, train=True)` of YOLOX.

    The batch holds `image` [b, h, w, 3], uint8 or float in [0, 1], `boxes` float [b, m, 4] in
    pixels, `labels` int [b, m] from 0 on, `box_valid` bool [b, m] and, where it is padded, `valid`
    bool [b]. Objects that VOC calls difficult count as any other. The metrics are `loss` and the
    terms that `yolox_terms` names. In a batch without any object only the objectness is learnt.
    """

    def loss_fn(params, batch_stats, batch: Batch, key, train: bool = True):
        outputs, batch_stats = forward(
            model, params, batch_stats, batch, key, train=train, mean=mean, std=std
        )
        objects = (jnp.asarray(batch[name]) for name in ("boxes", "labels", "box_valid"))
        valid = batch.get("valid")
        valid = None if valid is None else jnp.asarray(valid)
        terms = yolox_terms(outputs, model.strides, *objects, valid, use_l1=use_l1)
        loss = sum(term for name, term in terms.items() if name.endswith("_loss"))
        return loss, (batch_stats, {"loss": loss, **terms})

    return loss_fn


def _iou_losses(predicted, target, foreground):
    """Returns 1 - IoU^2 of each pair in the foreground, Megvii's loss of boxes."""
    unit = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0], predicted.dtype), predicted.shape)
    # A harmless pair where there is none, so that no NaN gets into the gradient.
    boxes = (jnp.where(foreground[..., None], boxes, unit) for boxes in (predicted, target))
    intersection, union = intersection_and_union(*boxes)
    return 1 - (intersection / (union + 1e-16)) ** 2


def _raw_of(boxes, cells, sides):
    """Returns the four raw numbers that make these boxes of their cells."""
    sides = sides[None, :, None]
    boxes = xyxy_to_cxcywh(boxes) / sides
    return jnp.concatenate([boxes[..., :2] - cells[None], jnp.log(boxes[..., 2:] + 1e-8)], axis=-1)
