"""AlexNet in the form of arXiv:1404.5997 (one column), named as torchvision's is."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import Conv, Dense, flatten_as_torch
from jaxvision.ops import adaptive_avg_pool, max_pool
from jaxvision.types import Array


class Features(nn.Module):
    """Five convolutions, pools of 3 with stride 2 after the first, second and fifth."""

    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b h2 w2 k"], dict[str, Float[Array, "b _ _ _"]]]:
        def conv(x, index, features, kernel, stride, padding):
            layer = Conv(
                features, (kernel, kernel), stride, padding, dtype=self.dtype, name=str(index)
            )
            return nn.relu(layer(x))

        stages = {}
        x = stages["stage1"] = conv(x, 0, 64, 11, 4, 2)
        x = stages["stage2"] = conv(max_pool(x, 3, 2), 3, 192, 5, 1, 2)
        x = conv(max_pool(x, 3, 2), 6, 384, 3, 1, 1)
        x = conv(x, 8, 256, 3, 1, 1)
        x = stages["stage3"] = conv(x, 10, 256, 3, 1, 1)
        return max_pool(x, 3, 2), stages


class Classifier(nn.Module):
    """Two hidden dense layers with dropout in front of them, and the head, "6"."""

    num_classes: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b c"], *, train: bool) -> Float[Array, "b k"]:
        for name in ("1", "4"):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(Dense(4096, dtype=self.dtype, name=name)(x))
        if not self.num_classes:
            return x
        return Dense(self.num_classes, dtype=self.dtype, name="6")(x)


class AlexNet(nn.Module):
    """Logits [b, num_classes] of normalised RGB pictures of 63 pixels a side or more.

    `num_classes=0` returns the [b, 4096] in front of the head, and `features_only` what goes into
    each of the three pools: {"stage1": [b, h/4, w/4, 64], "stage2": …, "stage3": …}. Dropout in
    training needs the rng `dropout`.
    """

    num_classes: int = 1000
    dropout: float = 0.5
    features_only: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b k"] | dict[str, Float[Array, "b _ _ _"]]:
        x, stages = Features(self.dtype, name="features")(x)
        if self.features_only:
            return stages
        x = flatten_as_torch(adaptive_avg_pool(x, 6))
        classifier = Classifier(self.num_classes, self.dropout, self.dtype, name="classifier")
        return classifier(x, train=train)
