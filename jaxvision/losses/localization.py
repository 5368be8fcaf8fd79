"""Localisation: what the one object of a picture is, and where, in one loss for both."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxvision.losses.boxes import generalized_box_iou_loss, smooth_l1
from jaxvision.losses.classification import cross_entropy
from jaxvision.losses.forward import forward
from jaxvision.metrics import accuracy
from jaxvision.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from jaxvision.ops.iou import intersection_and_union
from jaxvision.types import Array, Batch, LossFn, PerChannel

BoxLoss = Literal["smooth_l1", "giou"]
CORRECT_IOU = 0.5
"""A box that overlaps the true one by less is in the wrong place (ImageNet's localisation task)."""


def decode_picture_boxes(
    box_deltas: Float[Array, "b 4"], size: tuple[int, int]
) -> Float[Array, "b 4"]:
    """Returns the boxes in pixels, within pictures of `size` (h, w), that a localizer predicts.

    The deltas are R-CNN's, with the whole picture as the anchor.

    >>> decode_picture_boxes(jnp.array([[0.0, 0.0, 0.0, jnp.log(0.5)]]), (100, 200)).tolist()
    [[0.0, 25.0, 200.0, 75.0]]
    """
    return clip_boxes(decode_boxes(box_deltas, _picture_box(size)), size)


def box_regression_loss(
    box_deltas: Float[Array, "b 4"],
    boxes: Float[Array, "b 4"],
    size: tuple[int, int],
    valid: Bool[Array, " b"] | None = None,
    kind: BoxLoss = "smooth_l1",
) -> Float[Array, ""]:
    """Returns the mean over valid examples of how far predicted boxes are from the true ones.

    "smooth_l1" compares the four deltas, as Fast R-CNN does (arXiv:1504.08083, equation 3, with a
    beta of 1/9), and adds up the four; "giou" is 1 - generalised IoU of the boxes
    (arXiv:1902.09630). A padded example adds nothing to loss or gradient, even when it holds NaN.

    >>> box = jnp.array([[0.0, 0.0, 50.0, 100.0]])
    >>> round(float(box_regression_loss(jnp.zeros((1, 4)), box, (100, 100), kind="giou")), 4)
    0.5
    """
    if valid is None:
        valid = jnp.ones(boxes.shape[:1], bool)
    picture = _picture_box(size)
    box_deltas = jnp.where(valid[:, None], box_deltas.astype(jnp.float32), 0.0)
    boxes = jnp.where(valid[:, None], boxes.astype(jnp.float32), picture)
    if kind == "smooth_l1":
        targets = encode_boxes(boxes, jnp.broadcast_to(picture, boxes.shape))
        losses = smooth_l1(box_deltas - targets, beta=1 / 9).sum(axis=1)
    elif kind == "giou":
        # In shares of the picture, so that no area is large against the loss's epsilon or small.
        scale = jnp.array([[size[1], size[0], size[1], size[0]]], jnp.float32)
        predicted = decode_boxes(box_deltas, _picture_box((1, 1)))
        losses = generalized_box_iou_loss(predicted, boxes / scale)
    else:
        raise ValueError(f"expected smooth_l1 or giou as the kind of box loss, got {kind!r}")
    return jnp.sum(losses, where=valid) / jnp.maximum(valid.sum(), 1)


def cell_cross_entropy(
    cell_logits: Float[Array, "b h w"],
    boxes: Float[Array, "b 4"],
    size: tuple[int, int],
    valid: Bool[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Returns the cross-entropy of the cells of a map and the shares of each box that they hold.

    The `h` x `w` cells divide pictures of `size` (their height and width) evenly. The mean is over
    valid examples; a padded one adds nothing, even when it holds NaN, and neither does a box that
    has no area within the picture.

    >>> box = jnp.array([[0.0, 0.0, 100.0, 50.0]])  # half of it in each of the upper cells
    >>> logits = jnp.log(jnp.array([[[0.5, 0.25], [0.2, 0.05]]]))
    >>> round(float(cell_cross_entropy(logits, box, (100, 100))), 4)  # -log(0.5 * 0.25) / 2
    1.0397
    """
    b, h, w = cell_logits.shape
    if valid is None:
        valid = jnp.ones((b,), bool)
    boxes = jnp.where(valid[:, None], boxes, 0.0)
    columns = _covered(boxes[:, 0], boxes[:, 2], size[1], w)
    rows = _covered(boxes[:, 1], boxes[:, 3], size[0], h)
    shares = rows[:, :, None] * columns[:, None, :]
    area = shares.sum(axis=(1, 2))
    valid = valid & (area > 0)
    shares = shares.reshape(b, h * w) / jnp.where(valid, area, 1.0).reshape(-1, 1)
    return cross_entropy(cell_logits.reshape(b, h * w), shares, valid)


def _covered(
    low: Float[Array, " b"], high: Float[Array, " b"], length: int, cells: int
) -> Float[Array, "b n"]:
    """Returns how many pixels of each of the cells along an axis are from `low` to `high`."""
    edges = jnp.linspace(0.0, length, cells + 1).reshape(1, -1)
    inside = jnp.clip(edges, low.reshape(-1, 1), high.reshape(-1, 1))
    return jnp.diff(inside, axis=1)


def localization_metrics(
    logits: Float[Array, "b k"],
    predicted: Float[Array, "b 4"],
    labels: Int[Array, " b"],
    boxes: Float[Array, "b 4"],
    valid: Bool[Array, " b"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Returns means over valid examples, of one object and one predicted box a picture.

    `accuracy`; `iou`, of the boxes; `localization_error`, the share of which the class is wrong or
    the IoU below 0.5: ImageNet's top-1 localisation error.
    """
    if valid is None:
        valid = jnp.ones(labels.shape, bool)
    intersection, union = intersection_and_union(predicted, boxes)
    iou = jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0.0)
    right = (logits.argmax(axis=1) == labels) & ~jnp.isnan(logits).any(axis=1)
    missed = ~(right & (iou >= CORRECT_IOU))
    count = jnp.maximum(valid.sum(), 1)
    return {
        "accuracy": accuracy(logits, labels, valid),
        "iou": jnp.sum(iou, where=valid) / count,
        "localization_error": jnp.sum(missed, where=valid) / count,
    }


def localization_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    box_loss: BoxLoss = "smooth_l1",
    box_weight: float = 1.0,
    cell_weight: float = 1.0,
) -> LossFn:
    """Returns the localisation task's `loss_fn(params, batch_stats, batch, key, train=True)`.

    The batch is one for detection: `image` [b, h, w, c], uint8 or float in [0, 1], `boxes` float
    [b, m, 4] in pixels and `labels` int [b, m], of which the first of each picture is taken; where
    some pictures have none, `box_valid` bool [b, m], and where it is padded, `valid` bool [b]. The
    model returns "logits" and "box_deltas", see `decode_picture_boxes`. The loss is cross-entropy
    + `box_weight` * `box_regression_loss` and, where the model returns "cell_logits",
    + `cell_weight` * `cell_cross_entropy`: told where to look, a network learns sooner what is
    there. The metrics are the loss, its parts, and those of `localization_metrics`.
    """

    def loss_fn(params, batch_stats, batch: Batch, key, train: bool = True):
        outputs, batch_stats = forward(
            model, params, batch_stats, batch, key, train=train, mean=mean, std=std
        )
        size = batch["image"].shape[1:3]
        labels, boxes = jnp.asarray(batch["labels"])[:, 0], jnp.asarray(batch["boxes"])[:, 0]
        valid = jnp.ones(labels.shape, bool)
        if "valid" in batch:
            valid &= jnp.asarray(batch["valid"])
        if "box_valid" in batch:
            valid &= jnp.asarray(batch["box_valid"])[:, 0]
        class_loss = cross_entropy(outputs["logits"], labels, valid)
        distance = box_regression_loss(outputs["box_deltas"], boxes, size, valid, box_loss)
        loss = class_loss + box_weight * distance
        predicted = decode_picture_boxes(outputs["box_deltas"].astype(jnp.float32), size)
        metrics = localization_metrics(outputs["logits"], predicted, labels, boxes, valid)
        if "cell_logits" in outputs:
            metrics["cell_loss"] = cell_cross_entropy(outputs["cell_logits"], boxes, size, valid)
            loss = loss + cell_weight * metrics["cell_loss"]
        metrics |= {"loss": loss, "class_loss": class_loss, "box_loss": distance}
        return loss, (batch_stats, metrics)

    return loss_fn


def _picture_box(size: tuple[int, int]) -> Float[Array, "1 4"]:
    h, w = size
    return jnp.array([[0.0, 0.0, w, h]], jnp.float32)
