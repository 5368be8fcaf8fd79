"""A state's arrays are its own."""

import numpy as np

from jaxvision.train import create_state
from jaxvision.train.optim import sgd


def test_a_state_does_not_change_with_the_arrays_it_was_made_of():
    for _ in range(10):  # jax is still reading a large one when `device_put` has returned
        kernel = np.ones((2000, 1500), np.float32)
        state = create_state({"params": {"kernel": kernel}}, sgd(0.1))
        kernel[:] = 5
        assert (np.asarray(state.params["kernel"]) == 1).all()
