"""Focal loss, and the losses of RetinaNet, FCOS and SSD, against torchvision's, with gradients.

Here on outputs that are given; in training, which takes long to compile, the slow tests compare
whole networks. In float64, so that no ReLU and no match depends on rounding.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxvision.losses import fcos_loss, retinanet_loss, sigmoid_focal_loss, ssd_loss
from jaxvision.models.dense import DenseOutputs
from jaxvision.models.fcos import FCOSOutputs
from jaxvision.ops import default_boxes, match_every_object
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd
from jaxvision.weights import from_torch

from .test_dense import blobs
from .test_faster_rcnn import to_chw
from .test_faster_rcnn_training import errors_of, gradients_of
from .torch_dense import CASES, our_model, torch_dense
from .torch_detectors import (
    CLASSES,
    _operators_in_python,  # noqa: F401
    detection,
    padded,
    state_of,
)
from .torchvision_cpu import torchvision

LOSSES = {"retinanet": retinanet_loss, "fcos": fcos_loss, "ssd": ssd_loss}
NAMES = ("cls_logits", "bbox_regression", "bbox_ctrness")
TERMS = ("classification", "bbox_regression", "bbox_ctrness")


def loss_of(case):
    return next(loss for kind, loss in LOSSES.items() if case.startswith(kind))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (None, 2.0), (0.6, 0.5), (0.25, 0.0)])
def test_focal_loss(alpha, gamma):
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(0, 3, 400), [0, 30, -30, 90, -90]]).astype(np.float32)
    targets = (rng.uniform(size=405) < 0.3).astype(np.float32)
    theirs = torch.tensor(logits, requires_grad=True)
    # torchvision's -1 is our None.
    losses = torchvision.ops.sigmoid_focal_loss(
        theirs, torch.tensor(targets), -1 if alpha is None else alpha, gamma
    )
    losses.sum().backward()

    @jax.jit
    def run(logits, targets):
        ours, vjp = jax.vjp(lambda x: sigmoid_focal_loss(x, targets, alpha, gamma), logits)
        return ours, vjp(jnp.ones_like(ours))[0]

    ours, gradient = jax.device_get(run(logits, targets))
    np.testing.assert_allclose(ours, losses.detach().numpy(), rtol=1e-5, atol=1e-6)
    finite = np.isfinite(theirs.grad.numpy())  # torch's own is NaN at 0 to a small power
    assert finite[:400].all()
    np.testing.assert_allclose(gradient[finite], theirs.grad.numpy()[finite], rtol=1e-4, atol=1e-6)


def test_every_object_gets_its_box():
    rng = np.random.default_rng(0)
    matcher, match = detection._utils.SSDMatcher(0.5), jax.jit(match_every_object, static_argnums=1)
    for _ in range(20):
        iou = rng.uniform(size=(5, 12)).round(1).astype(np.float32)  # with ties
        theirs = matcher(torch.from_numpy(iou))
        padded_iou = np.concatenate([iou, np.ones((2, 12), np.float32)])
        ours = match(padded_iou, 0.5, np.arange(7) < 5)
        np.testing.assert_array_equal(ours, theirs.numpy())


# ------------------------------------------------------------------------------- given outputs
def objects(h, w, seed=0):
    """Boxes and labels, from 0 on, of three pictures; the second has none."""
    rng = np.random.default_rng(seed)
    found = []
    for count in (4, 0, 3):
        sides = rng.uniform([8, 8], [0.7 * w, 0.7 * h], (count, 2))
        corner = rng.uniform(0, 1, (count, 2)) * ([w, h] - sides)
        boxes = np.concatenate([corner, corner + sides], axis=1)
        found.append((boxes, rng.integers(0, CLASSES - 1, count)))
    return found


def torch_targets(found):
    return [
        {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels) + 1}
        for boxes, labels in found
    ]


def batch_of(images, sizes, found):
    boxes, labels = np.full((3, 6, 4), np.nan), np.zeros((3, 6), np.int32)
    box_valid = np.zeros((3, 6), bool)
    for i, (their_boxes, their_labels) in enumerate(found):
        count = len(their_labels)
        boxes[i, :count], labels[i, :count], box_valid[i, :count] = their_boxes, their_labels, True
    names = ("image", "size", "boxes", "labels", "box_valid")
    return dict(zip(names, (images, sizes, boxes, labels, box_valid), strict=True))


def grids_and_size(case):
    if case == "ssd":
        return [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)], (300, 300)
    return [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)], (96, 128)


def torch_losses(theirs, found, heads, anchors, counts):
    if isinstance(theirs, detection.FCOS):
        return theirs.compute_loss(found, heads, anchors, counts)
    if isinstance(theirs, detection.RetinaNet):
        return theirs.compute_loss(found, heads, anchors)
    matched = [
        theirs.proposal_matcher(torchvision.ops.box_iou(target["boxes"], boxes))
        if len(target["boxes"])
        else torch.full((len(boxes),), -1)
        for target, boxes in zip(found, anchors, strict=True)
    ]
    return theirs.compute_loss(found, heads, anchors, matched)


def given_outputs(case, count):
    """Random numbers of `count` anchors for each of three pictures, under torchvision's names."""
    rng, columns = np.random.default_rng(1), {"cls_logits": CLASSES, "bbox_regression": 4}
    if case == "fcos":
        columns["bbox_ctrness"] = 1
    given = {name: rng.normal(size=(3, count, k)) for name, k in columns.items()}
    if case == "fcos":  # behind a ReLU
        given["bbox_regression"] = np.abs(given["bbox_regression"])
    return given


def network_of(case, given, levels):
    """A network whose parameters are its outputs, and whose anchors are `levels`."""
    ends = np.cumsum([len(x) for x in levels])[:-1]
    kind = FCOSOutputs if case == "fcos" else DenseOutputs

    class Given(nn.Module):
        box_loss: str = "giou" if case == "retinanet v2" else "l1"

        @nn.compact
        def __call__(self, images, sizes, *, train):
            said = []
            for name, x in given.items():
                x = self.param(name, lambda _, x=x: jnp.asarray(x))
                x = x[..., 0] if name == "bbox_ctrness" else x
                said.append(tuple(jnp.split(x, ends, axis=1)))
            return kind(*said, levels)

    return Given()


@pytest.mark.parametrize("case", ["retinanet", "retinanet v2", "fcos", "ssd"])
def test_losses_and_gradients_of_given_outputs(case):
    theirs, (grids, size) = CASES[case][0](), grids_and_size(case)
    pictures = detection.image_list.ImageList(torch.zeros(3, 3, *size), [size] * 3)
    maps = [torch.zeros(1, 1, *grid, dtype=torch.float64) for grid in grids]
    anchors = theirs.anchor_generator(pictures, maps)
    per_place = [4, 6, 6, 6, 4, 4] if case == "ssd" else [1 if case == "fcos" else 9] * 5
    counts = [a * h * w for a, (h, w) in zip(per_place, grids, strict=True)]
    given, found = given_outputs(case, sum(counts)), objects(*size)
    heads = {name: torch.tensor(x, requires_grad=True) for name, x in given.items()}
    losses = torch_losses(theirs, torch_targets(found), heads, anchors, counts)
    sum(losses.values()).backward()

    levels = np.split(anchors[0].numpy().astype(np.float32), np.cumsum(counts)[:-1])
    with jax.enable_x64(True):
        batch = batch_of(np.zeros((3, *size, 3), np.uint8), np.tile(size, (3, 1)), found)
        loss_fn = loss_of(case)(network_of(case, given, tuple(levels)))
        step = jax.value_and_grad(functools.partial(loss_fn, train=False), has_aux=True)
        (loss, (_, terms)), gradients = jax.jit(step)(given, {}, batch, None)
    assert float(loss) == pytest.approx(sum(losses.values()).item(), rel=1e-4)
    assert set(terms) == {"loss", *losses}
    for name, theirs_term in losses.items():
        assert float(terms[name]) == pytest.approx(theirs_term.item(), rel=1e-4), name
        assert theirs_term > 0
    for name, gradient in gradients.items():
        expected = heads[name].grad.numpy()
        difference = np.linalg.norm(np.asarray(gradient) - expected)
        assert difference < 1e-3 * np.linalg.norm(expected), name


# -------------------------------------------------------------------------------- whole networks
STEPS, RATE = 4, 1e-6
WHOLE = ("retinanet", "retinanet v2", "fcos", "ssd", "ssdlite320_mobilenet_v3_large")


def same_boxes(model, _, given, anchors):
    """Our default boxes instead of torchvision's, which in float64 differ in the last digits.

    Of several that overlap an object alike, these decide which has it.
    """
    pictures, maps = given
    grids, size = [tuple(x.shape[-2:]) for x in maps], tuple(pictures.tensors.shape[-2:])
    boxes = default_boxes(grids, size, model.scales, model.aspect_ratios, model.steps)
    boxes = torch.from_numpy(np.concatenate(boxes)).double()
    torch.testing.assert_close(boxes, anchors[0], rtol=1e-6, atol=1e-4)
    return [boxes] * len(anchors)


@pytest.mark.slow
@pytest.mark.parametrize("case", WHOLE)
def test_losses_gradients_and_a_few_steps(case):
    images = blobs([(64, 96), (64, 64), (90, 64)])
    settings = {} if "ssd" in case else {"min_size": 64, "max_size": 400}
    theirs = torch_dense(case, to_chw(images), **settings)
    _, name, options = CASES[case]
    convert = functools.partial(from_torch, name, cast=True, **options)
    state, variables = state_of(theirs), convert(state_of(theirs))
    size = theirs.transform.fixed_size
    if size is not None:  # or torchvision would stretch them
        images = blobs([size] * 3)
    theirs = theirs.double().train()
    model = our_model(case, "float64")
    if size is not None:
        theirs.anchor_generator.register_forward_hook(functools.partial(same_boxes, model))
    found = objects(64, 64) if size is None else objects(*size)
    chw, targets = [x.double() for x in to_chw(images)], torch_targets(found)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE, momentum=0.9)
    wanted = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = theirs(chw, targets)
        sum(losses.values()).backward()
        if step == 0:
            gradients = convert({**state, **gradients_of(theirs)})["params"]
        optimizer.step()
        wanted.append([losses[term].item() for term in TERMS if term in losses])

    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: x.astype(np.float64) if x.ndim else x, variables)
        mean, std = theirs.transform.image_mean, theirs.transform.image_std
        loss_fn = loss_of(case)(model, mean=mean, std=std)
        tx = sgd(RATE, momentum=0.9)
        step = make_train_step(loss_fn, tx)
        training = jax.jit(create_state, static_argnums=1)(variables, tx)
        array, sizes = padded(images, 1 if size else 32)
        batch = batch_of(array.astype(np.float64), sizes, found)
        ours = []
        for i in range(STEPS):
            training, metrics = step(training, batch)
            ours.append([float(metrics[term]) for term in TERMS if term in metrics])
            if i == 0:
                moved = jax.tree.map(np.asarray, jax.device_get(training.params))
    np.testing.assert_allclose(ours[0], wanted[0], rtol=1e-4)
    taken = jax.tree.map(lambda after, before: (before - after) / RATE, moved, variables["params"])
    errors = errors_of(taken, gradients)
    worst = max(errors, key=errors.get)
    print(f"{case}: worst gradient {errors[worst]:.1e} at {worst}; losses {wanted}")
    assert errors[worst] < 1e-3, worst
    np.testing.assert_allclose(ours, wanted, rtol=1e-3)
    assert np.abs(np.subtract(wanted[-1], wanted[0])).max() > 1e-4  # it went somewhere
