"""From a detector's raw outputs to what it found: one jitted function for any of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxvision.models.equal import hashable, one_for_equal
from jaxvision.models.faster_rcnn import FasterRCNN
from jaxvision.models.fcos import FCOS
from jaxvision.models.fpn import Maps
from jaxvision.models.keypoint_rcnn import KeypointRCNN
from jaxvision.models.mask_rcnn import MaskRCNN
from jaxvision.models.mirrored import with_mirror_images
from jaxvision.models.retinanet import RetinaNet
from jaxvision.models.selection import Selection, selection_of
from jaxvision.models.ssd import SSD
from jaxvision.models.yolov1 import YOLOv1
from jaxvision.models.yolox import YOLOX
from jaxvision.ops.boxes import clip_boxes
from jaxvision.ops.color import normalize_images
from jaxvision.ops.dense import decode_fcos, decode_retinanet, decode_ssd
from jaxvision.ops.detections import select_detections
from jaxvision.ops.keypoints import heatmaps_to_keypoints
from jaxvision.ops.precision import at_least_float32
from jaxvision.ops.rcnn import decode_rcnn
from jaxvision.ops.yolov1 import decode_yolov1
from jaxvision.ops.yolox import decode_yolox
from jaxvision.types import (
    AnyDetections,
    Array,
    PaddedDetections,
    PaddedInstances,
    PaddedPoses,
    PerChannel,
    Variables,
)

Detect = Callable[
    [Any, Variables, Float[Array, "b h w c"], Int[Array, "b 2"], Selection], AnyDetections
]
"""`(model, variables, normalised images, sizes, selection) -> detections` of each image."""


def select_inside(
    boxes: Float[Array, "b n 4"],
    scores: Float[Array, "b n k"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
    *,
    multi_label: bool,
) -> PaddedDetections:
    """Returns `select_detections` of each image, without boxes that are outside of `sizes`.

    Boxes suppress each other as they are: the caller clips what is left.
    """

    def select(boxes, scores, size):
        clipped = clip_boxes(boxes, (size[0], size[1]))
        inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        return select_detections(
            boxes,
            jnp.where(inside[:, None], scores, -jnp.inf),
            score_threshold=selection.score_threshold,
            iou_threshold=selection.iou_threshold,
            max_detections=selection.max_detections,
            multi_label=multi_label,
        )

    return jax.vmap(select)(boxes, scores, sizes)


def detect_with_yolov1(
    model: YOLOv1,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedDetections:
    """Every class of a box is a candidate, as in darknet."""
    outputs = model.apply(variables, images, train=False)
    boxes, scores = decode_yolov1(
        outputs, images.shape[1:3], model.num_classes, bounded=model.bounded
    )
    return select_inside(boxes, scores, sizes, selection, multi_label=True)


def detect_with_yolox(
    model: YOLOX,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedDetections:
    """The best class of a box is a candidate, as in Megvii's code."""
    outputs = model.apply(variables, images, train=False)
    boxes, scores = decode_yolox(outputs, model.strides)
    return select_inside(boxes, scores, sizes, selection, multi_label=False)


def detect_with_faster_rcnn(
    model: FasterRCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedDetections:
    """Every class of a proposal is a candidate but the background, as in torchvision."""
    return _maps_and_boxes(model, variables, images, sizes, selection)[1]


def _maps_and_boxes(
    model: FasterRCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> tuple[Maps, PaddedDetections]:
    """Returns the feature maps too, for a head that looks at the detections."""

    def run(method, *args):
        return model.apply(variables, *args, train=False, method=method)

    features = run(model.extract_features, images, sizes)
    predictions = run(model.score_anchors, features)
    proposals = run(model.propose, features, predictions, sizes)
    logits, deltas = run(model.classify_rois, features, proposals.boxes)

    def decode(logits, deltas, boxes, valid, size):
        of_picture = (logits, deltas, boxes, (size[0], size[1]))
        return decode_rcnn(*of_picture, valid=valid, **vars(selection))

    found = jax.vmap(decode)(logits, deltas, proposals.boxes, proposals.valid, sizes)
    return features, found


def detect_with_mask_rcnn(
    model: MaskRCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedInstances:
    """As Faster R-CNN, and of each detection the mask of its class."""
    features, found = _maps_and_boxes(model, variables, images, sizes, selection)
    logits = model.apply(variables, features, found.boxes, train=False, method=model.predict_masks)
    index = found.labels[..., None, None, None] + 1  # class 0 is the background
    logits = at_least_float32(jnp.take_along_axis(logits, index, axis=-1)[..., 0])
    masks = jax.nn.sigmoid(logits)
    return PaddedInstances(*found, jnp.where(found.valid[..., None, None], masks, 0.0))


def detect_with_keypoint_rcnn(
    model: KeypointRCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedPoses:
    """As Faster R-CNN, and of each detection where its keypoints most probably are."""
    features, found = _maps_and_boxes(model, variables, images, sizes, selection)
    maps = model.apply(
        variables, features, found.boxes, train=False, method=model.predict_keypoints
    )
    b, n = found.valid.shape
    places = heatmaps_to_keypoints(
        maps.reshape(b * n, *maps.shape[2:]), found.boxes.reshape(b * n, 4)
    )
    keypoints, scores = (x.reshape(b, n, *x.shape[1:]) for x in places)
    keypoints = jnp.where(found.valid[..., None, None], keypoints, 0.0)
    return PaddedPoses(*found, keypoints, jnp.where(found.valid[..., None], scores, 0.0))


def detect_with_retinanet(
    model: RetinaNet,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedDetections:
    """Every class of an anchor is a candidate but the background, as in torchvision."""
    logits, deltas, anchors = model.apply(variables, images, sizes, train=False)
    options = {**vars(selection), "max_candidates": model.max_candidates}

    def decode(logits, deltas, size):
        return decode_retinanet(logits, deltas, anchors, (size[0], size[1]), **options)

    return jax.vmap(decode)(logits, deltas, sizes)


def detect_with_fcos(
    model: FCOS,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedDetections:
    """Every class of a place is a candidate but the background, as in torchvision."""
    *outputs, anchors = model.apply(variables, images, sizes, train=False)
    options = {**vars(selection), "max_candidates": model.max_candidates}

    def decode(logits, distances, centerness, size):
        of_picture = (logits, distances, centerness, anchors, (size[0], size[1]))
        return decode_fcos(*of_picture, **options)

    return jax.vmap(decode)(*outputs, sizes)


def detect_with_ssd(
    model: SSD,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    selection: Selection,
) -> PaddedDetections:
    """Every class of a default box is a candidate but the background, as in torchvision."""
    logits, deltas, boxes = model.apply(variables, images, sizes, train=False)
    logits, deltas = jnp.concatenate(logits, axis=1), jnp.concatenate(deltas, axis=1)
    default_boxes = np.concatenate(boxes)
    options = {**vars(selection), "max_candidates": model.max_candidates}

    def decode(logits, deltas, size):
        return decode_ssd(logits, deltas, default_boxes, (size[0], size[1]), **options)

    return jax.vmap(decode)(logits, deltas, sizes)


DETECTORS: dict[type[nn.Module], Detect] = {
    FCOS: detect_with_fcos,
    FasterRCNN: detect_with_faster_rcnn,
    KeypointRCNN: detect_with_keypoint_rcnn,
    MaskRCNN: detect_with_mask_rcnn,
    RetinaNet: detect_with_retinanet,
    SSD: detect_with_ssd,
    YOLOv1: detect_with_yolov1,
    YOLOX: detect_with_yolox,
}
"""How each kind of network finds objects. One of two stages, whose proposals are part of the
network, has its place here as well: the function is given the variables, not the outputs."""


def make_detector(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    score_threshold: int | float | None = None,
    iou_threshold: int | float | None = None,
    max_detections: int | None = None,
    flip: bool = False,
) -> Callable[[Variables, UInt8[Array, "b h w 3"], Int[Array, "b 2"]], AnyDetections]:
    """Returns the jitted `(variables, images, sizes) -> PaddedDetections`, [b, n] of everything;
    of Mask R-CNN `PaddedInstances`, of Keypoint R-CNN `PaddedPoses`.

    Images are bytes, normalised inside by `mean` and `std` as in training; `sizes` int [b, 2] are
    the (h, w) up to which each is picture and not padding. Boxes are in pixels of these images,
    clipped to `sizes`; one that lies outside is none, or, of RetinaNet, FCOS and SSD, where
    torchvision keeps it, one without area. Thresholds that are not given are the network's own: see
    `selection_of`. One compile for each shape of the batch. With `flip` each picture's mirror image
    is looked at too: see `with_mirror_images`.

    >>> from jaxvision.models import get_model
    >>> model = get_model("yolov1_tiny", num_classes=3)
    >>> images, sizes = jnp.zeros((1, 32, 32, 3), jnp.uint8), jnp.array([[32, 32]])
    >>> variables = model.init(jax.random.key(0), images / 255.0)
    >>> found = make_detector(model, max_detections=5)(variables, images, sizes)
    >>> found.boxes.shape, found.valid.shape
    ((1, 5, 4), (1, 5))
    """
    if type(model) not in DETECTORS:
        known = ", ".join(sorted(kind.__name__ for kind in DETECTORS))
        raise ValueError(f"expected a detector ({known}), got {type(model).__name__}")
    selection = selection_of(
        model,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )
    return _jitted(model, hashable(mean), hashable(std), selection, flip)


@one_for_equal
def _jitted(
    model: nn.Module, mean: Any, std: Any, selection: Selection, flip: bool
) -> Callable[..., AnyDetections]:
    detect = DETECTORS[type(model)]
    if flip:
        detect = with_mirror_images(detect)

    @jax.jit
    def find(variables, images, sizes):
        found = detect(model, variables, normalize_images(images, mean, std), sizes, selection)
        clipped = jax.vmap(lambda boxes, size: clip_boxes(boxes, (size[0], size[1])))(
            found.boxes, sizes
        )
        return found._replace(boxes=clipped)

    return find
