"""Growing maps again: max-unpooling with remembered indices, nearest, and bed of nails."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvision.types import Array


def max_unpool(
    x: Float[Array, "*b h w c"],
    indices: Int[Array, "*b h w c"],
    output_size: tuple[int, int],
) -> Float[Array, "*b h2 w2 c"]:
    """Puts each value back to where its maximum stood, and zeros elsewhere (SegNet, 1511.00561).

    `indices` are those of `max_pool_with_argmax` on a map of `output_size` (h2, w2): row * w2 +
    column, per picture and channel; one outside that map drops its value. Where windows overlapped
    and several values meet at one pixel, one of them stays (on the CPU the last in row-major
    order), but each gets that pixel's gradient: both as in torch's MaxUnpool2d.

    >>> values, indices = jnp.array([[[7.0]]]), jnp.array([[[2]]])
    >>> jax.jit(max_unpool, static_argnums=2)(values, indices, (2, 2)).squeeze().tolist()
    [[0.0, 0.0], [7.0, 0.0]]
    """
    shape = (-1, *x.shape[-3:])
    y = _max_unpool(x.reshape(shape), indices.reshape(shape), tuple(output_size))
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def unpool_nearest(
    x: Float[Array, "*b h w c"], factor: int | tuple[int, int]
) -> Float[Array, "*b h2 w2 c"]:
    """Repeats each pixel `factor` times along each axis.

    >>> unpool_nearest(jnp.array([[[1.0], [2.0]]]), 2)[..., 0].tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    down, across = _factors(factor)
    *batch, h, w, c = x.shape
    cells = (*batch, h, down, w, across, c)
    y = jnp.broadcast_to(x.reshape(*batch, h, 1, w, 1, c), cells)
    return y.reshape(*batch, h * down, w * across, c)


def unpool_bed_of_nails(
    x: Float[Array, "*b h w c"], factor: int | tuple[int, int]
) -> Float[Array, "*b h2 w2 c"]:
    """Puts each pixel into the upper left corner of a cell of `factor` pixels, zeros elsewhere.

    >>> unpool_bed_of_nails(jnp.array([[[1.0], [2.0]]]), 2)[..., 0].tolist()
    [[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    down, across = (n - 1 for n in _factors(factor))
    config = [(0, 0, 0)] * (x.ndim - 3) + [(0, down, down), (0, across, across), (0, 0, 0)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), config)


def _factors(factor: int | tuple[int, int]) -> tuple[int, int]:
    down, across = (factor, factor) if isinstance(factor, int) else factor
    if down < 1 or across < 1:
        raise ValueError(f"expected a factor of at least 1, got {factor}")
    return down, across


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _max_unpool(x, indices, output_size):
    return _in_cells_or(_scatter, _spread, x, indices, output_size, x.shape[1:3])


def _unpool_forward(x, indices, output_size):
    return _max_unpool(x, indices, output_size), indices


def _unpool_backward(output_size, indices, cotangent):
    size = indices.shape[1:3]
    return _in_cells_or(_gather, _collect, cotangent, indices, output_size, size), None


_max_unpool.defvjp(_unpool_forward, _unpool_backward)


def _in_cells_or(general, in_cells, x, indices, output_size, size):
    """Runs `in_cells` where each index lies in its own cell of the larger map, else `general`.

    So it is after a pool whose windows do not overlap. A pass over all pixels then does, which on
    the CPU is many times faster than XLA's scatter and gather. Which it is, the indices tell.
    """
    (h, w), (out_h, out_w) = size, output_size
    cell = (out_h // max(h, 1), out_w // max(w, 1))
    general = partial(general, output_size=output_size)
    if jax.default_backend() != "cpu" or min(cell) < 1:
        return general(x, indices)
    in_cells = partial(in_cells, output_size=output_size, cell=cell)
    rows, columns = indices // out_w, indices % out_w
    own_rows = jnp.arange(h, dtype=indices.dtype).reshape(1, -1, 1, 1)
    own_columns = jnp.arange(w, dtype=indices.dtype).reshape(1, 1, -1, 1)
    inside = (rows // cell[0] == own_rows) & (columns // cell[1] == own_columns)
    return jax.lax.cond(inside.all(), in_cells, general, x, indices)


def _scatter(x, indices, output_size):
    out_h, out_w = output_size
    b, h, w, c = x.shape

    def plane(values, places):
        zeros = jnp.zeros((out_h * out_w,), x.dtype)
        # -1 would mean the last pixel.
        return zeros.at[jnp.where(places < 0, out_h * out_w, places)].set(values, mode="drop")

    over_channels = jax.vmap(plane, in_axes=1, out_axes=1)
    y = jax.vmap(over_channels)(x.reshape(b, h * w, c), indices.reshape(b, h * w, c))
    return y.reshape(b, out_h, out_w, c)


def _gather(y, indices, output_size):
    b, h, w, c = indices.shape
    places = indices.reshape(b, h * w, c)
    inside = (places >= 0) & (places < output_size[0] * output_size[1])
    values = jnp.take_along_axis(y.reshape(b, -1, c), jnp.where(inside, places, 0), axis=1)
    return jnp.where(inside, values, jnp.zeros((), y.dtype)).reshape(b, h, w, c)


def _positions(shape, output_size, cell):
    """Returns the index of each pixel of the cells, [1, h, cell_h, w, cell_w, 1]."""
    (_, h, w, _), (down, across) = shape, cell
    rows = jnp.arange(h * down, dtype=jnp.int32).reshape(1, h, down, 1, 1, 1)
    columns = jnp.arange(w * across, dtype=jnp.int32).reshape(1, 1, 1, w, across, 1)
    return rows * output_size[1] + columns


def _spread(x, indices, output_size, cell):
    b, h, w, c = x.shape
    own = indices.reshape(b, h, 1, w, 1, c) == _positions(x.shape, output_size, cell)
    y = jnp.where(own, x.reshape(b, h, 1, w, 1, c), jnp.zeros((), x.dtype))
    y = y.reshape(b, h * cell[0], w * cell[1], c)
    # What the cells do not cover, because the pool left it over.
    rest = [(0, out - have) for out, have in zip(output_size, y.shape[1:3], strict=True)]
    return jnp.pad(y, ((0, 0), *rest, (0, 0)))


def _collect(y, indices, output_size, cell):
    b, h, w, c = indices.shape
    y = y[:, : h * cell[0], : w * cell[1]].reshape(b, h, cell[0], w, cell[1], c)
    own = indices.reshape(b, h, 1, w, 1, c) == _positions(indices.shape, output_size, cell)
    return jnp.where(own, y, jnp.zeros((), y.dtype)).sum(axis=(2, 4))
