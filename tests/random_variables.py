"""Random variables of networks, drawn by what compiles quickly."""

import functools

import jax
import numpy as np


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

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model, input_shape))


def variable_shapes(model, input_shape):
    """Returns the shapes of the variables for pictures [h, w, c]; once traced, they are kept."""
    return jax.tree.map(lambda shape: shape, _traced(model, tuple(input_shape)))


@functools.cache
def _traced(model, input_shape):
    blank = jax.ShapeDtypeStruct((1, *input_shape), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), blank)


def initial_variables(model, input_shape, seed=0):
    """Returns the variables for pictures [h, w, c] as `model.init` draws them."""
    return jax.jit(model.init)(jax.random.key(seed), np.zeros((1, *input_shape), np.float32))
