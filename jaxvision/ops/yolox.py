"""YOLOX's cells, and boxes and scores of what its network returns (arXiv:2107.08430, section 2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array


def decode_yolox(
    outputs: Sequence[Float[Array, "b _ _ c"]], strides: Sequence[int] = (8, 16, 32)
) -> tuple[Float[Array, "b n 4"], Float[Array, "b n k"]]:
    """Returns boxes in pixels of the network's input, and their scores for each of k classes.

    `outputs` are a map a level, of which each cell has (x, y, log w, log h, objectness, classes):
    the box's centre is at (column + x, row + y) and its sides are (e^w, e^h), in units of the
    level's stride. A score is the probability of the class times that of an object. Levels follow
    one another as they are given, each row by row. Float32 or better, and differentiable; boxes
    are not clipped.

    >>> cell = jnp.array([0.5, 0.5, 0.0, np.log(2), 0.0, 0.0])
    >>> decode = jax.jit(decode_yolox, static_argnames="strides")
    >>> boxes, scores = decode([jnp.tile(cell, (1, 1, 2, 1))], strides=(8,))
    >>> boxes.tolist(), scores.tolist()
    ([[[0.0, -4.0, 8.0, 12.0], [8.0, -4.0, 16.0, 12.0]]], [[[0.25], [0.25]]])
    """
    cells, sides = grid_cells([x.shape[1:3] for x in outputs], strides)
    flat = join_levels(outputs)
    scores = jax.nn.sigmoid(flat[..., 5:]) * jax.nn.sigmoid(flat[..., 4:5])
    return decode_cells(flat[..., :4], cells, sides), scores


def join_levels(outputs: Sequence[Float[Array, "b _ _ c"]]) -> Float[Array, "b n c"]:
    """Returns the cells of all levels, one after another, in float32 or better.

    >>> join_levels([jnp.zeros((1, 2, 2, 6)), jnp.zeros((1, 1, 1, 6))]).shape
    (1, 5, 6)
    """
    flat = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in outputs], axis=1)
    return at_least_float32(flat)


def grid_cells(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Returns (column, row) and the stride of every cell of maps of these sizes (h, w).

    A cell's middle is (column + 1/2, row + 1/2) times its stride, in pixels.

    >>> cells, sides = grid_cells([(1, 2), (1, 1)], (8, 16))
    >>> cells.tolist(), sides.tolist()
    ([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [8.0, 8.0, 16.0])
    """
    if len(sizes) != len(strides):
        raise ValueError(f"expected a stride for each of {len(sizes)} levels, got {strides}")
    cells = [np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2) for h, w in sizes]
    counts = [h * w for h, w in sizes]
    return np.concatenate(cells).astype(np.float32), np.repeat(np.float32(strides), counts)


def decode_cells(
    raw: Float[Array, "*b n 4"], cells: Float[Array, "n 2"], sides: Float[Array, " n"]
) -> Float[Array, "*b n 4"]:
    """Returns the boxes (x1, y1, x2, y2) in pixels of cells' first four numbers.

    >>> raw = jnp.array([[0.5, 0.5, jnp.log(2.0), 0.0]])
    >>> decode_cells(raw, jnp.array([[1.0, 0.0]]), jnp.array([8.0])).tolist()
    [[4.0, 0.0, 20.0, 8.0]]
    """
    ones = (1,) * (raw.ndim - 2)
    cells, sides = cells.reshape(*ones, -1, 2), sides.reshape(*ones, -1, 1)
    middle = (raw[..., :2] + cells) * sides
    half = jnp.exp(raw[..., 2:]) * sides / 2
    return jnp.concatenate([middle - half, middle + half], axis=-1)
