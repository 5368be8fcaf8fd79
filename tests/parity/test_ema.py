"""The moving average of the weights against torch.optim.swa_utils.AveragedModel."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from jaxvision.losses import classification_loss
from jaxvision.models import get_model
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd

from .tensors import assert_close, linen_params, to_nchw, to_torch
from .torch_models import GarmentClassifier


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_average_of_every_step(pictures, decay):
    """torch's first update copies the weights: called before training, it is our `create_state`.

    From then on both do `average = decay * average + (1 - decay) * weights` after each step.
    """
    torch.manual_seed(0)
    theirs = GarmentClassifier()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
    average = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.update_parameters(theirs)

    tx = sgd(0.05)
    params = linen_params(theirs.named_parameters(), (16, 4, 4))
    state = jax.jit(partial(create_state, tx=tx, ema=True))({"params": params})
    train_step = make_train_step(classification_loss(get_model("lenet")), tx, ema_decay=decay)
    for step in range(10):
        rows = np.arange(16 * step, 16 * (step + 1))
        images, labels = pictures.images[rows], pictures.labels[rows]
        optimizer.zero_grad()
        logits = theirs(to_nchw(images).float() / 255)
        nn.CrossEntropyLoss()(logits, to_torch(labels).long()).backward()
        optimizer.step()
        average.update_parameters(theirs)
        state, _ = train_step(state, {"image": images, "label": labels})

        expected = linen_params(average.module.named_parameters(), (16, 4, 4))
        assert_close(state.ema["params"], expected, 1e-6, f"after step {step}")
    assert_close(state.params, linen_params(theirs.named_parameters(), (16, 4, 4)), 1e-6)
    # The average is not merely the weights, which would pass at a decay of 0.
    with pytest.raises(AssertionError, match="relative errors"):
        assert_close(state.ema["params"], state.params, 1e-3)
