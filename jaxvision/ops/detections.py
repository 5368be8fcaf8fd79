"""From every box that a detector scored to the few that it reports, with fixed shapes."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxvision.ops.nms import batched_nms
from jaxvision.types import Array, PaddedDetections


def select_detections(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n k"],
    *,
    score_threshold: int | float = 0.05,
    iou_threshold: int | float = 0.5,
    max_detections: int = 100,
    multi_label: bool = True,
    max_candidates: int = 1000,
) -> PaddedDetections:
    """Returns the best `max_detections` of one picture's boxes, best first; callers vmap.

    Candidates are pairs of a box and a class whose score is at least `score_threshold`: with
    `multi_label` every class of a box, as darknet and torchvision have it, else only its best one
    (the first of equals), as YOLOX has it. Of these the best `max_candidates` go through
    `batched_nms`: within a class, a box goes that overlaps a better one by an IoU above
    `iou_threshold`. Of equal scores the first box, then the first class, comes first. A score of
    NaN or infinity, and a box with such a number or without area, is no candidate. Boxes are not
    clipped. All options are static under jit; there is no gradient through the choice.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 1.0, 10.0, 11.0], [20.0, 0.0, 30.0, 9.0]])
    >>> scores = jnp.array([[0.6, 0.3], [0.9, 0.0], [0.01, 0.5]])
    >>> select = jax.jit(select_detections, static_argnames=("score_threshold", "max_detections"))
    >>> found = select(boxes, scores, score_threshold=0.2, max_detections=4)
    >>> found.labels.tolist(), found.valid.tolist()
    ([0, 1, 1, 0], [True, True, True, False])
    >>> [round(score, 1) for score in found.scores.tolist()]
    [0.9, 0.5, 0.3, 0.0]
    """
    if max_detections < 1 or max_candidates < 1:
        raise ValueError(
            f"expected at least one detection and one candidate, got {max_detections} and "
            f"{max_candidates}"
        )
    n, k = scores.shape
    if n == 0 or k == 0:
        return _nothing(max_detections, boxes, scores)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    usable = jnp.isfinite(boxes).all(axis=1) & has_area
    wanted = usable[:, None] & jnp.isfinite(scores) & (scores >= score_threshold)
    # -inf, so that neither NaN nor what is too low is ever among the best.
    ranked = jnp.where(wanted, scores, -jnp.inf)
    if multi_label:
        best, flat = jax.lax.top_k(ranked.reshape(-1), min(max_candidates, n * k))
        rows, labels = flat // k, flat % k
    else:
        best, rows = jax.lax.top_k(ranked.max(axis=1), min(max_candidates, n))
        labels = ranked.argmax(axis=1)[rows]
    is_candidate = best > -jnp.inf
    candidates = jnp.where(is_candidate[:, None], boxes[rows], 0)
    return suppress(candidates, best, labels, is_candidate, iou_threshold, max_detections)


def suppress(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    labels: Integer[Array, " n"],
    usable: Bool[Array, " n"],
    iou_threshold: int | float,
    max_detections: int,
) -> PaddedDetections:
    """Returns what `batched_nms` leaves of the `usable` boxes, zeros behind it.

    >>> boxes, scores, labels = jnp.ones((2, 4)), jnp.array([0.5, 0.9]), jnp.array([3, 4])
    >>> usable = jnp.array([True, False])
    >>> found = jax.jit(suppress, static_argnums=(4, 5))(boxes, scores, labels, usable, 0.5, 2)
    >>> found.labels.tolist(), found.valid.tolist()
    ([3, 0], [True, False])
    """
    kept, valid = batched_nms(boxes, scores, labels, iou_threshold, max_detections, usable)
    labels = jnp.asarray(labels)
    return PaddedDetections(
        jnp.where(valid[:, None], boxes[kept], 0),
        jnp.where(valid, scores[kept], 0),
        jnp.where(valid, labels[kept], 0).astype(jnp.int32),
        valid,
    )


def _nothing(count: int, boxes: Array, scores: Array) -> PaddedDetections:
    return PaddedDetections(
        jnp.zeros((count, 4), jnp.result_type(boxes)),
        jnp.zeros(count, jnp.result_type(scores)),
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, bool),
    )
