"""Boxes: formats, clipping, moving them along with their picture, and R-CNN's box coder.

A box is (x1, y1, x2, y2) unless a name says otherwise: x to the right, y down, in pixels, between
pixels, so that the pixel in row 0 and column 0 is the box (0, 0, 1, 1). The four numbers are the
last axis; any axes before it are a batch. Sizes of pictures are (h, w), and may be traced. The
arithmetic is in float32 or better; results have the dtype of the boxes. `box_iou` and its kin are
in `iou.py`.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array

Size = tuple[int | float | Array, int | float | Array]
"""(height, width) of a picture in pixels."""

MAX_LOG_SCALE = math.log(1000 / 16)
"""By how much a decoded box may be larger than its anchor: a factor of 62.5, torchvision's."""


def xyxy_to_xywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns (x1, y1, width, height), as COCO writes boxes.

    >>> xyxy_to_xywh(jnp.array([1.0, 2.0, 4.0, 8.0])).tolist()
    [1.0, 2.0, 3.0, 6.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    return _stack([x1, y1, x2 - x1, y2 - y1], boxes)


def xywh_to_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns (x1, y1, x2, y2) of boxes given by corner, width and height.

    >>> xywh_to_xyxy(jnp.array([1.0, 2.0, 3.0, 6.0])).tolist()
    [1.0, 2.0, 4.0, 8.0]
    """
    x, y, w, h = corners(boxes)
    return _stack([x, y, x + w, y + h], boxes)


def xyxy_to_cxcywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns (centre x, centre y, width, height), as YOLO writes boxes.

    >>> xyxy_to_cxcywh(jnp.array([1.0, 2.0, 4.0, 8.0])).tolist()
    [2.5, 5.0, 3.0, 6.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    return _stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], boxes)


def cxcywh_to_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns (x1, y1, x2, y2) of boxes given by centre, width and height.

    >>> cxcywh_to_xyxy(jnp.array([2.5, 5.0, 3.0, 6.0])).tolist()
    [1.0, 2.0, 4.0, 8.0]
    """
    x, y, w, h = corners(boxes)
    return _stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], boxes)


def xywh_to_cxcywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns (centre x, centre y, width, height) of boxes given by corner, width and height.

    >>> xywh_to_cxcywh(jnp.array([1.0, 2.0, 3.0, 6.0])).tolist()
    [2.5, 5.0, 3.0, 6.0]
    """
    x, y, w, h = corners(boxes)
    return _stack([x + 0.5 * w, y + 0.5 * h, w, h], boxes)


def cxcywh_to_xywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Returns (x1, y1, width, height) of boxes given by centre, width and height.

    >>> cxcywh_to_xywh(jnp.array([2.5, 5.0, 3.0, 6.0])).tolist()
    [1.0, 2.0, 3.0, 6.0]
    """
    x, y, w, h = corners(boxes)
    return _stack([x - 0.5 * w, y - 0.5 * h, w, h], boxes)


def box_area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Returns (x2 - x1) * (y2 - y1) in float32; negative where one side is turned around.

    >>> box_area(jnp.array([[1.0, 2.0, 4.0, 8.0], [3.0, 3.0, 3.0, 9.0]])).tolist()
    [18.0, 0.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    return (x2 - x1) * (y2 - y1)


def clip_boxes(boxes: Float[Array, "*n 4"], size: Size) -> Float[Array, "*n 4"]:
    """Returns the boxes cut off at the borders of a picture of `size` (h, w).

    A box that lies outside keeps no area. The gradient passes where a coordinate is inside or on
    the border, as in torch.

    >>> clip_boxes(jnp.array([-5.0, 2.0, 30.0, 8.0]), (10, 20)).tolist()
    [0.0, 2.0, 20.0, 8.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    h, w = size
    return _stack([_clip(x1, w), _clip(y1, h), _clip(x2, w), _clip(y2, h)], boxes)


def boxes_at_least(boxes: Float[Array, "*n 4"], min_size: int | float) -> Bool[Array, "*n"]:
    """Returns which boxes are at least `min_size` wide and high; one that holds NaN is not.

    This is torchvision's remove_small_boxes with a mask, which keeps the shape fixed.

    >>> boxes_at_least(jnp.array([[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 9.0, 4.0]]), 5).tolist()
    [True, False]
    """
    x1, y1, x2, y2 = corners(boxes)
    return (x2 - x1 >= min_size) & (y2 - y1 >= min_size)


# ------------------------------------------------------------------------------------- the coder
def encode_boxes(
    boxes: Float[Array, "*n 4"],
    anchors: Float[Array, "*n 4"],
    weights: Sequence[int | float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*n 4"]:
    """Returns the deltas (dx, dy, dw, dh) that turn each anchor, or proposal, into its box.

    dx = wx (cx - cx_a) / w_a and dw = ww log(w / w_a), likewise in y: R-CNN (arXiv:1311.2524),
    appendix C. The `weights` are (10, 10, 5, 5) in torchvision's box heads and 1 in its RPN. Boxes
    or anchors without a positive area give infinities or NaN, as in torchvision: mask them.

    >>> anchor, box = jnp.array([0.0, 0.0, 10.0, 10.0]), jnp.array([5.0, 0.0, 15.0, 20.0])
    >>> [round(float(delta), 4) for delta in encode_boxes(box, anchor)]
    [0.5, 0.5, 0.0, 0.6931]
    """
    x, y, w, h = _centres_and_sides(boxes)
    anchor_x, anchor_y, anchor_w, anchor_h = _centres_and_sides(anchors)
    wx, wy, ww, wh = weights
    deltas = [
        wx * (x - anchor_x) / anchor_w,
        wy * (y - anchor_y) / anchor_h,
        ww * jnp.log(w / anchor_w),
        wh * jnp.log(h / anchor_h),
    ]
    return _stack(deltas, boxes)


def decode_boxes(
    deltas: Float[Array, "*#n 4"],
    anchors: Float[Array, "*#n 4"],
    weights: Sequence[int | float] = (1.0, 1.0, 1.0, 1.0),
    max_log_scale: float = MAX_LOG_SCALE,
) -> Float[Array, "*n 4"]:
    """Returns the boxes that `deltas` make of their anchors: what `encode_boxes` did, undone.

    dw and dh are cut off at `max_log_scale` before they go through exp. Leading axes broadcast:
    with deltas [n, k, 4], one set a class, give anchors [n, 1, 4]. The result has the wider dtype
    of the two.

    >>> anchor, deltas = jnp.array([0.0, 0.0, 8.0, 8.0]), jnp.array([0.5, 0.25, 0.0, 0.0])
    >>> decode_boxes(deltas, anchor).tolist()
    [4.0, 2.0, 12.0, 10.0]
    """
    anchor_x, anchor_y, anchor_w, anchor_h = _centres_and_sides(anchors)
    dx, dy, dw, dh = corners(deltas)
    wx, wy, ww, wh = weights
    dw, dh = _at_most(dw / ww, max_log_scale), _at_most(dh / wh, max_log_scale)
    x, y = (dx / wx) * anchor_w + anchor_x, (dy / wy) * anchor_h + anchor_y
    w, h = jnp.exp(dw) * anchor_w, jnp.exp(dh) * anchor_h
    boxes = jnp.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], axis=-1)
    return boxes.astype(jnp.result_type(deltas, anchors))


# -------------------------------------------------------------------------- along with a picture
def flip_boxes_horizontally(
    boxes: Float[Array, "*n 4"], width: int | float | Array
) -> Float[Array, "*n 4"]:
    """Returns the boxes in the picture whose columns are reversed.

    >>> flip_boxes_horizontally(jnp.array([1.0, 2.0, 4.0, 8.0]), 10).tolist()
    [6.0, 2.0, 9.0, 8.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    return _stack([width - x2, y1, width - x1, y2], boxes)


def flip_boxes_vertically(
    boxes: Float[Array, "*n 4"], height: int | float | Array
) -> Float[Array, "*n 4"]:
    """Returns the boxes in the picture whose rows are reversed.

    >>> flip_boxes_vertically(jnp.array([1.0, 2.0, 4.0, 8.0]), 20).tolist()
    [1.0, 12.0, 4.0, 18.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    return _stack([x1, height - y2, x2, height - y1], boxes)


def scale_boxes(boxes: Float[Array, "*n 4"], size: Size, new_size: Size) -> Float[Array, "*n 4"]:
    """Returns the boxes in the picture that is resized from `size` to `new_size`, both (h, w).

    >>> scale_boxes(jnp.array([1.0, 2.0, 4.0, 8.0]), (10, 10), (5, 20)).tolist()
    [2.0, 1.0, 8.0, 4.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    y_scale, x_scale = new_size[0] / size[0], new_size[1] / size[1]
    return _stack([x1 * x_scale, y1 * y_scale, x2 * x_scale, y2 * y_scale], boxes)


def rotate_boxes_90(boxes: Float[Array, "*n 4"], size: Size, turns: int) -> Float[Array, "*n 4"]:
    """Returns the boxes in the picture of `size` after `turns` quarter turns anticlockwise.

    As np.rot90 turns a picture, and exact. After an odd number of turns the picture's size is
    (w, h). `turns` is static under jit.

    >>> rotate_boxes_90(jnp.array([1.0, 2.0, 4.0, 8.0]), (10, 20), 1).tolist()
    [2.0, 16.0, 8.0, 19.0]
    """
    x1, y1, x2, y2 = corners(boxes)
    h, w = size
    turned = {
        0: [x1, y1, x2, y2],
        1: [y1, w - x2, y2, w - x1],
        2: [w - x2, h - y2, w - x1, h - y1],
        3: [h - y2, x1, h - y1, x2],
    }
    return _stack(turned[turns % 4], boxes)


def rotate_boxes(
    boxes: Float[Array, "*n 4"], size: Size, degrees: int | float | Array
) -> Float[Array, "*n 4"]:
    """Returns the smallest boxes around the boxes that turn with a picture about its centre.

    Anticlockwise as one sees it; the picture keeps its `size` (h, w), as with PIL's and
    torchvision's rotate, so boxes can end up outside: `clip_boxes` cuts them off. Around a box the
    result is larger than around what is in it.

    >>> turned = rotate_boxes(jnp.array([4.0, 4.0, 6.0, 6.0]), (10, 10), 45)
    >>> [round(float(number), 3) for number in turned]
    [3.586, 3.586, 6.414, 6.414]
    """
    x, y, w, h = _centres_and_sides(boxes)
    radians = jnp.deg2rad(jnp.asarray(degrees, x.dtype))
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    middle_y, middle_x = size[0] / 2, size[1] / 2
    dx, dy = x - middle_x, y - middle_y
    x, y = middle_x + cos * dx + sin * dy, middle_y - sin * dx + cos * dy
    cos, sin = jnp.abs(cos), jnp.abs(sin)
    half_w, half_h = (cos * w + sin * h) / 2, (sin * w + cos * h) / 2
    return _stack([x - half_w, y - half_h, x + half_w, y + half_h], boxes)


# ----------------------------------------------------------------------------------- the numbers
def corners(boxes: Float[Array, "*n 4"]) -> tuple[Array, Array, Array, Array]:
    """Returns the four numbers of each box apart, in float32 or better."""
    boxes = jnp.asarray(boxes)
    boxes = at_least_float32(boxes)
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _centres_and_sides(boxes):
    x1, y1, x2, y2 = corners(boxes)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h


def _stack(numbers, boxes):
    return jnp.stack(numbers, axis=-1).astype(jnp.result_type(boxes))


# With `where` and not with `maximum`, which would halve the gradient at the limit itself.
def _at_most(x, limit):
    return jnp.where(x > limit, limit, x)


def _clip(x, limit):
    return _at_most(jnp.where(x < 0, 0, x), limit)
