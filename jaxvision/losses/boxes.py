"""Losses between boxes, one to one: smooth L1, and 1 - generalised, distance or complete IoU.

Boxes are (x1, y1, x2, y2). The definitions are torchvision's. A loss is one number a pair, for the
caller to sum; a padded pair (`valid` False) adds nothing to loss or gradient, even when it holds
NaN. Losses are float32 or better, also of bfloat16 boxes.
"""

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxvision.ops.iou import aspect_penalty, distance_iou, generalized_iou
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array


def smooth_l1(errors: Float[Array, "*n"], beta: int | float = 1.0) -> Float[Array, "*n"]:
    """Returns 0.5 e^2 / beta where |e| < beta, else |e| - 0.5 beta, of each error e.

    Fast R-CNN, arXiv:1504.08083, equation 3. torchvision's RPN and box heads have beta 1/9; with
    beta 0 it is L1. Padding: set the errors to 0 first, as `where(valid, errors, 0)`.

    >>> smooth_l1(jnp.array([0.5, -3.0])).tolist()
    [0.125, 2.5]
    """
    if beta < 0:
        raise ValueError(f"expected beta of at least 0, got {beta}")
    errors = jnp.asarray(errors)
    errors = at_least_float32(errors)
    size = errors * jnp.sign(errors)  # the gradient of abs is 1 at 0, and so in all padding
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def generalized_box_iou_loss(
    boxes1: Float[Array, "*n 4"],
    boxes2: Float[Array, "*n 4"],
    valid: Bool[Array, "*n"] | None = None,
    eps: float = 1e-7,
) -> Float[Array, "*n"]:
    """Returns 1 - generalised IoU of each pair, 0 to 2 (arXiv:1902.09630).

    >>> box = jnp.array([0.0, 0.0, 1.0, 1.0])
    >>> float(generalized_box_iou_loss(box, box + jnp.array([3.0, 0.0, 3.0, 0.0])))
    1.5
    """
    boxes1, boxes2 = _without_padding(boxes1, boxes2, valid)
    return _where_valid(1 - generalized_iou(boxes1, boxes2, eps), valid)


def distance_box_iou_loss(
    boxes1: Float[Array, "*n 4"],
    boxes2: Float[Array, "*n 4"],
    valid: Bool[Array, "*n"] | None = None,
    eps: float = 1e-7,
) -> Float[Array, "*n"]:
    """Returns 1 - distance IoU of each pair, 0 to 2 (arXiv:1911.08287, equation 7).

    >>> box = jnp.array([0.0, 0.0, 2.0, 2.0])
    >>> float(distance_box_iou_loss(box, box + 2.0))
    1.25
    """
    boxes1, boxes2 = _without_padding(boxes1, boxes2, valid)
    return _where_valid(1 - distance_iou(boxes1, boxes2, eps, union_eps=eps)[0], valid)


def complete_box_iou_loss(
    boxes1: Float[Array, "*n 4"],
    boxes2: Float[Array, "*n 4"],
    valid: Bool[Array, "*n"] | None = None,
    eps: float = 1e-7,
) -> Float[Array, "*n"]:
    """Returns 1 - complete IoU of each pair (arXiv:1911.08287, equations 8 to 11).

    >>> box = jnp.array([0.0, 0.0, 2.0, 2.0])
    >>> round(float(complete_box_iou_loss(box, jnp.array([0.0, 0.0, 2.0, 1.0]))), 4)
    0.5345
    """
    boxes1, boxes2 = _without_padding(boxes1, boxes2, valid)
    distance, iou = distance_iou(boxes1, boxes2, eps, union_eps=eps)
    return _where_valid(1 - distance + aspect_penalty(boxes1, boxes2, iou, eps), valid)


def _without_padding(boxes1, boxes2, valid):
    """Puts a harmless pair where there is none, so that no NaN gets into the gradient."""
    if valid is None:
        return boxes1, boxes2
    unit = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0], boxes1.dtype), boxes1.shape)
    return tuple(jnp.where(valid[..., None], boxes, unit) for boxes in (boxes1, boxes2))


def _where_valid(losses, valid):
    return losses if valid is None else jnp.where(valid, losses, 0.0)
