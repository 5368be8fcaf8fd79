"""RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3) as torchvision defines it, one picture a call.

Along one axis a bin is the mean of samples, each of which blends two pixels: its pixels and their
weights are its taps. A RoI's bin is the weighted sum over the taps of both axes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvision.ops.roi_samples import Axis, adaptive_taps, fixed_taps, rounded, sampled_axis
from jaxvision.types import Array

CHUNK = 16
"""RoIs that the CPU works on at a time: their sums then stay in its cache."""


def roi_align(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Float[Array, "n h2 w2 c"]:
    """Returns each box's features, averaged over samples in `output_size` bins.

    `boxes` are xyxy in the picture's pixels, and `spatial_scale` is the features' size by the
    picture's. A bin takes `sampling_ratio` samples an axis, or, where that is not positive, as many
    as its length in features, rounded up. `aligned` moves the box half a feature up and left
    (Detectron2); without it a box is at least one feature long. A sample up to one feature outside
    takes the border's value, one further out is zero.

    A box with NaN or infinity gives zeros, and so does, where the samples are adaptive, an
    `aligned` one without length. Gradients go to the features alone; the boxes' gradient is zero.

    >>> features, box = jnp.arange(16.0).reshape(4, 4, 1), jnp.array([[0.0, 0.0, 4.0, 4.0]])
    >>> align = jax.jit(roi_align, static_argnames=("output_size", "aligned"))
    >>> align(features, box, output_size=2, aligned=True).squeeze().tolist()
    [[2.5, 4.5], [10.5, 12.5]]
    """
    features = jnp.asarray(features)
    h, w, _ = features.shape
    n = len(boxes)
    level = _Level(*(jnp.full((n,), size, jnp.int32) for size in (h, w, 0)))
    scale = jnp.full((n,), spatial_scale, jnp.float32)
    flat = features.reshape(h * w, -1)
    return _align(flat, level, boxes, scale, output_size, sampling_ratio, aligned)


def assign_levels(
    boxes: Float[Array, "n 4"],
    first_level: int,
    last_level: int,
    canonical_level: int = 4,
    canonical_size: float = 224.0,
) -> Int[Array, "n"]:
    """Returns the pyramid level of each box by its area, counted from `first_level` (FPN, eq. 1).

    A box of `canonical_size` squared belongs to `canonical_level`, one of half that side to the
    level below. Boxes with a negative area or NaN, which have no level, get -1.

    >>> boxes = jnp.array([[0.0, 0.0, side, side] for side in (32, 112, 224, 2000)])
    >>> assign_levels(boxes, 2, 5).tolist()
    [0, 1, 2, 3]
    """
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # The term 1e-6 is torchvision's: a side of exactly 112 shall not fall a level by rounding.
    level = jnp.floor(canonical_level + jnp.log2(jnp.sqrt(area) / canonical_size) + 1e-6)
    level = jnp.clip(level, first_level, last_level) - first_level
    return jnp.where(area >= 0, level, -1).astype(jnp.int32)


def multiscale_roi_align(
    features: Sequence[Float[Array, "_ _ c"]] | Mapping[str, Float[Array, "_ _ c"]],
    boxes: Float[Array, "n 4"],
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_level: int = 4,
    canonical_size: float = 224.0,
) -> Float[Array, "n h2 w2 c"]:
    """Returns `roi_align` of each box on the one level of a pyramid that suits its area (FPN).

    `features` are the levels from the finest to the coarsest, each half as large as the one before;
    in a mapping they may be in any order. `spatial_scales` are their sizes by the picture's, in the
    same order, and powers of two such as 1/4, 1/8, 1/16, 1/32.
    See `assign_levels` for which level a box takes. One gather serves all levels: no box is
    computed on a level it does not belong to.

    >>> finer, coarser = jnp.zeros((8, 8, 1)), jnp.ones((4, 4, 1))
    >>> boxes = jnp.array([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 224.0, 224.0]])
    >>> align = jax.jit(multiscale_roi_align, static_argnums=(2, 3))
    >>> align([finer, coarser], boxes, 1, (1 / 8, 1 / 16)).squeeze().tolist()
    [0.0, 0.25]
    """
    maps = list(features.values()) if isinstance(features, Mapping) else list(features)
    if isinstance(features, Mapping):  # jit sorts a dictionary by its keys: "16" before "4"
        maps.sort(key=lambda m: -m.shape[0] * m.shape[1])
    first, last = _level_of(spatial_scales[0]), _level_of(spatial_scales[-1])
    if len(maps) != len(spatial_scales) or last - first != len(maps) - 1:
        raise ValueError(
            f"expected a spatial scale for each of {len(maps)} feature maps, each half of the one "
            f"before, got {list(spatial_scales)}"
        )
    levels = assign_levels(boxes, first, last, canonical_level, canonical_size)
    heights, widths = ([m.shape[axis] for m in maps] for axis in (0, 1))
    origins = [sum(m.shape[0] * m.shape[1] for m in maps[:i]) for i in range(len(maps))]
    table = jnp.array([heights, widths, origins], jnp.int32)[:, jnp.maximum(levels, 0)]
    scale = jnp.array(spatial_scales, jnp.float32)[jnp.maximum(levels, 0)]
    flat = jnp.concatenate([jnp.asarray(m).reshape(-1, m.shape[-1]) for m in maps])
    boxes = jnp.where((levels >= 0).reshape(-1, 1), boxes, jnp.nan)
    return _align(flat, _Level(*table), boxes, scale, output_size, sampling_ratio, aligned)


def _level_of(spatial_scale: float) -> int:
    level = round(-math.log2(spatial_scale))
    if not math.isclose(spatial_scale, 2.0**-level, rel_tol=1e-6):
        raise ValueError(f"expected spatial scales that are powers of two, got {spatial_scale}")
    return level


class _Level(NamedTuple):
    """Of each RoI the size of its feature map, and which row of all maps' pixels is its first."""

    height: Int[Array, "n"]
    width: Int[Array, "n"]
    origin: Int[Array, "n"]


def _align(flat, level, boxes, scale, output_size, sampling_ratio, aligned):
    """Returns RoIs [n, h2, w2, c] from the pixels [p, c] of all maps."""
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)
    valid = jnp.isfinite(boxes).all(axis=1)
    boxes = rounded(jnp.where(valid.reshape(-1, 1), boxes, 0.0) * scale.reshape(-1, 1))
    x1, y1, x2, y2 = boxes.T
    rows = sampled_axis(y1, y2, level.height, bins[0], sampling_ratio, aligned)
    columns = sampled_axis(x1, x2, level.width, bins[1], sampling_ratio, aligned)
    y = _weighted_sum(flat, _RoIs(level, rows, columns), tuple(bins), sampling_ratio)
    return jnp.where(valid.reshape(-1, 1, 1, 1), y, jnp.zeros((), y.dtype)).astype(flat.dtype)


class _RoIs(NamedTuple):
    level: _Level
    rows: Axis
    columns: Axis


class _Taps(NamedTuple):
    rows: int | jax.Array
    columns: int | jax.Array
    pixel: Callable[[int, int], tuple[Int[Array, "n h2 w2"], Float[Array, "n h2 w2 1"]]]
    """(row tap, column tap) -> which pixel of all maps each bin takes there, and its weight."""


def _taps(rois: _RoIs, bins: tuple[int, int], sampling_ratio: int) -> _Taps:
    axes = tuple(zip(rois[1:], bins, strict=True))
    if sampling_ratio > 0:
        fixed = [fixed_taps(*axis, sampling_ratio) for axis in axes]
        sides = [(2 * sampling_ratio, partial(_tap, *taps)) for taps in fixed]
    else:
        sides = [adaptive_taps(*axis) for axis in axes]
    (rows, row), (columns, column) = sides
    width, origin = (v.reshape(-1, 1, 1) for v in (rois.level.width, rois.level.origin))

    def pixel(i, j):
        (y, y_weight), (x, x_weight) = row(i), column(j)
        weight = y_weight[:, :, None] * x_weight[:, None, :]
        return origin + y[:, :, None] * width + x[:, None, :], weight[..., None]

    return _Taps(rows, columns, pixel)


def _tap(pixel, weight, t):
    return pixel[..., t], weight[..., t]


def _all_pairs(rois: _RoIs, bins: tuple[int, int], sampling_ratio: int):
    """Returns what `_Taps.pixel` does for all pairs of fixed taps at once: [n, pairs, h2, w2]."""
    y, y_weight = (v.mT for v in fixed_taps(rois.rows, bins[0], sampling_ratio))
    x, x_weight = (v.mT for v in fixed_taps(rois.columns, bins[1], sampling_ratio))
    width, origin = (v.reshape(-1, 1, 1, 1, 1) for v in (rois.level.width, rois.level.origin))
    index = origin + y[:, :, None, :, None] * width + x[:, None, :, None, :]
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    shape = (len(index), -1, *bins)
    return jax.lax.optimization_barrier((index.reshape(shape), weight.reshape(*shape, 1)))


def _over_taps(taps: _Taps, body, total):
    """Returns `total` after `total = body(i, j, total)` for each pair of taps."""

    def along_row(i, total):
        return jax.lax.fori_loop(0, taps.columns, lambda j, total: body(i, j, total), total)

    return jax.lax.fori_loop(0, taps.rows, along_row, total)


def _in_chunks(rois: _RoIs, *more):
    """Splits leading axes [n] into [m, CHUNK] on the CPU, else [1, n]; added RoIs count nothing."""
    n = len(rois.level.height)
    chunk = CHUNK if jax.default_backend() == "cpu" else max(n, 1)
    count = -(-n // chunk)

    def split(v):
        v = jnp.pad(v, ((0, count * chunk - n), *[(0, 0)] * (v.ndim - 1)))
        return v.reshape(count, chunk, *v.shape[1:])

    return jax.tree.map(split, (rois, *more))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _weighted_sum(flat, rois, bins, sampling_ratio):
    channels = flat.shape[-1]

    def read(index, weight):
        return weight * flat.at[index].get(mode="promise_in_bounds").astype(jnp.float32)

    if 0 < sampling_ratio <= 2:
        # At most 16 pairs: one pass that writes each sum once.
        index, weight = _all_pairs(rois, bins, sampling_ratio)
        pairs = range(index.shape[1])
        return jax.lax.optimization_barrier(sum(read(index[:, t], weight[:, t]) for t in pairs))

    def chunk(rois):
        taps = _taps(rois, bins, sampling_ratio)
        zeros = jnp.zeros((len(rois.level.height), *bins, channels), jnp.float32)
        return _over_taps(
            taps,
            lambda i, j, total: total + read(*jax.lax.optimization_barrier(taps.pixel(i, j))),
            zeros,
        )

    y = jax.lax.map(lambda parts: chunk(*parts), _in_chunks(rois))
    return y.reshape(-1, *y.shape[2:])[: len(rois.level.height)]


def _weighted_sum_forward(flat, rois, bins, sampling_ratio):
    return _weighted_sum(flat, rois, bins, sampling_ratio), (
        rois,
        jnp.zeros((0,), flat.dtype),
        len(flat),
    )


def _weighted_sum_backward(bins, sampling_ratio, residuals, cotangent):
    rois, like, length = residuals

    def chunk(gradient, parts):
        rois, cotangent = parts
        if 0 < sampling_ratio <= 2:
            index, weight = _all_pairs(rois, bins, sampling_ratio)
            return gradient.at[index].add(
                weight * cotangent[:, None], mode="promise_in_bounds"
            ), None
        taps = _taps(rois, bins, sampling_ratio)

        def add(i, j, gradient):
            index, weight = jax.lax.optimization_barrier(taps.pixel(i, j))
            return gradient.at[index].add(weight * cotangent, mode="promise_in_bounds")

        return _over_taps(taps, add, gradient), None

    zeros = jnp.zeros((length, cotangent.shape[-1]), jnp.float32)
    gradient, _ = jax.lax.scan(chunk, zeros, _in_chunks(rois, cotangent))
    return gradient.astype(like.dtype), None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)
