"""Localisation of one object: classification and box regression from one backbone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import Conv, Dense
from jaxvision.types import Array


class Localizer(nn.Module):
    """What the one object in a picture is, and where: two heads on the maps of a backbone.

    The heads look where the object is: a softmax over "cell_logits" [b, h, w], one number a cell of
    a map, weights the cells, and both heads see the mean of the features by these weights, of each
    of the backbone's last `num_maps` maps (hypercolumns, arXiv:1411.5752); the cells are those of
    the largest of these. A small object is in the early maps, and hardly in the last.
    Returns besides "logits" [b, num_classes] and "box_deltas" [b, 4]: the box relative to the whole
    picture, as R-CNN codes a box relative to a proposal. With the picture as the anchor,
    `jaxvision.ops.decode_boxes` makes pixels of them (`decode_picture_boxes` of
    `jaxvision.losses`). The box has the mean and the spread of the cells' weights, as if these were
    even over it, and the box head adds to that; before training it is the whole picture.

    `backbone` is a model that returns its stages, as `features_only=True` has it.
    """

    backbone: nn.Module
    num_classes: int = 10
    num_maps: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b *_"]]:
        maps = list(self.backbone(x, train=train).values())[-self.num_maps :]
        b, h, w, _ = maps[0].shape
        zeros = nn.initializers.zeros
        # Which cell of each map a cell of the largest is in: [h, h of the map], [w, w of the map].
        places = [
            tuple(_cells_within(*n) for n in ((h, m.shape[1]), (w, m.shape[2]))) for m in maps
        ]
        look = [
            Conv(1, (1, 1), use_bias=False, kernel_init=zeros, dtype=self.dtype, name=f"cells{i}")(
                m
            )
            for i, m in enumerate(maps)
        ]
        cell_logits = sum(
            jnp.einsum("bij,hi,wj->bhw", logits[..., 0], rows, columns)
            for logits, (rows, columns) in zip(look, places, strict=True)
        )
        weights = jax.nn.softmax(cell_logits.reshape(b, h * w).astype(jnp.float32), axis=1)
        weights = weights.reshape(b, h, w)
        seen = [
            jnp.einsum("bhw,hi,wj,bijc->bc", weights, rows, columns, m.astype(jnp.float32))
            for m, (rows, columns) in zip(maps, places, strict=True)
        ]
        seen = jnp.concatenate(seen, axis=1).astype(self.dtype)
        (x_mean, x_size), (y_mean, y_size) = (
            _mean_and_size(weights.sum(axis=axis)) for axis in (1, 2)
        )
        looked_at = jnp.stack([x_mean, y_mean, jnp.log(x_size), jnp.log(y_size)], axis=1)
        classes = Dense(self.num_classes, dtype=self.dtype, name="class_head")
        box = Dense(4, True, zeros, zeros, dtype=self.dtype, name="box_head")
        return {
            "logits": classes(seen),
            "box_deltas": box(seen) + looked_at.astype(self.dtype),
            "cell_logits": cell_logits,
        }


def _cells_within(fine: int, coarse: int) -> Float[np.ndarray, "fine coarse"]:
    return np.eye(coarse, dtype=np.float32)[np.arange(fine) * coarse // fine]


def _mean_and_size(weights: Float[Array, "b n"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Returns the mean from the middle, and the length that has this variance where it is even.

    In shares of the axis, of which each of the n cells is an even piece.
    """
    n = weights.shape[1]
    centres = (jnp.arange(n, dtype=jnp.float32).reshape(1, -1) + 0.5) / n - 0.5
    mean = (weights * centres).sum(axis=1)
    variance = (weights * (centres - mean.reshape(-1, 1)) ** 2).sum(axis=1)
    return mean, jnp.sqrt(12 * variance + n**-2)
