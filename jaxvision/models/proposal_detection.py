"""Detectors that are given proposals, by Selective Search or anything else: one jitted function."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8

from jaxvision.models.equal import hashable, one_for_equal
from jaxvision.models.fast_rcnn import FastRCNN
from jaxvision.models.rcnn import RCNN, classify_regions
from jaxvision.models.selection import Selection, selection_of
from jaxvision.ops.color import normalize_images
from jaxvision.ops.rcnn import decode_rcnn, decode_regions
from jaxvision.types import Array, PaddedDetections, PerChannel, Variables

DetectIn = Callable[
    [
        Any,
        Variables,
        Float[Array, "b h w c"],
        Int[Array, "b 2"],
        Float[Array, "b p 4"],
        Bool[Array, "b p"],
        Selection,
    ],
    PaddedDetections,
]
"""`(model, variables, normalised images, sizes, proposals, valid, selection) -> detections`."""


def detect_with_fast_rcnn(
    model: FastRCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    proposals: Float[Array, "b p 4"],
    valid: Bool[Array, "b p"],
    selection: Selection,
) -> PaddedDetections:
    """Every class of a proposal is a candidate but the background, as in Faster R-CNN."""
    logits, deltas = model.apply(variables, images, sizes, proposals, train=False)

    def decode(logits, deltas, boxes, valid, size):
        of_picture = (logits, deltas, boxes, (size[0], size[1]))
        return decode_rcnn(*of_picture, valid=valid, **vars(selection))

    return jax.vmap(decode)(logits, deltas, proposals, valid, sizes)


def detect_with_rcnn(
    model: RCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    proposals: Float[Array, "b p 4"],
    valid: Bool[Array, "b p"],
    selection: Selection,
) -> PaddedDetections:
    """Every class of a proposal is a candidate, with the score of its SVM as a logit."""
    margins, deltas = classify_regions(model, variables, images, sizes, proposals, valid)

    def decode(margins, deltas, boxes, valid, size):
        of_picture = (margins, deltas, boxes, (size[0], size[1]))
        return decode_regions(*of_picture, valid=valid, **vars(selection))

    return jax.vmap(decode)(margins, deltas, proposals, valid, sizes)


PROPOSAL_DETECTORS: dict[type[nn.Module], DetectIn] = {
    FastRCNN: detect_with_fast_rcnn,
    RCNN: detect_with_rcnn,
}
"""How each kind of network that is given proposals finds objects. Boxes come clipped."""


def make_proposal_detector(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    score_threshold: int | float | None = None,
    iou_threshold: int | float | None = None,
    max_detections: int | None = None,
) -> Callable[
    [
        Variables,
        UInt8[Array, "b h w 3"],
        Int[Array, "b 2"],
        Float[Array, "b p 4"],
        Bool[Array, "b p"],
    ],
    PaddedDetections,
]:
    """Returns the jitted `(variables, images, sizes, proposals, valid) -> PaddedDetections`.

    As `make_detector`, but that the proposals [b, p, 4], in pixels of the images, come from
    outside; one that is not `valid` is none, whatever it holds. One compile for each shape.

    >>> from jaxvision.models import get_model
    >>> model = get_model("fastrcnn_vgg16", widths=(4, 4, 4, 4, 4), hidden=8, num_classes=3)
    >>> images, sizes = jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.array([[32, 32]])
    >>> variables = model.init(jax.random.key(0), images / 255.0)
    >>> boxes, valid = jnp.array([[[2.0, 2.0, 20.0, 9.0]]]), jnp.array([[True]])
    >>> detect = make_proposal_detector(model, max_detections=5)
    >>> detect(variables, images, sizes, boxes, valid).boxes.shape
    (1, 5, 4)
    """
    if type(model) not in PROPOSAL_DETECTORS:
        known = ", ".join(sorted(kind.__name__ for kind in PROPOSAL_DETECTORS))
        raise ValueError(
            f"expected a detector that is given proposals ({known}), got {type(model).__name__}"
        )
    selection = selection_of(
        model,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )
    return _jitted(model, hashable(mean), hashable(std), selection)


@one_for_equal
def _jitted(
    model: nn.Module, mean: Any, std: Any, selection: Selection
) -> Callable[..., PaddedDetections]:
    detect = PROPOSAL_DETECTORS[type(model)]

    @jax.jit
    def find(variables, images, sizes, proposals, valid):
        images = normalize_images(images, mean, std)
        # NaN in the padding would come back through the features.
        proposals = jnp.where(valid[..., None], proposals, 0.0)
        return detect(model, variables, images, sizes, proposals, valid, selection)

    return find
