"""Localisation of one object: classification and box regression from one backbone."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxvision.models.layers import ConvNormRelu, Dense, flatten_as_torch
from jaxvision.ops import adaptive_avg_pool, global_avg_pool


class Localizer(nn.Module):
    """What the one object in a picture is, and where: two heads on the last map of a backbone.

    Returns "logits" [b, num_classes], from the map's mean, and "box_deltas" [b, 4]: the box
    relative to the whole picture, as R-CNN codes a box relative to a proposal. With the picture as
    the anchor, `jaxvision.ops.decode_boxes` makes pixels of them (`decode_picture_boxes` of
    `jaxvision.losses`). A mean over the map would lose where things are, so the second head
    sees it as a grid of `grid` x `grid` cells of `box_features` numbers each.

    `backbone` is a model that returns its stages, as `features_only=True` has it.
    """

    backbone: nn.Module
    num_classes: int = 10
    grid: int = 7
    box_features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b _"]]:
        *_, x = self.backbone(x, train=train).values()
        classes = Dense(self.num_classes, dtype=self.dtype, name="class_head")
        reduce = ConvNormRelu(self.box_features, 1, dtype=self.dtype, name="box_reduce")
        cells = flatten_as_torch(adaptive_avg_pool(reduce(x, train=train), self.grid))
        # Zeros: the first box is the whole picture, whatever is in it.
        zeros = nn.initializers.zeros
        box = Dense(4, True, zeros, zeros, dtype=self.dtype, name="box_head")
        return {"logits": classes(global_avg_pool(x)), "box_deltas": box(cells)}
