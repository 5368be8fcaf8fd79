"""Random variables of networks, drawn by what compiles quickly."""

import jax
import numpy as np

from jaxvision.models import abstract_variables


def random_variables(model, input_shape, seed=0):
    """Returns variables for pictures [h, w, c] with non-trivial statistics, in NumPy's arrays.

    For tests that have no use for the real initialisation: drawing it with `model.init` would
    compile a program of many seconds.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name == "kernel":
            values = rng.normal(size=shape) * np.sqrt(1 / np.prod(shape[:-1]))
        elif name in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(size=shape) / 10
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model, input_shape))
