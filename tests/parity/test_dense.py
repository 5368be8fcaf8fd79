"""RetinaNet, FCOS and SSD against torchvision's: what they say of their anchors, what they find.

On ten pictures of several sizes in one padded array; SSD's are stretched by torchvision to its one
size.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxvision.models import get_model
from jaxvision.models.selection import Selection, selection_of
from jaxvision.ops import decode_fcos, decode_retinanet, decode_ssd, normalize_images
from jaxvision.weights import from_torch

from .tensors import from_nchw
from .test_faster_rcnn import MEAN, STD, blobs, close, to_chw
from .torch_dense import CASES, QUICK, our_model, pretend_forward, torch_dense
from .torch_detectors import (
    _operators_in_python,  # noqa: F401
    by_name,
    detection,
    padded,
    state_of,
)

# The shorter side is what torchvision is told to resize to: it leaves them as they are.
SIZES = [
    *((64, 96), (64, 64), (90, 64), (64, 80), (75, 64)),
    *((64, 72), (80, 64), (64, 88), (96, 64), (66, 64)),
]
ROUNDING = 1e-5
"""Scores that are closer may change places."""


@functools.cache
def made(case):
    settings = {} if "ssd" in case else {"min_size": 64, "max_size": 400}
    theirs = torch_dense(case, to_chw(blobs(SIZES)), **settings)
    _, name, options = CASES[case]
    variables = from_torch(name, state_of(theirs), **options)
    return theirs, our_model(case), jax.device_put(variables)


@functools.cache
def both_say(case):
    """What each side says of the anchors and finds, boxes in the pixels that the network saw."""
    theirs, model, variables = made(case)
    images = blobs(SIZES)
    with torch.no_grad():
        transformed, heads, anchors = pretend_forward(theirs, to_chw(images))
        given = theirs.postprocess_detections(
            *as_it_wants(theirs, heads, anchors, transformed), transformed.image_sizes
        )
    if isinstance(theirs, detection.ssd.SSD):
        batch = from_nchw(transformed.tensors)
        sizes = np.tile(batch.shape[1:3], (len(batch), 1)).astype(np.int32)
    else:
        batch, sizes = padded(images)

    @jax.jit
    def say(variables, images, sizes):
        if not isinstance(theirs, detection.ssd.SSD):
            images = normalize_images(images, MEAN, STD)
        outputs = model.apply(variables, images, sizes, train=False)
        return outputs, decoded(theirs, outputs, sizes)

    return heads, anchors[0], given, *jax.device_get(say(variables, batch, sizes))


def as_it_wants(theirs, heads, anchors, transformed):
    """The outputs level by level, as all but SSD take them apart before they look for objects."""
    if isinstance(theirs, detection.ssd.SSD):
        return heads, anchors
    h, w = transformed.tensors.shape[-2:]
    places = [-(-h // s) * -(-w // s) for s in (8, 16, 32, 64, 128)]
    each = heads["cls_logits"].shape[1] // sum(places)
    counts = [each * count for count in places]
    split = {name: list(x.split(counts, dim=1)) for name, x in heads.items()}
    return split, [list(x.split(counts)) for x in anchors]


def decoded(theirs, outputs, sizes):
    options = {
        "score_threshold": theirs.score_thresh,
        "iou_threshold": theirs.nms_thresh,
        "max_detections": theirs.detections_per_img,
        "max_candidates": theirs.topk_candidates,
    }
    *said, anchors = outputs
    if isinstance(theirs, detection.ssd.SSD):
        said = [jnp.concatenate(x, axis=1) for x in said]
        decode, anchors = decode_ssd, np.concatenate(anchors)
    else:
        decode = decode_fcos if isinstance(theirs, detection.FCOS) else decode_retinanet
    return jax.vmap(lambda size, *x: decode(*x, anchors, (size[0], size[1]), **options))(
        sizes, *said
    )


every_network = pytest.mark.parametrize(
    "case", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in CASES]
)


@every_network
def test_what_they_say_of_their_anchors(case):
    heads, anchors, _, outputs, _ = both_say(case)
    names = ("cls_logits", "bbox_regression", "bbox_ctrness")[: len(outputs) - 1]
    for name, ours in zip(names, outputs, strict=False):
        joined, theirs = np.concatenate(ours, axis=1), heads[name].numpy()
        close(joined.reshape(theirs.shape), theirs, 1e-4)
        assert theirs.std(axis=0).mean() > 0.01  # pictures differ
    np.testing.assert_allclose(np.concatenate(outputs.anchors), anchors.numpy(), atol=1e-4)


@every_network
def test_what_they_find(case):
    _, _, theirs, _, ours = both_say(case)
    for i, found in enumerate(theirs):
        count = int(ours.valid[i].sum())
        assert count == len(found["boxes"]) > 10
        assert not ours.scores[i, count:].any()
        same_detections(
            (ours.labels[i, :count] + 1, ours.scores[i, :count], ours.boxes[i, :count]),
            [found[name].numpy() for name in ("labels", "scores", "boxes")],
        )
        assert len(set(ours.labels[i, :count].tolist())) > 1


def same_detections(ours, theirs):
    """The same objects, boxes within 0.01 pixel, in the same order but where scores are equal."""
    labels, scores, boxes = map(np.asarray, ours)
    np.testing.assert_allclose(scores, theirs[1], atol=1e-4)
    left = list(range(len(labels)))
    for i, (label, score, box) in enumerate(zip(*theirs, strict=True)):
        same = [
            j
            for j in left
            if abs(scores[j] - score) < (1e-4 if i == j else ROUNDING)
            and labels[j] == label
            and np.abs(boxes[j] - box).max() < 1e-2
        ]
        assert same, (i, label, score, box)
        left.remove(i if i in same else same[0])


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fcos_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_what_counts_as_found_unless_told_is_torchvisions(name):
    with torch.device("meta"):  # its numbers are not drawn
        theirs = by_name(name)
    theirs = getattr(theirs, "roi_heads", theirs)
    assert selection_of(get_model(name)) == Selection(
        theirs.score_thresh, theirs.nms_thresh, theirs.detections_per_img
    )


def test_the_decoders_defaults_are_torchvisions():
    decoders = {"retinanet": decode_retinanet, "fcos": decode_fcos, "ssd": decode_ssd}
    for case, decode in decoders.items():
        theirs, model, _ = made(case)
        parameters = inspect.signature(decode).parameters
        defaults = {name: each.default for name, each in parameters.items()}
        assert defaults["score_threshold"] == theirs.score_thresh
        assert defaults["iou_threshold"] == theirs.nms_thresh
        assert defaults["max_detections"] == theirs.detections_per_img
        assert model.max_candidates == theirs.topk_candidates == defaults["max_candidates"]
