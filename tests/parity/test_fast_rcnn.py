"""Fast R-CNN against torchvision's backbone and RoIHeads, given the same proposals.

In float64, and with samples that take every RoI, as in Faster R-CNN's training.
"""

import jax
import numpy as np
import pytest
import torch

from jaxvision.losses import fast_rcnn_loss
from jaxvision.losses.fast_rcnn import RoISampling
from jaxvision.models import get_model
from jaxvision.models.proposal_detection import make_proposal_detector
from jaxvision.weights import from_torch, to_torch

from .test_faster_rcnn import MEAN, STD, TORCH_TOP, pictures, to_chw
from .test_faster_rcnn_training import errors_of, gradients_of, objects, our_batch, torch_batch
from .torch_detectors import (
    CLASSES,
    SLIM,
    _operators_in_python,
    padded,
    state_of,
    torch_detector,
)

NAME = "fastrcnn_resnet18_fpn"
OPTIONS = {"num_classes": CLASSES, "frozen_norm": True}
OPTIONS |= {name: SLIM[name] for name in ("width", "fpn_features", "representation_size")}
GIVEN = 30
EVERYTHING = RoISampling(100, 0.5, background_iou=0.0)


def without_rpn(tensors):
    return {name: x for name, x in tensors.items() if not name.startswith("rpn.")}


def proposals(seed=3):
    """Some around the objects, some anywhere, those of the third picture fewer."""
    rng = np.random.default_rng(seed)
    found = []
    for image, (boxes, _), count in zip(pictures(64), objects(), (GIVEN, GIVEN, 20), strict=False):
        h, w = image.shape[:2]
        near = boxes[rng.integers(len(boxes), size=10)] if len(boxes) else np.zeros((0, 4))
        near = near + rng.uniform(-4, 4, near.shape)
        corner = rng.uniform(0, [w - 8, h - 8], (count - len(near), 2))
        far = np.concatenate([corner, corner + rng.uniform(4, 60, corner.shape)], axis=1)
        found.append(np.clip(np.concatenate([near, far]), 0, [w, h, w, h]))
    return found


def our_proposals():
    boxes, valid = np.full((3, GIVEN, 4), np.nan), np.zeros((3, GIVEN), bool)
    for i, each in enumerate(proposals()):
        boxes[i, : len(each)], valid[i, : len(each)] = each, True
    return {"proposals": boxes, "proposal_valid": valid}


@pytest.fixture(scope="module")
def theirs():
    settings = {"min_size": 64, "max_size": 400, **TORCH_TOP}
    settings |= {"box_batch_size_per_image": 100, "box_positive_fraction": 0.5}
    # The autouse fixture that lets torchvision run is of each test: this one comes before it.
    with pytest.MonkeyPatch.context() as monkeypatch:
        _operators_in_python.__wrapped__(monkeypatch)
        pictures_ = to_chw(pictures(64)[:3])
        return torch_detector("fasterrcnn_resnet18_fpn", pictures_, **settings).double()


@pytest.fixture(scope="module")
def variables(theirs):
    tensors = without_rpn(state_of(theirs))
    found = from_torch(NAME, tensors, cast=True, **OPTIONS)
    back = to_torch(NAME, found, **OPTIONS)
    assert back.keys() == tensors.keys() - {k for k in tensors if k.endswith("num_batches_tracked")}
    return jax.tree.map(lambda x: x.astype(np.float64) if x.ndim else x, found)


def their_features(theirs):
    images, sizes = padded(pictures(64)[:3])
    images = (images.astype(np.float64) - MEAN) / STD
    features = theirs.backbone(torch.tensor(np.nan_to_num(images)).permute(0, 3, 1, 2))
    return features, [tuple(size) for size in sizes.tolist()]


def test_losses_and_gradients(theirs, variables):
    theirs.train()
    theirs.zero_grad()
    targets = torch_batch()[1]
    features, sizes = their_features(theirs)
    given = [torch.tensor(each) for each in proposals()]
    _, losses = theirs.roi_heads(features, given, sizes, targets)
    sum(losses.values()).backward()
    for parameter in theirs.rpn.parameters():  # which has no part in it
        parameter.grad = torch.zeros_like(parameter)
    gradients = without_rpn({**state_of(theirs), **gradients_of(theirs)})
    gradients = from_torch(NAME, gradients, cast=True, **OPTIONS)["params"]

    with jax.enable_x64(True):
        model = get_model(NAME, **OPTIONS, dtype="float64")
        loss_fn = fast_rcnn_loss(model, mean=MEAN, std=STD, sampling=EVERYTHING)
        value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        batch = {**our_batch(), **our_proposals()}
        (_, (_, metrics)), ours = value_and_grad(
            variables["params"], variables["batch_stats"], batch, jax.random.key(0)
        )
    for term, loss in losses.items():
        assert float(metrics[term]) == pytest.approx(loss.item(), rel=1e-4)
        assert loss.item() > 0.01
    errors = errors_of(jax.device_get(ours), gradients)
    worst = max(errors, key=errors.get)
    assert errors[worst] < 1e-3, worst


def test_detections(theirs, variables):
    theirs.eval()
    with torch.no_grad():
        features, sizes = their_features(theirs)
        given = [torch.tensor(each) for each in proposals()]
        expected, _ = theirs.roi_heads(features, given, sizes)
    with jax.enable_x64(True):
        model = get_model(NAME, **OPTIONS, dtype="float64")
        detect = make_proposal_detector(model, mean=MEAN, std=STD)
        batch = {**our_batch(), **our_proposals()}
        names = ("image", "size", "proposals", "proposal_valid")
        found = jax.device_get(detect(variables, *(batch[name] for name in names)))
    for i, want in enumerate(expected):
        count = len(want["scores"])
        assert 3 < count == found.valid[i].sum()
        np.testing.assert_allclose(found.boxes[i, :count], want["boxes"], atol=1e-2)
        np.testing.assert_allclose(found.scores[i, :count], want["scores"], atol=1e-4)
        np.testing.assert_array_equal(found.labels[i, :count] + 1, want["labels"])
