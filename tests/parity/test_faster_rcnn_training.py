"""Faster R-CNN's training against torchvision's: four losses, gradients, ten steps.

Samples are large enough to take every anchor and every RoI, so that both sides take the same. In
float64, because which boxes are suppressed, and which ReLU is on, jumps with rounding.
"""

import functools

import jax
import numpy as np
import pytest
import torch

from jaxvision.losses import faster_rcnn_loss
from jaxvision.losses.rcnn import Sampling
from jaxvision.models import get_model
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd
from jaxvision.weights import from_torch

from .test_faster_rcnn import MEAN, STD, pictures, to_chw
from .torch_detectors import (
    BUILDERS,
    CLASSES,
    _operators_in_python,  # noqa: F401
    padded,
    state_of,
    torch_detector,
)

TERMS = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
STEPS = 10
RATES = {"fasterrcnn_resnet50_fpn_v2": 1e-10, "fasterrcnn_mobilenet_v3_large_fpn": 1e-5}
"""3e-4, but for the wide ones, whose gradients are so large that it leads to chaos: at 1e-7, which
takes a quarter off v2's loss in two steps, a difference of 1e-7 becomes 1e-5, 2e-3, 2e-2."""
TOP = {"pre_nms_top_n": (100, 100), "post_nms_top_n": (40, 40)}
EVERYTHING = Sampling(num_anchors=10_000, num_rois=100, roi_positive_fraction=0.5)
SETTINGS = {
    **{
        f"rpn_{which}_nms_top_n_{when}": n
        for which, n in (("pre", 100), ("post", 40))
        for when in ("train", "test")
    },
    "rpn_batch_size_per_image": 10_000,
    "box_batch_size_per_image": 100,
    "box_positive_fraction": 0.5,
    "min_size": 64,
    "max_size": 400,
}
FEW_CLASSES = ("fasterrcnn_resnet18_fpn", "fasterrcnn_vgg16")
NAMES = [
    "fasterrcnn_resnet18_fpn",
    pytest.param("fasterrcnn_vgg16", marks=pytest.mark.slow),
    pytest.param("fasterrcnn_resnet50_fpn_v2", marks=pytest.mark.slow),
    pytest.param("fasterrcnn_mobilenet_v3_large_fpn", marks=pytest.mark.slow),
]


def objects(seed=0):
    """Boxes and labels, from 0 on, of three pictures; the second has none."""
    rng = np.random.default_rng(seed)
    found = []
    for (h, w, _), count in zip((x.shape for x in pictures(64)[:3]), (3, 0, 2), strict=True):
        corner = rng.uniform(0, [w - 24, h - 24], (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 24, (count, 2))], axis=1)
        found.append((boxes, rng.integers(0, CLASSES - 1, count)))
    return found


def torch_batch():
    images = [image.double() for image in to_chw(pictures(64)[:3])]
    targets = [
        {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels) + 1}
        for boxes, labels in objects()
    ]
    return images, targets


def our_batch():
    images, sizes = padded(pictures(64)[:3])
    boxes, labels = np.full((3, 4, 4), np.nan), np.zeros((3, 4), np.int32)
    box_valid = np.zeros((3, 4), bool)
    for i, (their_boxes, their_labels) in enumerate(objects()):
        count = len(their_labels)
        boxes[i, :count], labels[i, :count], box_valid[i, :count] = their_boxes, their_labels, True
    names = ("image", "size", "boxes", "labels", "box_valid")
    batch = dict(
        zip(names, (images.astype(np.float64), sizes, boxes, labels, box_valid), strict=True)
    )
    return batch


def made(name):
    """Returns torchvision's network, our model, our variables and the conversion."""
    options = {**BUILDERS[name][1], "num_classes": CLASSES if name in FEW_CLASSES else 91}
    if not name.endswith("_v2"):
        options |= TOP
    theirs = torch_detector(name, to_chw(pictures(64)[:3]), **SETTINGS)
    convert = functools.partial(from_torch, name, cast=True, **options)
    variables = convert(state_of(theirs))
    model = get_model(name, **options, dtype="float64")
    if name.endswith("_v2"):
        model = model.clone(rpn=model.rpn.clone(**TOP))
    variables = jax.tree.map(lambda x: x.astype(np.float64) if x.ndim else x, variables)
    return theirs.double().train(), model, variables, convert


@pytest.mark.parametrize("name", NAMES)
def test_losses_gradients_and_ten_steps(name):
    theirs, model, variables, convert = made(name)
    rate = RATES.get(name, 3e-4)
    state, images_and_targets = state_of(theirs), torch_batch()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=rate, momentum=0.9)
    wanted = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = theirs(*images_and_targets)
        sum(losses.values()).backward()
        if step == 0:
            gradients = {**state, **gradients_of(theirs)}
        optimizer.step()
        wanted.append([losses[term].item() for term in TERMS])
    wanted, gradients = np.array(wanted), convert(gradients)["params"]

    with jax.enable_x64(True):
        loss_fn = faster_rcnn_loss(model, mean=MEAN, std=STD, sampling=EVERYTHING)
        tx = sgd(rate, momentum=0.9)
        # The first step's gradient is what momentum starts with, so one compile shows both.
        step = make_train_step(loss_fn, tx)
        training = jax.jit(create_state, static_argnums=1)(variables, tx)
        found = []
        for i in range(STEPS):
            training, metrics = step(training, our_batch())
            found.append([float(metrics[term]) for term in TERMS])
            if i == 0:
                moved = jax.tree.map(np.asarray, jax.device_get(training.params))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
    ours = jax.tree.map(lambda after, before: (before - after) / rate, moved, variables["params"])
    errors = errors_of(ours, gradients)
    worst = max(errors, key=errors.get)
    print(f"{name}: worst gradient {errors[worst]:.1e} at {worst}; loss {wanted.sum(axis=1)}")
    assert errors[worst] < 1e-3, worst
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    assert abs(wanted[-1].sum() / wanted[0].sum() - 1) > 1e-3  # it went somewhere


def errors_of(ours, theirs):
    """`relative_errors`, where a gradient that is a millionth of the whole one may be wrong.

    Shifting what batch normalisation takes out again has none but for rounding.
    """
    total = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(theirs)))

    def error(p, q):
        return float(np.linalg.norm(p - q) / (np.linalg.norm(q) + 1e-6 * total))

    found = jax.tree.map(error, ours, theirs)
    return {jax.tree_util.keystr(path): e for path, e in jax.tree.leaves_with_path(found)}


def gradients_of(model):
    given = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None for g in given.values())
    state = model.state_dict()
    names = dict(zip(state, state_of(model), strict=True))
    return {names[name]: gradient.numpy().copy() for name, gradient in given.items()}
