"""Operators and networks take NumPy arrays as they take JAX's.

Each call is one program, because its operations would take seconds to compile one by one; NumPy's
arrays are still NumPy's in it, as outside of jit: they are no arguments of it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision import ops
from jaxvision.losses import classification_loss, cross_entropy
from jaxvision.models import get_model
from jaxvision.weights import from_torch, to_torch

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(6, 8, 3)).astype(np.float32)
BATCH = MAPS[None]
CORNERS = RNG.uniform(0, 5, (4, 2)).astype(np.float32)
BOXES = np.concatenate(
    [CORNERS, CORNERS + 1 + RNG.uniform(0, 4, (4, 2)).astype(np.float32)], axis=1
)
SCORES = np.array([0.9, 0.2, 0.6, 0.4], np.float32)
LABELS = np.array([0, 1, 0, 1], np.int32)
KERNEL = RNG.normal(size=(3, 3, 3, 2)).astype(np.float32)
CHANNELS = RNG.uniform(0.5, 1, (4, 3)).astype(np.float32)
PLACES = np.arange(48, dtype=np.int32).reshape(6, 8, 1)[1::2, ::2].repeat(3, axis=2)
CASES = {
    "adaptive_avg_pool": (BATCH, 2),
    "avg_pool": (BATCH, 2),
    "batch_norm": (BATCH, CHANNELS[0], CHANNELS[1]),
    "batched_nms": (BOXES, SCORES, LABELS, 0.5, 4),
    "box_area": (BOXES,),
    "box_iou": (BOXES, BOXES),
    "clip_boxes": (BOXES, (4, 4)),
    "conv2d": (BATCH, KERNEL),
    "conv_transpose2d": (BATCH[..., :2], KERNEL, (2, 2)),
    "crop_masks": (MAPS.transpose(2, 0, 1) > 0, BOXES, LABELS, 3),
    "decode_boxes": (BOXES / 10, BOXES),
    "encode_boxes": (BOXES, BOXES),
    "flip_boxes_horizontally": (BOXES, 9),
    "generalized_box_iou": (BOXES, BOXES),
    "global_avg_pool": (BATCH,),
    "heatmaps_to_keypoints": (RNG.normal(size=(4, 5, 5, 2)).astype(np.float32), BOXES),
    "max_pool": (BATCH, 2),
    "max_pool_with_argmax": (MAPS, 2),
    "max_unpool": (MAPS[:3, :4], PLACES, (6, 8)),
    "multiscale_roi_align": ([MAPS, MAPS[::2, ::2]], BOXES, 2, (1, 0.5)),
    "nms": (BOXES, SCORES, 0.5, 4),
    "normalize_by": (BATCH, *CHANNELS),
    "normalize_images": ((MAPS * 9).clip(0).astype(np.uint8), 0.5, 0.5),
    "resize_bilinear": (BATCH, (3, 3)),
    "resize_nearest": (BATCH, (3, 3)),
    "roi_align": (MAPS, BOXES, 2),
    "roi_pool": (MAPS, BOXES, 2),
    "soft_nms": (BOXES, SCORES, 4),
    "unpool_bed_of_nails": (MAPS, 2),
    "unpool_nearest": (MAPS, 2),
    "warp_rois": (MAPS, BOXES, 40),
    "xywh_to_xyxy": (BOXES,),
    "zero_outside": (BATCH, np.array([[4, 5]])),
}


@pytest.mark.parametrize("name", CASES)
def test_operators(name):
    def call(*arguments):
        results = getattr(ops, name)(*arguments)
        assert all(isinstance(result, jax.Array) for result in jax.tree.leaves(results))
        return results

    on_device = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, CASES[name]
    )
    found, expected = (
        jax.jit(partial(call, *arguments))() for arguments in (CASES[name], on_device)
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_whole_numbers_are_numbers():
    """Where a signature says float, as everywhere in Python."""
    ops.roi_align(MAPS, BOXES, 2, spatial_scale=1)
    ops.normalize_images(MAPS, mean=0, std=1)
    ops.normalize_images(MAPS, mean=np.zeros(3), std=jnp.ones(3))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("lenet", {"features": (2, 3), "hidden": (8,)}, (28, 28, 1)),
        ("resnet18", {"width": 8, "stage_sizes": (1, 1)}, (32, 32, 3)),
    ],
)
def test_networks_with_the_weights_of_a_file(name, options, shape):
    model = get_model(name, num_classes=4, **options)
    images = RNG.normal(size=(2, *shape)).astype(np.float32)
    variables = random_variables(model, shape)
    if name == "resnet18":
        tensors = to_torch(name, variables, num_classes=4, **options)
        variables = from_torch(name, tensors, num_classes=4, **options)
    logits = jax.jit(partial(model.apply, variables, images, train=False))()
    assert logits.shape == (2, 4)
    training = {"train": True, "mutable": ["batch_stats"]}
    outputs, _ = jax.jit(partial(model.apply, variables, images, **training))()
    assert outputs.shape == (2, 4)
    batch = {"image": images, "label": np.array([1, 3]), "valid": np.array([True, False])}
    stats = variables.get("batch_stats", {})
    loss_fn = classification_loss(model, mean=0, std=1)
    arguments = (variables["params"], stats, batch, jax.random.key(0))
    loss, (_, metrics) = jax.jit(partial(loss_fn, *arguments, train=False))()
    expected = cross_entropy(np.asarray(logits)[:1], batch["label"][:1])
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert set(metrics) == {"loss", "accuracy"}
