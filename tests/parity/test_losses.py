"""cross_entropy and the evaluation against torch's CrossEntropyLoss on the unpadded batch."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

from jaxvision.data import Batches
from jaxvision.losses import classification_loss, cross_entropy
from jaxvision.models import get_model
from jaxvision.train import create_state, evaluate, make_eval_step
from jaxvision.train.optim import sgd
from jaxvision.train.resident import ResidentData

from .tensors import linen_params, to_nchw, to_torch
from .torch_models import GarmentClassifier

value_and_grad = jax.jit(jax.value_and_grad(cross_entropy), static_argnums=3)


def random_logits(kind, size=9, classes=10):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(size, classes)).astype(np.float32)
    if kind == "large":
        logits *= 100  # a softmax that overflows unless the maximum is taken away first
    if kind == "tied":
        logits[:] = 2
    return logits, rng.integers(0, classes, size)


@pytest.mark.parametrize("poison", [None, 0.0, np.inf, np.nan])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["normal", "large", "tied"])
def test_cross_entropy(kind, label_smoothing, poison):
    """`poison` fills the logits of three padded rows, whose labels are no classes."""
    logits, labels = random_logits(kind)
    theirs = to_torch(logits).requires_grad_()
    loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)(theirs, torch.tensor(labels))
    loss.backward()

    valid, size = None, len(labels)
    if poison is not None:
        logits = np.insert(logits, [0, 4, size], np.float32(poison), axis=0)
        labels = np.insert(labels, [0, 4, size], [-1, 10, 255])
        valid = np.insert(np.ones(size, bool), [0, 4, size], False)
    value, gradient = value_and_grad(logits, labels.astype(np.int32), valid, label_smoothing)
    gradient = np.asarray(gradient)
    assert float(value) == pytest.approx(loss.item(), rel=1e-6)
    real = slice(None) if valid is None else valid
    np.testing.assert_allclose(gradient[real], theirs.grad.numpy(), rtol=1e-5, atol=1e-7)
    if valid is not None:
        np.testing.assert_array_equal(gradient[~valid], 0)


@pytest.mark.parametrize("resident", [False, True])
def test_evaluation_counts_every_picture_once(pictures, resident):
    """Loss and accuracy over a set that batches of 64 do not divide, as torch has them in one."""
    pictures = pictures.subset(np.arange(300))
    torch.manual_seed(0)
    theirs = GarmentClassifier()
    with torch.no_grad():
        logits = theirs((to_nchw(pictures.images).float() / 255 - 0.5) / 0.5)
    labels = to_torch(pictures.labels).long()
    expected = nn.CrossEntropyLoss()(logits, labels).item()

    params = linen_params(theirs.named_parameters(), (16, 4, 4))
    state = jax.jit(create_state, static_argnums=1)({"params": params}, sgd(0.1))
    loss_fn = classification_loss(get_model("lenet"), mean=0.5, std=0.5)
    batches = Batches(pictures, batch_size=64, shuffle=False)
    if resident:
        data = ResidentData(batches)
        eval_step, examples = make_eval_step(loss_fn, select=data.select), data.epoch()
    else:
        eval_step, examples = make_eval_step(loss_fn), map(batches, range(batches.steps_per_epoch))
    result = evaluate(eval_step, state, examples)
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    assert result["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
