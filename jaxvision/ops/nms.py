"""Non-maximum suppression with fixed shapes: greedy, exactly as torchvision does it, and soft.

Boxes are (x1, y1, x2, y2), one picture at a time; callers vmap. The number of results is fixed, and
a mask says which of them are real.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, Integer

from jaxvision.ops.boxes import corners
from jaxvision.ops.iou import overlap, unfused
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    iou_threshold: int | float | Float[Array, ""],
    max_outputs: int,
    valid: Bool[Array, " n"] | None = None,
) -> tuple[Int32[Array, " max_outputs"], Bool[Array, " max_outputs"]]:
    """Returns `(indices, valid)` of the boxes that no better box overlaps too much, best first.

    In the order of their scores, boxes are kept that have an IoU of at most `iou_threshold` with
    all that were kept before. The first `max_outputs` (static under jit) come back; where fewer are
    kept, the indices left over are 0 and not `valid`. Boxes that are not `valid` are neither kept
    nor suppress others.

    The indices and their order are those of torchvision on the CPU, in every case. Equal scores
    keep the order of their boxes, NaN counts as the highest score. The IoU must be strictly greater
    than the threshold to suppress; it is float32, and compared with the threshold as a double.
    Boxes without area, turned around (x2 < x1) or with NaN suppress nothing and are always kept.
    (Only areas below 1e-38 are zero here.) There is no gradient.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 1.0, 10.0, 11.0], [20.0, 0.0, 30.0, 10.0]])
    >>> suppress = jax.jit(nms, static_argnames=("iou_threshold", "max_outputs"))
    >>> scores = jnp.array([0.7, 0.9, 0.1])
    >>> indices, kept = suppress(boxes, scores, iou_threshold=0.5, max_outputs=3)
    >>> indices.tolist(), kept.tolist()
    ([1, 2, 0], [True, True, False])
    """
    return batched_nms(
        boxes, scores, jnp.zeros(len(scores), jnp.int32), iou_threshold, max_outputs, valid
    )


def batched_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    labels: Integer[Array, " n"],
    iou_threshold: int | float | Float[Array, ""],
    max_outputs: int,
    valid: Bool[Array, " n"] | None = None,
) -> tuple[Int32[Array, " max_outputs"], Bool[Array, " max_outputs"]]:
    """Returns what `nms` returns, where a box suppresses boxes of its own label only.

    `labels` are classes, or levels of a feature pyramid; `max_outputs` counts all of them together.
    This is what torchvision computes for more than 1,000 boxes on the CPU, class by class. For
    fewer it moves each class to a place of its own in a single picture, which rounds coordinates,
    so that an IoU within rounding of the threshold can fall on the other side, and lets classes
    suppress each other where coordinates are negative. Here classes are always exact, and equal
    scores keep the order of their boxes, which torchvision's leaves to chance.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 1.0, 10.0, 11.0], [0.0, 0.0, 10.0, 9.0]])
    >>> scores, labels = jnp.array([0.7, 0.9, 0.8]), jnp.array([0, 1, 0])
    >>> indices, kept = jax.jit(batched_nms, static_argnums=(3, 4))(boxes, scores, labels, 0.5, 3)
    >>> indices.tolist(), kept.tolist()
    ([1, 2, 0], [True, True, False])
    """
    # A step of the loop costs little on a CPU, and much on an accelerator, which fills up with
    # larger blocks. (128 is the fastest on the CPU; 1,024 is reasoned.)
    block = 128 if jax.default_backend() == "cpu" else 1024
    return greedy_nms(boxes, scores, labels, iou_threshold, max_outputs, valid, block)


SoftMethod = Literal["linear", "gaussian"]


def soft_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    max_outputs: int,
    *,
    method: SoftMethod = "linear",
    iou_threshold: int | float = 0.3,
    sigma: int | float = 0.5,
    min_score: int | float = 0.001,
    labels: Integer[Array, " n"] | None = None,
    valid: Bool[Array, " n"] | None = None,
) -> tuple[Int32[Array, " max_outputs"], Float[Array, " max_outputs"], Bool[Array, " max_outputs"]]:
    """Returns `(indices, scores, valid)`: overlap lowers a box's score instead of ending it.

    Soft-NMS, arXiv:1704.04503, figure 2: the box with the highest score is taken, the scores of the
    others are multiplied by f(IoU with it), and so on until `max_outputs` are taken or no score is
    `min_score` or more. f is 1 - IoU where the IoU is at least `iou_threshold`, else 1 ("linear"),
    or exp(-IoU^2 / `sigma`) ("gaussian"). With `labels` boxes of the same label only. Of equal
    scores the first box is taken; one that is not finite, or whose box is not, never is. What is
    left over is index 0, score 0 and not `valid`. The scores have gradients, also with respect to
    the boxes.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    >>> indices, scores, kept = soft_nms(boxes, jnp.array([1.0, 0.5]), max_outputs=2)
    >>> indices.tolist(), scores.tolist()
    ([0, 1], [1.0, 0.25])
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"expected linear or gaussian as the method, got {method!r}")
    n = len(scores)
    if n == 0:
        nothing = jnp.zeros(max_outputs)
        return nothing.astype(jnp.int32), nothing, nothing.astype(bool)
    scores = at_least_float32(scores)
    usable = jnp.isfinite(scores) if valid is None else valid & jnp.isfinite(scores)
    usable &= jnp.isfinite(boxes).all(axis=1)
    scores, boxes = jnp.where(usable, scores, 0), jnp.where(usable[:, None], boxes, 0)
    x1, y1, x2, y2 = corners(boxes)
    area = (x2 - x1) * (y2 - y1)

    def take(state, _):
        scores, left = state
        best = jnp.where(left, scores, -jnp.inf).max()
        index = jnp.argmax(left & (scores == best))
        found = best >= min_score
        shared = overlap(x1, y1, x2, y2, x1[index], y1[index], x2[index], y2[index])
        iou = shared / jnp.where(shared > 0, area + area[index] - shared, 1)
        if method == "linear":
            factors = jnp.where(iou >= iou_threshold, 1 - iou, 1)
        else:
            factors = jnp.exp(-(iou**2) / sigma)
        if labels is not None:
            factors = jnp.where(labels == labels[index], factors, 1)
        left &= jnp.arange(n) != index
        taken = jnp.where(found, index, 0).astype(jnp.int32), jnp.where(found, best, 0), found
        return (scores * factors, left), taken

    return jax.lax.scan(take, (scores, usable), length=max_outputs)[1]


# ------------------------------------------------------------------------------- block by block
class _Boxes(NamedTuple):
    """Boxes in rows that vectorise: x1, y1, x2, y2 and area [5, n], and labels [n]."""

    numbers: jax.Array
    labels: jax.Array

    def slice(self, start, size) -> "_Boxes":
        numbers = jax.lax.dynamic_slice(self.numbers, (jnp.int32(0), start), (5, size))
        return _Boxes(numbers, jax.lax.dynamic_slice(self.labels, (start,), (size,)))

    def update(self, start, new: "_Boxes") -> "_Boxes":
        numbers = jax.lax.dynamic_update_slice(self.numbers, new.numbers, (jnp.int32(0), start))
        return _Boxes(numbers, jax.lax.dynamic_update_slice(self.labels, new.labels, (start,)))


def greedy_nms(boxes, scores, labels, iou_threshold, max_outputs, valid, block):
    """`batched_nms`, `block` boxes at a time: first what earlier kept boxes leave of them, then
    what they leave of each other.

    As with the loop over boxes one by one the work goes with (boxes) x (kept boxes), and ends when
    `max_outputs` are kept; memory goes with the boxes and with `block` squared. What has been kept
    so far stands in one piece, so that nothing else has to be looked at.
    """
    n = len(scores)
    most = min(max_outputs, n)
    if most == 0:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    boxes, scores = jax.lax.stop_gradient((jnp.asarray(boxes), jnp.asarray(scores)))
    valid = jnp.ones(n, bool) if valid is None else valid
    block = min(block, n)

    order = _order(scores, valid)
    x1, y1, x2, y2 = corners(boxes)
    numbers = jnp.stack([x1, y1, x2, y2, unfused((x2 - x1) * (y2 - y1))])[:, order]
    padding = -n % block
    ranked = _Boxes(
        jnp.pad(numbers, ((0, 0), (0, padding))),
        jnp.pad(jnp.asarray(labels)[order], (0, padding)),
    )
    num_valid = valid.sum(dtype=jnp.int32)
    threshold = _round_down(iou_threshold, numbers.dtype)
    slots = jnp.arange(block, dtype=jnp.int32)

    def more(state):
        start, count, _, _ = state
        return (start < num_valid) & (count < most)

    def next_block(state):
        start, count, kept, kept_ranks = state
        first_free = count
        these = ranked.slice(start, block)

        def remove_overlapped(tile, alive):
            suppressed = _suppresses(kept.slice(tile * block, block), these, threshold)
            return alive & ~suppressed.any(axis=0)

        num_tiles = (count + block - 1) // block
        alive = jax.lax.fori_loop(0, num_tiles, remove_overlapped, start + slots < num_valid)
        keep = _keep_within(these, alive, threshold)

        # The kept ones of this block move together, and are written behind those kept before.
        number = jnp.cumsum(keep, dtype=jnp.int32)
        place = (number[None, :] <= slots[:, None]).sum(axis=1, dtype=jnp.int32)
        place = jnp.minimum(place, block - 1)
        is_kept = (slots < number[-1])[None, :]
        # NaN suppresses nothing.
        new = _Boxes(jnp.where(is_kept, these.numbers[:, place], jnp.nan), these.labels[place])
        kept_ranks = jax.lax.dynamic_update_slice(kept_ranks, start + place, (first_free,))
        count = jnp.minimum(count + number[-1], most)
        return start + block, count, kept.update(first_free, new), kept_ranks

    # Room for one block more than comes back: a block is written whole.
    room = -(-most // block) * block + block
    none = _Boxes(jnp.full((5, room), jnp.nan, numbers.dtype), jnp.zeros(room, ranked.labels.dtype))
    state = (jnp.int32(0), jnp.int32(0), none, jnp.zeros(room, jnp.int32))
    _, count, _, kept_ranks = jax.lax.while_loop(more, next_block, state)
    is_kept = jnp.arange(most) < count
    indices = jnp.where(is_kept, order[jnp.where(is_kept, kept_ranks[:most], 0)], 0)
    padding = (0, max_outputs - most)
    return jnp.pad(indices, padding), jnp.pad(is_kept, padding)


def _keep_within(these: _Boxes, alive, threshold):
    """Greedy suppression among the boxes of one block, which are in order.

    Of a first guess, that all are kept, follows which ones are suppressed, hence a better guess.
    After k rounds the first k boxes are right whatever the rest, so the guess that no longer
    changes is the answer; mostly a few rounds get there.
    """
    block = these.numbers.shape[1]
    earlier = np.arange(block)[:, None] < np.arange(block)[None, :]
    suppresses = _suppresses(these, these, threshold) & earlier

    def guess_again(guesses):
        _, guess = guesses
        return guess, alive & ~(suppresses & guess[:, None]).any(axis=0)

    def differ(guesses):
        return (guesses[0] != guesses[1]).any()

    return jax.lax.while_loop(differ, guess_again, guess_again((alive, alive)))[1]


def _suppresses(these: _Boxes, others: _Boxes, threshold):
    """Returns [i, j]: whether box i of `these`, if it is kept, suppresses box j of `others`."""
    *ours, our_area = these.numbers[:, :, None]
    *theirs, their_area = others.numbers[:, None, :]
    intersection = overlap(*ours, *theirs)
    iou = intersection / (our_area + their_area - intersection)
    return (iou > threshold) & (these.labels[:, None] == others.labels[None, :])


def _order(scores, valid):
    """Returns the boxes by descending score, NaN first, equal ones as they came, padding last."""
    scores = at_least_float32(scores)
    integer = jnp.int32 if scores.dtype == jnp.float32 else jnp.int64
    # Floats are ordered as their bits are, but for the sign: negative ones the other way round. Of
    # the two zeros one would be larger; a comparison with 0 would hit the subnormal numbers too.
    bits = jax.lax.bitcast_convert_type(scores, integer)
    bits = jnp.where(bits == jnp.iinfo(integer).min, 0, bits)
    falling = jnp.where(bits < 0, bits & jnp.iinfo(integer).max, ~bits)
    key = jnp.where(jnp.isnan(scores), jnp.iinfo(integer).min, falling)
    key = jnp.where(valid, key, jnp.iinfo(integer).max)
    positions = jnp.arange(len(scores), dtype=jnp.int32)
    return jax.lax.sort((key, positions), num_keys=1, is_stable=True)[1]


def _round_down(threshold, dtype):
    """Returns the largest number of the IoU's dtype that is not above the threshold.

    An IoU is greater than the one exactly where it is greater than the other: so 0.1, of which
    float32's nearest number is larger, is compared as torchvision compares it, as a double.
    """
    if isinstance(threshold, jax.Array | np.ndarray):
        return jnp.asarray(threshold, dtype)
    nearest = np.asarray(threshold, dtype)
    below = np.nextafter(nearest, np.asarray(-np.inf, dtype))
    return below if float(nearest) > threshold else nearest
