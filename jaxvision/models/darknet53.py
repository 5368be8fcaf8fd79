"""Darknet-53, YOLOv3's backbone (arXiv:1804.02767), with spatial pyramid pooling, as YOLOX has it.

Modules are named as Megvii's YOLOX names them.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.csp_darknet import Builder, ConvNorm, Sequential, SpatialPyramidPooling
from jaxvision.types import Array

leaky_relu = partial(nn.leaky_relu, negative_slope=0.1)
LeakyConvNorm = partial(ConvNorm, activation=leaky_relu)


class ResidualBlock(nn.Module):
    """1x1 to half of the channels, 3x3 back to all, plus the input."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        features = x.shape[-1]
        y = LeakyConvNorm(features // 2, 1, dtype=self.dtype, name="layer1")(x, train=train)
        return x + LeakyConvNorm(features, 3, dtype=self.dtype, name="layer2")(y, train=train)


class Darknet53(nn.Module):
    """Returns the maps (dark3, dark4, dark5), of 1/8, 1/16 and 1/32 of the picture's size.

    They have 256, 512 and, after the pooling, 512 channels times `width`; `depth` multiplies the
    numbers of residual blocks, (2, 8, 8, 4).
    """

    width: float = 1.0
    depth: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        base = int(32 * self.width)
        conv = partial(LeakyConvNorm, dtype=self.dtype)
        block = partial(ResidualBlock, self.dtype)
        stem = (partial(conv, base, 3), partial(conv, 2 * base, 3, 2), block)
        x = Sequential(stem, name="stem")(x, train=train)
        maps = []
        for i, num_blocks in enumerate((2, 8, 8, 4)):
            features = base * 2 ** (i + 2)
            blocks = (block,) * max(round(num_blocks * self.depth), 1)
            layers: list[Builder] = [partial(conv, features, 3, 2), *blocks]
            if i == 3:
                layers += [
                    *alternating(features // 2, features, 2, self.dtype),
                    partial(SpatialPyramidPooling, features // 2, leaky_relu, self.dtype),
                    partial(conv, features, 3),
                    partial(conv, features // 2, 1),
                ]
            x = Sequential(tuple(layers), name=f"dark{i + 2}")(x, train=train)
            maps.append(x)
        return tuple(maps[1:])


def alternating(narrow: int, wide: int, count: int, dtype: DTypeLike) -> tuple[Builder, ...]:
    """Returns builders of 1x1 convolutions to `narrow` and 3x3 ones to `wide` channels, in turn."""
    conv = partial(LeakyConvNorm, dtype=dtype)
    pair = (partial(conv, narrow, 1), partial(conv, wide, 3))
    return tuple(pair[i % 2] for i in range(count))
