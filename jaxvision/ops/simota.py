"""SimOTA: which cells of YOLOX learn which object (arXiv:2107.08430, section 2.3).

One picture at a time; callers vmap. Objects are padded to m, with a mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Int32

from jaxvision.ops.iou import box_iou
from jaxvision.types import Array

IOU_WEIGHT = 3.0
"""How much -log(IoU) counts in the cost, against the cross-entropy of the classes."""
OUTSIDE_COST = 100_000.0
"""Added where a cell is not both inside of the object's box and near its centre."""


class Assignment(NamedTuple):
    """For each cell the object that it learns, -1 for none, and the IoU of its box with it."""

    matched: Int32[Array, "*b a"]
    iou: Float[Array, "*b a"]


def simota(
    boxes: Float[Array, "a 4"],
    objectness_logits: Float[Array, " a"],
    class_logits: Float[Array, "a k"],
    points: Float[Array, "a 2"],
    strides: Float[Array, " a"],
    gt_boxes: Float[Array, "m 4"],
    gt_labels: Int[Array, " m"],
    valid: Bool[Array, " m"] | None = None,
    *,
    center_radius: float = 2.5,
    num_candidates: int = 10,
) -> Assignment:
    """Returns which of m objects each of a cells learns, by what the network now says of them.

    `boxes` are the cells' predicted boxes and `points` their middles (x, y), in pixels. Candidates
    are the cells whose middle is inside of some object's box, or less than `center_radius` of its
    own strides from its centre in x and in y: so an object without a cell's middle in it has
    candidates too, unless it is outside of the picture. Of the candidates an object takes the k
    cheapest, where the cost is cross-entropy of the scores' square roots + 3 * -log(IoU), and
    100,000 more where a cell is not both inside of that object and near its centre; k is the sum
    of its `num_candidates` best IoUs, rounded down, at least 1. A cell that several objects took
    learns the one for which it is cheapest; of equal costs the first wins. Objects that are not
    `valid` are nothing, even where they hold NaN.

    This is Megvii's YOLOX 0.3, in float32 too. (Its later versions take a radius of 1.5, and no
    cell inside of a box but away from its centre.) There is no gradient.

    >>> points = jnp.array([[4.0, 4.0], [12.0, 4.0], [60.0, 4.0]])
    >>> boxes = jnp.concatenate([points - 4, points + 4], axis=1)
    >>> outputs, strides = (jnp.zeros(3), jnp.zeros((3, 1))), jnp.full(3, 8.0)
    >>> one = jax.jit(simota)(boxes, *outputs, points, strides, boxes[1:2], jnp.array([0]))
    >>> one.matched.tolist(), one.iou.tolist()
    ([-1, 0, -1], [0.0, 1.0, 0.0])
    """
    (a, k), m = class_logits.shape, gt_labels.shape[0]
    if a == 0 or m == 0:
        return Assignment(jnp.full(a, -1, jnp.int32), jnp.zeros(a, boxes.dtype))
    valid = jnp.ones(m, bool) if valid is None else valid
    boxes, objectness_logits, class_logits, gt_boxes = jax.lax.stop_gradient(
        (boxes, objectness_logits, class_logits, gt_boxes)
    )
    gt_boxes = jnp.where(valid[:, None], gt_boxes, 0.0)
    inside, near = _where_cells_are(points, strides, gt_boxes, center_radius)
    possible = ((inside | near) & valid[:, None]).any(axis=0, keepdims=True) & valid[:, None]

    iou = box_iou(gt_boxes, boxes)
    iou = jnp.where(possible & (iou > 0), iou, 0.0)  # NaN, of two boxes without area, is 0 too
    labels = jax.nn.one_hot(gt_labels, k, dtype=iou.dtype)
    cost = _class_cost(objectness_logits, class_logits, labels) - IOU_WEIGHT * jnp.log(iou + 1e-8)
    cost = cost + OUTSIDE_COST * ~(inside & near)
    cost = jnp.where(possible, cost, jnp.inf)

    numbers = jnp.arange(m, dtype=jnp.int32)[:, None]
    taken = _cheapest(cost, iou, min(num_candidates, a))
    # The first of the smallest; XLA's CPU code for this is faster than for argmin.
    cheapest = jnp.where(cost == cost.min(axis=0)[None, :], numbers, m).min(axis=0)
    only = jnp.where(taken, numbers, m).min(axis=0)
    count = taken.sum(axis=0)
    matched = jnp.where(count == 0, -1, jnp.where(count == 1, only, cheapest)).astype(jnp.int32)
    return Assignment(matched, jnp.where(numbers == matched[None, :], iou, 0.0).sum(axis=0))


def _where_cells_are(points, strides, gt_boxes, center_radius):
    """Returns [m, a]: which cells are inside of each box, and which near its centre."""
    x, y = points[None, :, 0], points[None, :, 1]
    x1, y1, x2, y2 = (gt_boxes[:, i, None] for i in range(4))
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    reach = center_radius * strides[None, :]
    near = (abs(x - (x1 + x2) / 2) < reach) & (abs(y - (y1 + y2) / 2) < reach)
    return inside, near


def _class_cost(objectness_logits, class_logits, labels):
    """Returns [m, a]: binary cross-entropy of sqrt(score) and the label, summed over classes."""
    score = jax.nn.sigmoid(class_logits) * jax.nn.sigmoid(objectness_logits)[:, None]
    root = jnp.sqrt(score)
    # torch's cross-entropy takes no logarithm to be below -100.
    if_yes, if_no = -jnp.maximum(jnp.log(root), -100), -jnp.maximum(jnp.log1p(-root), -100)
    # At full precision, because a GPU or TPU would multiply with fewer digits.
    product = "mk,ak->ma"
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum(product, labels, if_yes, precision=highest) + jnp.einsum(
        product, 1 - labels, if_no, precision=highest
    )


def _cheapest(cost, iou, num_candidates):
    """Returns [m, a]: which cells are among the k cheapest of each object, k by the IoUs."""
    best = jax.lax.top_k(iou, num_candidates)[0]
    k = jnp.maximum(best.sum(axis=1).astype(jnp.int32), 1)
    costs, places = jax.lax.top_k(-cost, num_candidates)
    last = (k - 1)[:, None]
    dearest = -jnp.take_along_axis(costs, last, axis=1)
    place = jnp.take_along_axis(places, last, axis=1)
    # Of equal costs top_k has the first cells.
    cells = jnp.arange(cost.shape[1])[None, :]
    return jnp.isfinite(cost) & ((cost < dearest) | ((cost == dearest) & (cells <= place)))
