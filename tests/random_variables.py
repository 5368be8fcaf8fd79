"""Random variables of networks, for tests that have no use for the real initialisation."""

import jax
import numpy as np


def random_variables(model, input_shape, seed=0):
    """Returns variables for pictures [h, w, c] with non-trivial statistics, in NumPy's arrays.

    Drawing them with `model.init` would compile a program of many seconds.
    """
    rng = np.random.default_rng(seed)
    blank = jax.ShapeDtypeStruct((1, *input_shape), np.float32)

    def draw(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name == "kernel":
            values = rng.normal(size=shape) * np.sqrt(1 / np.prod(shape[:-1]))
        elif name in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(size=shape) / 10
        return values.astype(leaf.dtype)

    variables = jax.eval_shape(model.init, jax.random.key(0), blank)
    return jax.tree_util.tree_map_with_path(draw, variables)
