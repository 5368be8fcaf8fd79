"""YOLO v1's outputs: what each number of a cell means, and the boxes and scores they make.

Redmon et al., arXiv:1506.02640, section 2. The network divides the picture into S x S cells. For
each cell it returns B * 5 + C numbers: B times (x, y, w, h, confidence), then C classes. (x, y) is
the centre of a box within its cell, from its top left corner (0, 0) to its bottom right one (1, 1);
w and h are the *square roots* of width and height as shares of the picture's, as the author's code
has them (section 2.2: so an error of a pixel counts more in a small box).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxvision.ops.boxes import Size
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array


class CellPredictions(NamedTuple):
    """What a network says of each cell: n boxes, and one set of k class scores for all of them."""

    centers: Float[Array, "*b rows columns n 2"]
    size_roots: Float[Array, "*b rows columns n 2"]
    confidences: Float[Array, "*b rows columns n"]
    class_scores: Float[Array, "*b rows columns k"]


def split_yolov1(
    outputs: Float[Array, "*b rows columns c"], num_classes: int, *, bounded: bool = False
) -> CellPredictions:
    """Returns the parts of YOLO v1's raw outputs, in float32 or better.

    By default the outputs are these quantities themselves, as in the paper, whose last layer is
    linear: nothing keeps a centre in its cell or a probability below 1. With `bounded` centres,
    roots and confidences are the sigmoids of the outputs, and the classes their softmax: the
    author's code has that as `softmax=1`.

    >>> cell = jnp.array([0.5, 0.25, 0.6, 0.8, 0.9, 0.0, 1.0]).reshape(1, 1, 7)
    >>> parts = split_yolov1(cell, num_classes=2)
    >>> parts.centers.tolist(), round(float(parts.confidences[0, 0, 0]), 3)
    ([[[[0.5, 0.25]]]], 0.9)
    """
    *leading, channels = outputs.shape
    num_boxes, rest = divmod(channels - num_classes, 5)
    if num_classes < 1 or num_boxes < 1 or rest:
        raise ValueError(
            f"expected 5 numbers a box and 1 a class in each cell, got {channels} for "
            f"{num_classes} classes"
        )
    outputs = at_least_float32(outputs)
    boxes = outputs[..., : 5 * num_boxes].reshape(*leading, num_boxes, 5)
    classes = outputs[..., 5 * num_boxes :]
    if bounded:
        boxes, classes = jax.nn.sigmoid(boxes), jax.nn.softmax(classes, axis=-1)
    return CellPredictions(boxes[..., :2], boxes[..., 2:4], boxes[..., 4], classes)


def cell_boxes(
    centers: Float[Array, "*b rows columns n 2"], size_roots: Float[Array, "*b rows columns n 2"]
) -> Float[Array, "*b rows columns n 4"]:
    """Returns (x1, y1, x2, y2) in shares of the picture: 0 to 1 from its left or top to its end.

    A negative root stands for the same size as a positive one: it is squared.

    >>> halves = jnp.full((2, 2, 1, 2), 0.5)
    >>> jax.jit(cell_boxes)(halves, halves).tolist()[1][0]
    [[0.125, 0.625, 0.375, 0.875]]
    """
    rows, columns = centers.shape[-4:-2]
    shape = (*(1,) * (centers.ndim - 4), rows, columns, 1)
    left = jnp.broadcast_to(jnp.arange(columns, dtype=centers.dtype)[None, :, None], shape)
    top = jnp.broadcast_to(jnp.arange(rows, dtype=centers.dtype)[:, None, None], shape)
    x, y = (left + centers[..., 0]) / columns, (top + centers[..., 1]) / rows
    half_w, half_h = size_roots[..., 0] ** 2 / 2, size_roots[..., 1] ** 2 / 2
    return jnp.stack([x - half_w, y - half_h, x + half_w, y + half_h], axis=-1)


def decode_yolov1(
    outputs: Float[Array, "b rows columns c"],
    size: Size,
    num_classes: int,
    *,
    bounded: bool = False,
) -> tuple[Float[Array, "b n 4"], Float[Array, "b n k"]]:
    """Returns all boxes, in pixels of the network's input of `size` (h, w), and their scores.

    The score of a box and a class is the class's probability times the box's confidence (the
    paper's equation 1). A linear output below 0 counts as 0, because two of them would otherwise
    make a score above 0. Boxes are not clipped; there are n = rows * columns * B of them, those of
    the first row of cells first, of the first cell first. `bounded` is as in `split_yolov1`.

    >>> cell = jnp.array([0.5, 0.5, 0.5, 1.0, 0.8, 0.25, 0.75]).reshape(1, 1, 1, 7)
    >>> decode = jax.jit(decode_yolov1, static_argnames="num_classes")
    >>> boxes, scores = decode(cell, (100, 200), num_classes=2)
    >>> boxes.tolist(), [round(score, 2) for score in scores.ravel().tolist()]
    ([[[75.0, 0.0, 125.0, 100.0]]], [0.2, 0.6])
    """
    parts = split_yolov1(outputs, num_classes, bounded=bounded)
    boxes = cell_boxes(parts.centers, parts.size_roots)
    h, w = size
    scale = jnp.stack([jnp.asarray(side, boxes.dtype) for side in (w, h, w, h)])
    boxes = boxes * jnp.broadcast_to(scale, boxes.shape)
    confidences = jnp.maximum(parts.confidences, 0)[..., None]
    scores = confidences * jnp.maximum(parts.class_scores, 0)[..., None, :]
    b = outputs.shape[0]
    return boxes.reshape(b, -1, 4), scores.reshape(b, -1, num_classes)
