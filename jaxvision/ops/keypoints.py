"""From maps of logits to keypoints, as Keypoint R-CNN reads them (arXiv:1703.06870, section 5)."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxvision.types import Array

CUBIC = -0.75
"""The parameter of torch's bicubic interpolation."""
TILE = 64


def bicubic_weights(
    outputs: Int[Array, " n"], length: int, wanted: Float[Array, ""]
) -> Float[Array, "n length"]:
    """Returns rows of the matrix that interpolates an axis of `length` to `wanted` pixels.

    `outputs` are the pixels whose rows they are; `wanted` may be traced. Torch's
    `interpolate(mode="bicubic")`: pixel centres at one half, and the border repeated.

    >>> jax.jit(bicubic_weights, static_argnums=1)(jnp.array([1]), 2, 4.0).tolist()
    [[0.7734375, 0.2265625]]
    """
    scale = length / wanted
    position = scale * (outputs.astype(jnp.float32) + 0.5) - 0.5
    low = jnp.floor(position)
    t = position - low
    # Keys' two cubic pieces, of pixels nearer than one and nearer than two.
    near = [((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1 for x in (t, 1 - t)]
    far = [((CUBIC * x - 5 * CUBIC) * x + 8 * CUBIC) * x - 4 * CUBIC for x in (t + 1, 2 - t)]
    weights = jnp.zeros((len(outputs), length), jnp.float32)
    columns = jnp.arange(length).reshape(1, -1)
    for step, coefficient in zip((-1, 0, 1, 2), (far[0], *near, far[1]), strict=True):
        pixel = jnp.clip(low.astype(jnp.int32) + step, 0, length - 1)
        weights = weights + jnp.where(pixel[:, None] == columns, coefficient[:, None], 0.0)
    return weights


def heatmaps_to_keypoints(
    maps: Float[Array, "n s s2 p"], boxes: Float[Array, "n 4"]
) -> tuple[Float[Array, "n p 2"], Float[Array, "n p"]]:
    """Returns `(keypoints, scores)`: the (x, y) of each map's largest logit in its box, and that.

    The map is interpolated bicubically to as many pixels as the box has, rounded up, and at least
    one; of equal pixels the first counts, row by row, and a keypoint is in its middle. This is
    torchvision's `heatmaps_to_keypoints`, in fixed shapes: the pixels are looked at by tiles, as
    many as each box has, which is a loop without a gradient.

    >>> maps = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(3.0)
    >>> box = jnp.array([[10.0, 20.0, 14.0, 24.0]])
    >>> keypoints, scores = jax.jit(heatmaps_to_keypoints)(maps, box)
    >>> keypoints.tolist(), scores.tolist()
    ([[[12.5, 21.5]]], [[3.0]])
    """
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)
    maps = jax.lax.stop_gradient(maps).astype(jnp.float32)
    return jax.lax.map(lambda roi: _keypoints_of(*roi), (maps, boxes))


def _keypoints_of(maps, box):
    rows, columns, p = maps.shape
    box = jnp.where(jnp.isfinite(box).all(), box, 0.0)
    sides = jnp.maximum(box[2:] - box[:2], 1.0)
    pixels = jnp.ceil(sides)  # (x, y)
    counts = jnp.ceil(pixels / TILE).astype(jnp.int32)
    precise = {"precision": jax.lax.Precision.HIGHEST}

    def look_at(number, best):
        first = number // counts[0] * TILE, number % counts[0] * TILE
        ys, xs = (start + jnp.arange(TILE) for start in first)
        down = bicubic_weights(ys, rows, pixels[1])
        across = bicubic_weights(xs, columns, pixels[0])
        # Torch blends along rows first.
        values = jnp.einsum("hwp,jw->phj", maps, across, **precise)
        values = jnp.einsum("ih,phj->pij", down, values, **precise)
        inside = (ys < pixels[1])[:, None] & (xs < pixels[0])[None, :]
        values = jnp.where(inside[None], values, -jnp.inf).reshape(p, -1)
        index = values.argmax(axis=1)
        found = jnp.take_along_axis(values, index[:, None], axis=1)[:, 0], ys[index // TILE]
        return _better(best, (*found, xs[index % TILE]))

    nothing = jnp.full(p, -jnp.inf), jnp.zeros(p, jnp.int32), jnp.zeros(p, jnp.int32)
    scores, y, x = jax.lax.fori_loop(0, counts[0] * counts[1], look_at, nothing)
    place = (jnp.stack([x, y], axis=1) + 0.5) * (sides / pixels)[None, :] + box[None, :2]
    return place, scores


def _better(first, second):
    """The larger of two; of equal ones, that in the higher row, or the further left."""
    earlier = (second[1] < first[1]) | ((second[1] == first[1]) & (second[2] < first[2]))
    wins = (second[0] > first[0]) | ((second[0] == first[0]) & earlier)
    return tuple(jnp.where(wins, new, old) for new, old in zip(second, first, strict=True))
