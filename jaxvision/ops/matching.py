"""Which box answers for which object: matching by IoU, sampling for a loss, YOLO's grid.

Shapes are fixed: objects are padded to m, with a mask `valid`, and a sample has the size that is
asked for, with a mask of what is in it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, PRNGKeyArray

from jaxvision.ops.boxes import Size, corners
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array

BELOW_LOW_THRESHOLD = -1
"""`match` gives this to a box that is background."""
BETWEEN_THRESHOLDS = -2
"""`match` gives this to a box that is neither: it should be left out of the loss."""


def match(
    iou: Float[Array, "m n"],
    high_threshold: int | float,
    low_threshold: int | float,
    allow_low_quality_matches: bool = False,
    valid: Bool[Array, " m"] | None = None,
) -> Int32[Array, " n"]:
    """Returns for each of n boxes the object among m that it overlaps most, or a negative number.

    `iou` is `box_iou(objects, boxes)`. A box belongs to its best object where their IoU is at least
    `high_threshold`; below `low_threshold` it gets BELOW_LOW_THRESHOLD (-1), else
    BETWEEN_THRESHOLDS (-2). With `allow_low_quality_matches` the boxes that are the best there are
    for some object, ties included, belong to *their* best object however low the IoU, so that no
    object goes without (arXiv:1506.01497, section 3.1.2). Of equal objects the first wins. Objects
    that are not `valid` match nothing; without any, all boxes are -1.

    This is torchvision's Matcher, for better or worse: an object that no box touches makes all
    boxes of IoU 0 its best, and a NaN, of two boxes without area, counts as the largest IoU.

    >>> iou = jnp.array([[0.8, 0.4, 0.1, 0.0], [0.0, 0.2, 0.1, 0.3]])
    >>> match(iou, 0.7, 0.3).tolist()
    [0, -2, -1, -2]
    >>> match(iou, 0.7, 0.3, allow_low_quality_matches=True).tolist()
    [0, -2, -1, 1]
    """
    if not low_threshold <= high_threshold:
        raise ValueError(f"expected thresholds in order, got {low_threshold} and {high_threshold}")
    m, n = iou.shape
    if m == 0:
        return jnp.full(n, BELOW_LOW_THRESHOLD, jnp.int32)
    iou = at_least_float32(iou)
    # Not NaN itself, because XLA's CPU code for a maximum loses it here and there under vmap.
    iou = jnp.where(jnp.isnan(iou), jnp.inf, iou)
    if valid is not None:
        iou = jnp.where(valid[:, None], iou, -1.0)
    best = iou.max(axis=0)
    # The first of the largest, as argmax has it, but XLA's CPU code for this is much faster.
    numbers = jnp.arange(m, dtype=jnp.int32)[:, None]
    best_object = jnp.where(iou == best[None, :], numbers, m).min(axis=0)
    matched = jnp.where(best < high_threshold, BETWEEN_THRESHOLDS, best_object)
    matched = jnp.where(best < low_threshold, BELOW_LOW_THRESHOLD, matched)
    if allow_low_quality_matches:
        best_of_object = iou.max(axis=1, keepdims=True)
        wanted = iou == best_of_object
        if valid is not None:
            wanted &= valid[:, None]
        matched = jnp.where(wanted.any(axis=0), best_object, matched)
    if valid is not None:
        matched = jnp.where(valid.any(), matched, BELOW_LOW_THRESHOLD)
    return matched


def match_every_object(
    iou: Float[Array, "m n"],
    threshold: int | float,
    valid: Bool[Array, " m"] | None = None,
) -> Int32[Array, " n"]:
    """Returns for each of n default boxes the object among m that it has, or -1: SSD's matching.

    Each object gets the box that it overlaps most, the first of equal ones, however low the IoU;
    of several objects with the same best box the last gets it. The other boxes have the object that
    they overlap most, where their IoU is at least `threshold` (arXiv:1512.02325, section 2.2, and
    torchvision's SSDMatcher). Objects that are not `valid` match nothing.

    >>> iou = jnp.array([[0.8, 0.6, 0.1], [0.3, 0.2, 0.0]])
    >>> jax.jit(match_every_object, static_argnums=1)(iou, 0.5).tolist()
    [1, 0, -1]
    """
    m, n = iou.shape
    matched = match(iou, threshold, threshold, valid=valid)
    if m == 0 or n == 0:
        return matched
    best = iou.argmax(axis=1).astype(jnp.int32)[:, None] == jnp.arange(n, dtype=jnp.int32)[None, :]
    if valid is not None:
        best &= valid[:, None]
    numbers = jnp.arange(m, dtype=jnp.int32)[:, None]
    own = jnp.where(best, numbers, BELOW_LOW_THRESHOLD).max(axis=0)
    return jnp.where(own >= 0, own, matched)


def match_places(
    boxes: Float[Array, "m 4"],
    squares: Sequence[Float[Array, "_ 4"]],
    valid: Bool[Array, " m"] | None = None,
    radius: float = 1.5,
) -> Int32[Array, " n"]:
    """Returns for each of n places of all maps the object among m that it answers for, or -1.

    A place is the middle of one of the `squares` of each map, the finest first, whose side is the
    map's stride s. It may answer for an object if it is inside, in each direction less than
    `radius` times s from the object's middle, and the farthest of the object's sides is between 4 s
    and 8 s away; for the finest map there is no lower bound, for the coarsest no upper one. Of
    several objects it takes the smallest, of equal ones the first. This is FCOS (arXiv:2006.09214,
    section 3.2) as torchvision has it, where areas within 8 square pixels are equal in float32.

    >>> squares = [jnp.array([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]])]
    >>> boxes = jnp.array([[7.0, 0.0, 17.0, 8.0], [0.0, 0.0, 60.0, 60.0]])
    >>> jax.jit(match_places)(boxes, squares).tolist()
    [-1, 0]
    """
    m, counts = boxes.shape[0], [len(each) for each in squares]
    if m == 0:
        return jnp.full(sum(counts), BELOW_LOW_THRESHOLD, jnp.int32)
    x1, y1, x2, y2 = (side[:, None] for side in corners(boxes))
    left, up, right, down = corners(jnp.concatenate([jnp.asarray(each) for each in squares]))
    x, y, side = ((left + right) / 2)[None, :], ((up + down) / 2)[None, :], (right - left)[None, :]
    off = jnp.maximum(jnp.abs(x - (x1 + x2) / 2), jnp.abs(y - (y1 + y2) / 2))
    away = jnp.stack([x - x1, y - y1, x2 - x, y2 - y])
    farthest = away.max(axis=0)
    level = np.repeat(np.arange(len(counts)), counts)[None, :]
    above = farthest > jnp.where(level == 0, 0, 4 * side)
    below = farthest < jnp.where(level == len(counts) - 1, jnp.inf, 8 * side)
    may = (off < radius * side) & (away.min(axis=0) > 0) & above & below
    if valid is not None:
        may &= valid[:, None]
    preference = jnp.where(may, 1e8 - (x2 - x1) * (y2 - y1), 0)
    best = preference.argmax(axis=0).astype(jnp.int32)
    return jnp.where(preference.max(axis=0) < 1e-5, BELOW_LOW_THRESHOLD, best)


class Sample(NamedTuple):
    """What was drawn, in fixed shapes: positives first, then negatives, then padding.

    `indices` are 0 where `valid` is False, so that gathering by them is always in range.
    """

    indices: Int32[Array, " size"]
    positive: Bool[Array, " size"]
    valid: Bool[Array, " size"]


def sample_balanced(
    key: PRNGKeyArray,
    positive: Bool[Array, " n"],
    negative: Bool[Array, " n"],
    size: int,
    positive_fraction: int | float,
) -> Sample:
    """Draws up to `size` of n boxes without replacement, at most a fixed share of them positive.

    At most int(size * positive_fraction) positives, and as many negatives as are missing to `size`,
    as far as there are any: torchvision's BalancedPositiveNegativeSampler. Boxes that are neither
    (ignored, or padding) are never drawn; each set of the right size is equally likely. The same
    key draws the same sample.

    >>> positive = np.array([True, True, True, False, False, False])
    >>> draw = jax.jit(sample_balanced, static_argnames=("size", "positive_fraction"))
    >>> sample = draw(jax.random.key(0), positive, ~positive, size=4, positive_fraction=0.25)
    >>> sample.positive.tolist(), sample.valid.tolist()
    ([True, False, False, False], [True, True, True, True])
    """
    n = positive.shape[0]
    most_positive = int(size * positive_fraction)
    num_positive = jnp.minimum(positive.sum(), most_positive)
    num_negative = jnp.minimum(negative.sum(), size - num_positive)
    if n == 0:
        nothing = jnp.zeros(size, bool)
        return Sample(jnp.zeros(size, jnp.int32), nothing, nothing)
    # The largest random numbers are the sample. 29 bits, read as positive floats, of which equal
    # ones are much rarer than of uniform ones; XLA's CPU code would sort integers as a whole.
    bits = (jax.random.bits(key, (n,), jnp.uint32) >> 3) + 2**23
    priority = jax.lax.bitcast_convert_type(bits, jnp.float32)
    count = min(size, n)
    positives = jax.lax.top_k(jnp.where(positive, priority, -1.0), min(most_positive, n))[1]
    negatives = jax.lax.top_k(jnp.where(negative, priority, -1.0), count)[1]
    slots = jnp.arange(size)
    is_positive = slots < num_positive
    valid = slots < num_positive + num_negative
    drawn = jnp.concatenate([negatives, positives])
    places = jnp.where(is_positive, count + slots, slots - num_positive)
    indices = drawn[jnp.where(valid, places, 0)]
    return Sample(jnp.where(valid, indices, 0).astype(jnp.int32), is_positive, valid)


def assign_to_cells(
    boxes: Float[Array, "m 4"],
    size: Size,
    grid_size: tuple[int, int],
    valid: Bool[Array, " m"] | None = None,
) -> Int32[Array, "rows columns"]:
    """Returns for each cell of YOLO's grid the object whose centre is in it, or -1.

    The picture of `size` (h, w) is divided into `grid_size` (rows, columns), S x S in
    arXiv:1506.02640, section 2: the cell with an object's centre is responsible for it. A centre on
    a line between cells belongs to the one to the right of it or below; on the picture's right or
    bottom border to the last cell. An object whose centre is outside the picture, or NaN, has no
    cell. Of several in one cell the first one wins, as in Darknet, and the others are not learnt.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 1.0, 8.0, 3.0], [1.0, 1.0, 2.0, 2.0]])
    >>> jax.jit(assign_to_cells, static_argnums=2)(boxes, (8, 8), (2, 2)).tolist()
    [[0, 1], [-1, -1]]
    """
    m, (rows, columns) = boxes.shape[0], grid_size
    if m == 0:
        return jnp.full(grid_size, -1, jnp.int32)
    x1, y1, x2, y2 = corners(boxes)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    h, w = size
    inside = (x >= 0) & (x <= w) & (y >= 0) & (y <= h)
    if valid is not None:
        inside &= valid
    in_row = _cell(y, h, rows)[:, None] == jnp.arange(rows)[None, :]
    in_column = _cell(x, w, columns)[:, None] == jnp.arange(columns)[None, :]
    in_cell = in_row[:, :, None] & in_column[:, None, :] & inside[:, None, None]
    first = jnp.where(in_cell, jnp.arange(m, dtype=jnp.int32)[:, None, None], m).min(axis=0)
    return jnp.where(first == m, -1, first)


def _cell(x, length, cells):
    """Counts the lines between cells at or before x: dividing would round lines off their place."""
    lines = jnp.arange(1, cells) * jnp.asarray(length, x.dtype)
    return (x[:, None] * cells >= lines[None, :]).sum(axis=1)
