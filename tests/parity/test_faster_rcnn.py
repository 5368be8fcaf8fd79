"""Faster R-CNN against torchvision's: maps, anchors' outputs, proposals, detections.

On ten pictures of several sizes, five at a time in one padded array.
"""

import functools

import jax
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from jaxvision.models import get_model
from jaxvision.ops import decode_rcnn, normalize_images
from jaxvision.weights import from_torch

from .tensors import from_nchw
from .torch_detectors import (
    BUILDERS,
    CLASSES,
    _operators_in_python,  # noqa: F401
    centre,
    padded,
    recorded,
    state_of,
    torch_detector,
)

QUICK = ("fasterrcnn_resnet18_fpn", "fasterrcnn_vgg16", "fasterrcnn_mobilenet_v3_large_320_fpn")
# The shorter side is what torchvision is told to resize to: it leaves them as they are.
SIZES = {
    96: [(96, 128), (96, 100), (128, 96), (96, 96), (120, 96)],
    # In one array these are as large as those above, so that one compile serves both.
    64: [(64, 96), (64, 64), (90, 64), (64, 120), (100, 64)],
}
decode = jax.jit(decode_rcnn)  # one picture: faster to compile; test_mask_rcnn.py has a batch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOP = {"pre_nms_top_n": (300, 200), "post_nms_top_n": (150, 100)}
TORCH_TOP = {
    "rpn_pre_nms_top_n_train": 300,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_train": 150,
    "rpn_post_nms_top_n_test": 100,
}


def pictures(side):
    return blobs(SIZES[side], seed=side)


def seen(side):
    """What all networks are shown here.

    With other seeds one or another has boxes whose IoU is the threshold but for rounding.
    """
    return blobs(SIZES[side], seed=side + 1)


def blobs(sizes, seed=0):
    """Blurred noise, so that places differ: float pictures of these sizes (h, w)."""
    rng = np.random.default_rng(seed)
    images = []
    for h, w in sizes:
        coarse = rng.uniform(size=(-(-h // 8), -(-w // 8), 3)).repeat(8, axis=0).repeat(8, axis=1)
        noise = rng.uniform(size=(h, w, 3))
        images.append((0.7 * coarse[:h, :w] + 0.3 * noise).astype(np.float32))
    return images


def to_chw(images):
    return [torch.from_numpy(image).permute(2, 0, 1) for image in images]


@functools.cache
def made(name):
    """Returns torchvision's network, our model and our variables."""
    settings = {**TORCH_TOP, "min_size": 96, "max_size": 400}
    options = dict(BUILDERS[name][1])
    if not name.endswith("_v2"):
        options |= TOP
    classes = CLASSES if name in QUICK[:2] else 91
    theirs = torch_detector(name, to_chw(seen(96)), **settings)
    if name == QUICK[1]:  # or it finds two of the classes, and in tall pictures one
        centre(theirs, theirs.roi_heads.box_predictor.cls_score, to_chw(seen(96)))
    variables = from_torch(name, state_of(theirs), num_classes=classes, **options)
    model = get_model(name, num_classes=classes, **options)
    if name.endswith("_v2"):  # it has no options for this
        model = model.clone(rpn=model.rpn.clone(**TOP))
    return theirs, model, jax.device_put(variables)


@functools.cache
def torchvision_says(name, side):
    theirs = made(name)[0]
    theirs.transform.min_size = (side,)
    modules = {"features": theirs.backbone, "anchors": theirs.rpn.head, "proposals": theirs.rpn}
    with recorded(modules) as record, torch.no_grad():
        found = theirs(to_chw(seen(side)))
    return record["features"][0], record["anchors"][0], record["proposals"][0][0], found


@functools.cache
def program(name):
    """The model's methods one after the other, as one compiled function."""
    model = made(name)[1]

    @jax.jit
    def say(variables, images, sizes):
        call = functools.partial(model.apply, variables, train=False)
        images = normalize_images(images, MEAN, STD)
        features = call(images, sizes, method=model.extract_features)
        anchors = call(features, method=model.score_anchors)
        proposals = call(features, anchors, sizes, method=model.propose)
        logits, deltas = call(features, proposals.boxes, method=model.classify_rois)
        return features, anchors, proposals, logits, deltas

    return say


@functools.cache
def we_say(name, side):
    images, sizes = padded(seen(side))
    *said, proposals, logits, deltas = jax.device_get(program(name)(made(name)[2], images, sizes))
    each = zip(logits, deltas, proposals.boxes, sizes, proposals.valid, strict=True)
    found = [decode(*x, tuple(size), valid=valid) for *x, size, valid in each]
    return *said, proposals, jax.tree.map(lambda *x: np.stack(x), *found)


def every_network(test):
    """In every run the cheapest on all ten pictures, and two more on five."""
    quick = {(QUICK[0], 96), (QUICK[0], 64), (QUICK[1], 64), (QUICK[2], 64)}
    cases = [
        pytest.param(name, side, marks=[] if (name, side) in quick else pytest.mark.slow)
        for name in BUILDERS
        for side in SIZES
    ]
    return pytest.mark.parametrize(("name", "side"), cases)(test)


@every_network
def test_maps_and_what_they_say_of_anchors(name, side):
    features, (objectness, deltas), _, _ = torchvision_says(name, side)
    our_features, predictions, _, _ = we_say(name, side)
    features = list(features.values()) if isinstance(features, dict) else [features]
    assert len(our_features) == len(features)
    for ours, theirs in zip(our_features, features, strict=True):
        close(ours, from_nchw(theirs), 1e-5)
    for ours, theirs in zip(predictions.objectness, objectness, strict=True):
        close(ours, from_nchw(theirs).reshape(ours.shape), 1e-4)
    for ours, theirs in zip(predictions.deltas, deltas, strict=True):
        close(ours, from_nchw(theirs).reshape(ours.shape), 1e-4)


@every_network
def test_proposals(name, side):
    theirs = torchvision_says(name, side)[2]
    ours = we_say(name, side)[2]
    for i, boxes in enumerate(theirs):
        count = int(ours.valid[i].sum())
        assert count == len(boxes) > 20
        assert ours.valid[i, :count].all()
        np.testing.assert_allclose(ours.boxes[i, :count], boxes.numpy(), atol=1e-2)
        assert not ours.boxes[i, count:].any()


@every_network
def test_detections(name, side):
    theirs = torchvision_says(name, side)[3]
    ours = we_say(name, side)[3]
    for i, found in enumerate(theirs):
        count = int(ours.valid[i].sum())
        assert count == len(found["boxes"]) > 10
        boxes, scores, labels = (found[k].numpy() for k in ("boxes", "scores", "labels"))
        valid = slice(count)
        order = paired(ours.boxes[i, valid], ours.labels[i, valid] + 1, boxes, labels)
        np.testing.assert_array_equal(ours.labels[i, valid][order] + 1, labels)
        np.testing.assert_allclose(ours.scores[i, valid][order], scores, atol=1e-4)
        np.testing.assert_allclose(ours.boxes[i, valid][order], boxes, atol=1e-2)
        assert (np.diff(ours.scores[i, valid]) <= 0).all()
        assert len(set(ours.labels[i, valid].tolist())) > 1


def paired(our_boxes, our_labels, boxes, labels):
    """Which of our boxes each of theirs is: the nearest of its class, and each of ours once.

    Not by the order of scores: where only rounding tells them apart, it hangs on the processor.
    """
    distances = np.abs(our_boxes - boxes[:, None]).max(axis=-1)
    return linear_sum_assignment(distances + 1e4 * (our_labels != labels[:, None]))[1]


def close(ours, theirs, rtol):
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= rtol * np.linalg.norm(theirs)
