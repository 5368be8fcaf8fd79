"""How far boxes overlap: intersection over union, and its generalised, distance and complete forms.

Boxes are (x1, y1, x2, y2), see `boxes.py`. The pairwise functions compare each of n boxes with each
of m, as torchvision's do; those of `losses/boxes.py` compare boxes one to one. The arithmetic is
torchvision's, operation by operation, in float32 or better: on the CPU the IoUs are equal to the
last bit, and with them every comparison with a threshold, every tie.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvision.ops.boxes import corners
from jaxvision.types import Array


def box_iou(boxes1: Float[Array, "n 4"], boxes2: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Returns the area that two boxes share over the area that they cover, 0 to 1, in float32.

    Two boxes without area give NaN, 0/0; a box that is turned around (x2 < x1) overlaps nothing.

    >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 2.0, 2.0]])
    >>> box_iou(boxes, boxes[:1]).tolist()
    [[1.0], [0.5]]
    """
    intersection, union = intersection_and_union(*_pairs(boxes1, boxes2))
    return intersection / union


def generalized_box_iou(
    boxes1: Float[Array, "n 4"], boxes2: Float[Array, "m 4"]
) -> Float[Array, "n m"]:
    """Returns IoU - (C - union) / C, where C is the area of the smallest box around both.

    GIoU, arXiv:1902.09630, algorithm 1: -1 to 1, and still a slope where boxes don't touch.

    >>> boxes = jnp.array([[0.0, 0.0, 1.0, 1.0], [3.0, 0.0, 4.0, 1.0]])
    >>> generalized_box_iou(boxes, boxes[:1]).tolist()
    [[1.0], [-0.5]]
    """
    return generalized_iou(*_pairs(boxes1, boxes2), eps=0.0)


def distance_box_iou(
    boxes1: Float[Array, "n 4"], boxes2: Float[Array, "m 4"], eps: float = 1e-7
) -> Float[Array, "n m"]:
    """Returns IoU - d^2 / c^2: d between the centres, c across the smallest box around both.

    DIoU, arXiv:1911.08287, equation 7. `eps` is added to c^2.

    >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [2.0, 2.0, 4.0, 4.0]])
    >>> distance_box_iou(boxes, boxes[:1]).tolist()
    [[1.0], [-0.25]]
    """
    return distance_iou(*_pairs(boxes1, boxes2), eps=eps)[0]


def complete_box_iou(
    boxes1: Float[Array, "n 4"], boxes2: Float[Array, "m 4"], eps: float = 1e-7
) -> Float[Array, "n m"]:
    """Returns distance IoU - alpha v, where v compares the aspect ratios of the two boxes.

    CIoU, arXiv:1911.08287, equations 8 to 11: v = 4 / pi^2 (atan(w / h) - atan(w' / h'))^2 and
    alpha = v / (1 - IoU + v), which has no gradient.

    >>> box, lower = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[0.0, 0.0, 2.0, 1.0]])
    >>> round(float(complete_box_iou(box, lower)[0, 0]), 4)
    0.4655
    """
    boxes1, boxes2 = _pairs(boxes1, boxes2)
    distance, iou = distance_iou(boxes1, boxes2, eps=eps)
    return distance - aspect_penalty(boxes1, boxes2, iou, eps)


# ---------------------------------------------------- of boxes whose leading axes broadcast
def intersection_and_union(
    boxes1: Float[Array, "*#n 4"], boxes2: Float[Array, "*#n 4"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns the areas in float32 or better. Where boxes share no area there is no gradient."""
    ax1, ay1, ax2, ay2 = corners(boxes1)
    bx1, by1, bx2, by2 = corners(boxes2)
    intersection = overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2)
    area1 = unfused((ax2 - ax1) * (ay2 - ay1))
    area2 = unfused((bx2 - bx1) * (by2 - by1))
    return intersection, area1 + area2 - intersection


def overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Returns the area that is shared, of coordinates that broadcast."""
    w = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    h = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    return unfused(jnp.where(w > 0, w, 0) * jnp.where(h > 0, h, 0))


def unfused(product):
    """Returns the product, kept apart from a sum that it goes into.

    XLA would round a * b + c once, where torch, without a fused multiply-add, rounds twice.
    """
    return jnp.maximum(product, jnp.finfo(product.dtype).min)


def generalized_iou(boxes1, boxes2, eps):
    """Returns the generalised IoU, with `eps` added to what is divided by."""
    intersection, union = intersection_and_union(boxes1, boxes2)
    w, h = _sides_around(boxes1, boxes2)
    around = w * h
    return intersection / (union + eps) - (around - union) / (around + eps)


def distance_iou(boxes1, boxes2, eps, union_eps=0.0):
    """Returns (distance IoU, IoU)."""
    intersection, union = intersection_and_union(boxes1, boxes2)
    iou = intersection / (union + union_eps)
    w, h = _sides_around(boxes1, boxes2)
    ax1, ay1, ax2, ay2 = corners(boxes1)
    bx1, by1, bx2, by2 = corners(boxes2)
    dx, dy = (ax1 + ax2) / 2 - (bx1 + bx2) / 2, (ay1 + ay2) / 2 - (by1 + by2) / 2
    return iou - (dx**2 + dy**2) / (w**2 + h**2 + eps), iou


def aspect_penalty(boxes1, boxes2, iou, eps):
    """Returns alpha v of the complete IoU."""
    ax1, ay1, ax2, ay2 = corners(boxes1)
    bx1, by1, bx2, by2 = corners(boxes2)
    angle = jnp.arctan((ax2 - ax1) / (ay2 - ay1)) - jnp.arctan((bx2 - bx1) / (by2 - by1))
    v = 4 / math.pi**2 * angle**2
    alpha = jax.lax.stop_gradient(v / (1 - iou + v + eps))
    return alpha * v


def _sides_around(boxes1, boxes2):
    ax1, ay1, ax2, ay2 = corners(boxes1)
    bx1, by1, bx2, by2 = corners(boxes2)
    w = jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1)
    h = jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)
    return w, h


def _pairs(boxes1, boxes2):
    return jnp.asarray(boxes1)[:, None, :], jnp.asarray(boxes2)[None, :, :]
