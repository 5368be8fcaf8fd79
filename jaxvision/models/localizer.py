"""Localisation of one object: classification and box regression from one backbone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxvision.models.layers import Conv, Dense


class Localizer(nn.Module):
    """What the one object in a picture is, and where: two heads on the last map of a backbone.

    The heads look where the object is: a softmax over "cell_logits" [b, h, w], one number a cell of
    the map, weights the cells, and both heads see the mean of the features by these weights.
    Returns besides "logits" [b, num_classes] and "box_deltas" [b, 4]: the box relative to the whole
    picture, as R-CNN codes a box relative to a proposal. With the picture as the anchor,
    `jaxvision.ops.decode_boxes` makes pixels of them (`decode_picture_boxes` of
    `jaxvision.losses`). The box is centred where the cells' weights have their mean, and the box
    head adds to that; before training it is the whole picture.

    `backbone` is a model that returns its stages, as `features_only=True` has it.
    """

    backbone: nn.Module
    num_classes: int = 10
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b *_"]]:
        *_, x = self.backbone(x, train=train).values()
        b, h, w, _ = x.shape
        zeros = nn.initializers.zeros
        look = Conv(1, (1, 1), use_bias=False, kernel_init=zeros, dtype=self.dtype, name="cells")
        cell_logits = look(x)[..., 0]
        weights = jax.nn.softmax(cell_logits.reshape(b, h * w).astype(jnp.float32), axis=1)
        weights = weights.reshape(b, h, w)
        seen = jnp.einsum("bhw,bhwc->bc", weights, x.astype(jnp.float32)).astype(self.dtype)
        # The centres of the cells, as shares of the picture from its middle.
        place = [
            jnp.einsum("bhw,w->b", weights, (jnp.arange(w) + 0.5) / w - 0.5),
            jnp.einsum("bhw,h->b", weights, (jnp.arange(h) + 0.5) / h - 0.5),
        ]
        centre = jnp.pad(jnp.stack(place, axis=1), ((0, 0), (0, 2)))  # and no change of the size
        classes = Dense(self.num_classes, dtype=self.dtype, name="class_head")
        box = Dense(4, True, zeros, zeros, dtype=self.dtype, name="box_head")
        return {
            "logits": classes(seen),
            "box_deltas": box(seen) + centre.astype(self.dtype),
            "cell_logits": cell_logits,
        }
