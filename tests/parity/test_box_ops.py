"""Boxes, overlaps, losses, anchors and matching against the real torchvision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jaxvision import losses, ops

from .tensors import to_torch
from .torchvision_cpu import torchvision

detection = torchvision.models.detection._utils
COUNT = 12_000
KINDS = ["any", "whole", "similar", "tiny"]


def pairs(kind, count=COUNT, seed=0):
    """Returns boxes [2, n, 4]: of any size, touching or repeated, close to each other, small."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 800, (2, count, 2))
    boxes = np.concatenate([corner, corner + rng.exponential(150, corner.shape) + 1], axis=-1)
    if kind == "whole":
        corner = rng.integers(0, 5, (2, count, 2))
        boxes = np.concatenate([corner, corner + rng.integers(1, 4, corner.shape)], axis=-1)
    if kind == "similar":
        boxes[1] = boxes[0] + rng.normal(size=(count, 4)) * 0.1
    if kind == "tiny":
        boxes = boxes / 1000
    return boxes.astype(np.float32)


def assert_close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


FORMS = ("xyxy", "xywh", "cxcywh")
CHANGES = [(source, target) for source in FORMS for target in FORMS if source != target]


@jax.jit
def changed(boxes):
    conversions = [getattr(ops, f"{source}_to_{target}")(boxes) for source, target in CHANGES]
    large = ops.boxes_at_least(boxes, 2)
    return conversions, ops.box_area(boxes), ops.clip_boxes(boxes, (300, 500)), large


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_area_clipping_and_least_size(kind):
    boxes, _ = pairs(kind)
    boxes[::5] = boxes[::5, [2, 1, 0, 3]]
    boxes[1::5] -= 200
    tensor = to_torch(boxes)
    conversions, area, clipped, large = changed(boxes)
    for ours, (source, target) in zip(conversions, CHANGES, strict=True):
        theirs = torchvision.ops.box_convert(tensor, source, target)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(area, torchvision.ops.box_area(tensor).numpy())
    expected = torchvision.ops.clip_boxes_to_image(tensor, (300, 500)).numpy()
    np.testing.assert_array_equal(clipped, expected)
    expected = torchvision.ops.remove_small_boxes(tensor, 2.0).numpy()
    np.testing.assert_array_equal(np.flatnonzero(large), expected)


@pytest.mark.parametrize("kind", [*KINDS, "degenerate"])
def test_iou_is_equal_to_the_last_bit(kind):
    boxes1, boxes2 = pairs(kind, 1500)
    if kind == "degenerate":
        boxes1[::2] = boxes1[::2, [0, 1, 0, 3]]
        boxes2[::3] = boxes2[::3, [2, 3, 0, 1]]
        boxes1[::5, 1], boxes1[::7, 2], boxes2[::9] = np.nan, np.inf, 0
    theirs = torchvision.ops.box_iou(to_torch(boxes1), to_torch(boxes2)).numpy()
    np.testing.assert_array_equal(jax.jit(ops.box_iou)(boxes1, boxes2), theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["generalized_box_iou", "distance_box_iou", "complete_box_iou"])
def test_pairwise_measures(name, kind):
    boxes1, boxes2 = pairs(kind, 150)
    theirs = getattr(torchvision.ops, name)(to_torch(boxes1), to_torch(boxes2))
    assert_close(jax.jit(getattr(ops, name))(boxes1, boxes2), theirs)


@partial(jax.jit, static_argnames="name")
def loss_with_gradients(boxes1, boxes2, name):
    values, vjp = jax.vjp(getattr(losses, name), boxes1, boxes2)
    return values, vjp(jnp.ones_like(values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"]
)
def test_losses_and_gradients(name, kind):
    """Whole numbers make boxes that touch, repeat and share sides: the gradient's corner cases."""
    boxes1, boxes2 = pairs(kind)
    tensors = [to_torch(boxes).requires_grad_() for boxes in (boxes1, boxes2)]
    theirs = getattr(torchvision.ops, name)(*tensors)
    theirs.sum().backward()
    values, gradients = loss_with_gradients(boxes1, boxes2, name)
    assert_close(values, theirs)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        # Of sides of a thousandth the gradients are in the thousands.
        scale = max(1.0, float(tensor.grad.abs().max()) / 10)
        assert_close(gradient / scale, tensor.grad / scale, 1e-4)


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 0.0])
def test_smooth_l1(beta):
    errors = np.random.default_rng(0).normal(size=COUNT).astype(np.float32)
    errors[::7] = np.round(errors[::7])
    tensor = to_torch(errors).requires_grad_()
    theirs = F.smooth_l1_loss(tensor, torch.zeros(COUNT), beta=beta, reduction="none")
    theirs.sum().backward()

    @jax.jit
    def run(errors):
        values, vjp = jax.vjp(lambda x: losses.smooth_l1(x, beta), errors)
        return values, vjp(jnp.ones_like(values))[0]

    values, gradient = run(errors)
    assert_close(values, theirs)
    assert_close(gradient, tensor.grad, 1e-4)


encode = jax.jit(ops.encode_boxes, static_argnums=2)


@partial(jax.jit, static_argnames="weights")
def decode_with_gradients(deltas, anchors, cotangent, weights):
    def decode(deltas, anchors):
        return ops.decode_boxes(deltas, anchors[:, None], weights)

    boxes, vjp = jax.vjp(decode, deltas, anchors)
    return boxes, vjp(cotangent)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_coder(kind, weights):
    anchors, boxes = pairs(kind)
    coder = detection.BoxCoder(weights)
    assert_close(
        encode(boxes, anchors, weights), coder.encode_single(to_torch(boxes), to_torch(anchors))
    )

    rng = np.random.default_rng(1)
    deltas = rng.normal(size=(COUNT, 2, 4)).astype(np.float32) * np.float32(weights)
    deltas[::10] *= 10  # beyond the limit of 62.5 times the anchor
    tensors = [to_torch(x).requires_grad_() for x in (deltas.reshape(COUNT, 8), anchors)]
    theirs = coder.decode_single(*tensors)
    cotangent = rng.normal(size=(COUNT, 2, 4)).astype(np.float32)
    theirs.backward(to_torch(cotangent).reshape(COUNT, 8))
    run = decode_with_gradients(deltas, anchors, cotangent, weights)
    decoded, gradients = jax.device_get(run)
    assert_relative(decoded.reshape(COUNT, 8), theirs, 1e-5)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert_relative(gradient.reshape(tensor.shape), tensor.grad, 1e-4)


def assert_relative(ours, theirs, tolerance):
    """Each row within `tolerance` of its largest number: a corner is a sum that may cancel."""
    theirs = theirs.detach().numpy()
    scale = np.abs(theirs).max(axis=1, keepdims=True)
    assert (np.abs(ours - theirs) <= tolerance * np.maximum(scale, 1e-3)).all()


def test_anchors():
    sizes = ((32, 45), (64.5,), (128, 181, 256))
    ratios = ((0.5, 1.0, 2.0), (1.0, 0.33, 3.0), (0.7,))
    grids, image_size = [(13, 17), (7, 9), (3, 4)], (107, 139)
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(sizes, ratios)
    images = torchvision.models.detection.image_list.ImageList(
        torch.zeros(1, 3, *image_size), [image_size]
    )
    (theirs,) = generator(images, [torch.zeros(1, 8, *grid) for grid in grids])
    ours = np.concatenate(ops.anchors_of_levels(grids, image_size, sizes, ratios))
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_base_anchors_of_many_sizes_and_ratios():
    rng = np.random.default_rng(0)
    sizes = [*range(1, 120), *rng.uniform(1, 600, 100)]
    ratios = [0.25, 0.5, 1.0, 2.0, 4.0, *rng.uniform(0.1, 10, 100)]
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(((32,),), ((1.0,),))
    theirs = generator.generate_anchors(sizes, ratios)
    np.testing.assert_array_equal(ops.base_anchors(sizes, ratios), theirs.numpy())


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize(("high", "low"), [(0.7, 0.3), (0.5, 0.5), (0.1, 0.0)])
def test_matcher(high, low, low_quality):
    """1,800 boxes in 60 pictures: whole numbers tie, and meet the thresholds."""
    matcher = detection.Matcher(high, low, low_quality)
    boxes, objects = (x.reshape(60, -1, 4) for x in pairs("whole", 1800))
    boxes[::2], objects[::2] = (x.reshape(60, -1, 4)[::2] for x in pairs("any", 1800))
    boxes[::3, 3, 2], objects[::3, 1] = boxes[::3, 3, 0], boxes[::3, 3]  # 0 / 0
    valid = np.random.default_rng(0).random((60, 9)) < 0.7
    valid[:, 1] = True
    objects = objects[:, :9]

    @jax.jit
    @jax.vmap
    def run(objects, boxes, valid):
        return ops.match(ops.box_iou(objects, boxes), high, low, low_quality, valid)

    ours = np.asarray(run(np.where(valid[..., None], objects, np.nan), boxes, valid))
    for trial in range(60):
        rows = np.flatnonzero(valid[trial])
        iou = torchvision.ops.box_iou(to_torch(objects[trial, rows]), to_torch(boxes[trial]))
        theirs = matcher(iou).numpy()
        theirs = np.where(theirs >= 0, rows[theirs], theirs)
        np.testing.assert_array_equal(ours[trial], theirs)
    assert len(np.unique(ours)) == 9 + (2 if 0 < low < high else 1)


def test_sampler_draws_as_many():
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 0, 1], (300, 40), p=[0.3, 0.4, 0.3])
    labels[:50], labels[50:100], labels[100:110] = (
        labels[:50] % 2,
        np.minimum(labels[50:100], 0),
        -1,
    )
    keys = jax.random.split(jax.random.key(0), 300)
    for size, fraction in ((16, 0.5), (16, 0.25), (64, 0.25)):
        theirs = detection.BalancedPositiveNegativeSampler(size, fraction)(
            [torch.tensor(row) for row in labels]
        )

        def draw(key, labels, size=size, fraction=fraction):
            return ops.sample_balanced(key, labels == 1, labels == 0, size, fraction)

        sample = jax.device_get(jax.jit(jax.vmap(draw))(keys, labels))
        counts = sample.positive.sum(axis=1), (sample.valid & ~sample.positive).sum(axis=1)
        for count, masks in zip(counts, theirs, strict=True):
            np.testing.assert_array_equal(count, [int(mask.sum()) for mask in masks])
