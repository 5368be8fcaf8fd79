"""YOLO v1's loss: one sum of squared errors for where boxes are, what they are, and if at all."""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int32

from jaxvision.losses.forward import forward
from jaxvision.ops.iou import intersection_and_union
from jaxvision.ops.matching import assign_to_cells
from jaxvision.ops.precision import at_least_float32
from jaxvision.ops.yolov1 import CellPredictions, cell_boxes, split_yolov1
from jaxvision.types import Array, Batch, LossFn, PerChannel

ClassLoss = Literal["squared_error", "cross_entropy"]


class CellTargets(NamedTuple):
    """What the cells of one picture should say; where `has_object` is False, zeros."""

    has_object: Bool[Array, "rows columns"]
    centers: Float[Array, "rows columns 2"]
    size_roots: Float[Array, "rows columns 2"]
    labels: Int32[Array, "rows columns"]


def cell_targets(
    boxes: Float[Array, "m 4"],
    labels: Int32[Array, " m"],
    size: tuple[int, int],
    grid_size: tuple[int, int],
    valid: Bool[Array, " m"] | None = None,
) -> CellTargets:
    """Returns for each cell the object whose centre is in it (`assign_to_cells`), as YOLO codes it.

    Boxes are in pixels of a picture of `size` (h, w). Of two objects in one cell only the first one
    is learnt. Objects that are not `valid` are no one's, even where they hold NaN.

    >>> box, label = jnp.array([[8.0, 0.0, 12.0, 16.0]]), jnp.array([3])
    >>> targets = jax.jit(cell_targets, static_argnums=(2, 3))(box, label, (16, 16), (2, 2))
    >>> targets.has_object.tolist(), targets.centers.tolist()[1][1]
    ([[False, False], [False, True]], [0.25, 0.0])
    >>> targets.size_roots.tolist()[1][1]
    [0.5, 1.0]
    """
    rows, columns = grid_size
    h, w = size
    index = assign_to_cells(boxes, size, grid_size, valid)
    has_object = index >= 0
    if boxes.shape[0] == 0:
        nothing = jnp.zeros((rows, columns, 2))
        return CellTargets(has_object, nothing, nothing, jnp.zeros((rows, columns), jnp.int32))
    chosen = jnp.where(has_object[..., None], boxes[index], 0.0)  # padding may hold NaN
    dtype = jnp.promote_types(chosen.dtype, jnp.float32)
    x1, y1, x2, y2 = (chosen[..., i].astype(dtype) for i in range(4))
    x = (x1 + x2) / 2 * columns / w - jnp.arange(columns)[None, :]
    y = (y1 + y2) / 2 * rows / h - jnp.arange(rows)[:, None]
    centers = jnp.where(has_object[..., None], jnp.stack([x, y], axis=-1), 0.0)
    size_roots = jnp.sqrt(jnp.stack([(x2 - x1) / w, (y2 - y1) / h], axis=-1))
    return CellTargets(has_object, centers, size_roots, jnp.where(has_object, labels[index], 0))


def responsible_predictors(
    predicted: Float[Array, "*b rows columns n 4"], truth: Float[Array, "*b rows columns 4"]
) -> tuple[Bool[Array, "*b rows columns n"], Float[Array, "*b rows columns n"]]:
    """Returns which of a cell's n boxes is responsible for its object, and each one's IoU with it.

    It is the box of the highest IoU, the first of equal ones; where none touches the object, as in
    the author's code, that of the smallest root mean square distance of centre, width and height.
    Boxes are (x1, y1, x2, y2) in shares of the picture. Neither result has a gradient.

    >>> truth = jnp.array([0.0, 0.0, 0.5, 0.5]).reshape(1, 1, 4)
    >>> boxes = jnp.array([[0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.5, 0.5]]).reshape(1, 1, 2, 4)
    >>> responsible, iou = jax.jit(responsible_predictors)(boxes, truth)
    >>> responsible.tolist(), iou.tolist()
    ([[[False, True]]], [[[0.5, 1.0]]])
    """
    predicted = jax.lax.stop_gradient(predicted)
    truth = jnp.broadcast_to(jax.lax.stop_gradient(truth)[..., None, :], predicted.shape)
    intersection, union = intersection_and_union(predicted, truth)
    iou = jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0.0)
    differences = predicted - truth
    low, high = differences[..., :2], differences[..., 2:]
    distance = (((low + high) / 2) ** 2 + (high - low) ** 2).sum(axis=-1)  # monotone in the RMS
    touched = iou.max(axis=-1, keepdims=True) > 0
    best = jnp.where(touched, iou, -distance).argmax(axis=-1)
    responsible = best[..., None] == jnp.broadcast_to(
        jnp.arange(iou.shape[-1]), (*best.shape, iou.shape[-1])
    )
    return responsible, iou


def yolov1_terms(
    parts: CellPredictions,
    targets: CellTargets,
    *,
    lambda_coord: float = 5.0,
    lambda_noobj: float = 0.5,
) -> dict[str, Float[Array, "*b"]]:
    """Returns the five terms of the paper's equation 3, each summed over the cells of a picture.

    With their weights, in the paper's order: `center_loss` (x, y) and `size_loss` (square roots of
    width and height), both of the responsible box alone and times `lambda_coord`; `object_loss`, of
    the responsible box's confidence, which should be its IoU with the object (section 2: no
    gradient flows through that); `no_object_loss`, of all other confidences, which should be 0,
    times `lambda_noobj`; `class_loss`, of the cells that have an object.
    """
    has_object = targets.has_object
    true_boxes = cell_boxes(targets.centers[..., None, :], targets.size_roots[..., None, :])
    responsible, iou = responsible_predictors(
        cell_boxes(parts.centers, parts.size_roots), true_boxes[..., 0, :]
    )
    responsible &= has_object[..., None]

    def squares(values, wanted, where):
        errors = jnp.where(where, values - wanted, 0.0)
        return jnp.square(errors).sum(axis=tuple(range(has_object.ndim - 2, errors.ndim)))

    center_error = squares(parts.centers, targets.centers[..., None, :], responsible[..., None])
    size_error = squares(parts.size_roots, targets.size_roots[..., None, :], responsible[..., None])
    true_classes = jax.nn.one_hot(targets.labels, parts.class_scores.shape[-1])
    return {
        "center_loss": lambda_coord * center_error,
        "size_loss": lambda_coord * size_error,
        "object_loss": squares(parts.confidences, iou, responsible),
        "no_object_loss": lambda_noobj * squares(parts.confidences, 0.0, ~responsible),
        "class_loss": squares(parts.class_scores, true_classes, has_object[..., None]),
    }


def yolov1_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    lambda_coord: float = 5.0,
    lambda_noobj: float = 0.5,
    class_loss: ClassLoss = "squared_error",
    class_weight: float = 1.0,
) -> LossFn:
    """Returns YOLO v1's `loss_fn(params, batch_stats, batch, key, train=True)`: equation 3.

    The batch is one for detection: `image` [b, h, w, c], uint8 or float in [0, 1]; `boxes` [b, m,
    4] in pixels, `labels` int [b, m] and, where objects are padded, `box_valid` bool [b, m]; where
    the batch is padded, `valid` bool [b]. The model is a `YOLOv1`; the grid is that of its outputs.
    The loss is the mean over valid pictures of the sum of `yolov1_terms`, which are the metrics
    besides. Objects marked as difficult are learnt like all others.

    `class_loss="cross_entropy"` puts -log of the true class's probability in the place of its
    squared errors; that needs a model with `bounded=True`, whose classes are a softmax. Then the
    gradient is what the author's code computes with `softmax=1`, but for a factor of 2.
    `class_weight` multiplies that term, 1 in the paper.
    """
    num_classes, bounded = model.num_classes, model.bounded
    if class_loss not in ("squared_error", "cross_entropy"):
        raise ValueError(f"expected squared_error or cross_entropy, got {class_loss!r}")
    if class_loss == "cross_entropy" and not bounded:
        raise ValueError("expected a model with bounded=True for class_loss='cross_entropy'")

    def loss_fn(params, batch_stats, batch: Batch, key, train: bool = True):
        outputs, batch_stats = forward(
            model, params, batch_stats, batch, key, train=train, mean=mean, std=std
        )
        b, rows, columns, _ = outputs.shape
        outputs = at_least_float32(outputs)
        valid = jnp.asarray(batch["valid"]) if "valid" in batch else jnp.ones(b, bool)
        outputs = jnp.where(valid[:, None, None, None], outputs, 0.0)
        boxes, labels = jnp.asarray(batch["boxes"]), jnp.asarray(batch["labels"])
        box_valid = jnp.asarray(batch.get("box_valid", jnp.ones(labels.shape, bool)))
        box_valid &= valid[:, None]
        size = batch["image"].shape[1:3]
        targets = jax.vmap(
            lambda boxes, labels, ok: cell_targets(boxes, labels, size, (rows, columns), ok)
        )(boxes, labels, box_valid)
        parts = split_yolov1(outputs, num_classes, bounded=bounded)
        terms = yolov1_terms(parts, targets, lambda_coord=lambda_coord, lambda_noobj=lambda_noobj)
        if class_loss == "cross_entropy":
            logits = outputs[..., -num_classes:]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets.labels)
            terms["class_loss"] = jnp.where(targets.has_object, losses, 0.0).sum(axis=(1, 2))
        terms["class_loss"] = class_weight * terms["class_loss"]
        count = jnp.maximum(valid.sum(), 1)
        metrics = {name: jnp.sum(term, where=valid) / count for name, term in terms.items()}
        loss = sum(metrics.values())
        return loss, (batch_stats, {**metrics, "loss": loss})

    return loss_fn
