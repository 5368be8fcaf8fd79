"""MobileNetV3 as SSDlite has it: taken apart where its fourth map is, and four maps behind it."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.fpn import Maps
from jaxvision.models.layers import ConvNormActivation, Norm, normal
from jaxvision.models.mobilenet_v3 import (
    BlockSize,
    InvertedResidual,
    Layers,
    divisible_by_8,
    scaled_blocks,
)
from jaxvision.types import Array

NORMAL = normal(0.03)
"""What torchvision draws all of SSDlite's kernels from, MobileNet's too where they are new."""


class UntilExpansion(nn.Module):
    """MobileNetV3's layers up to the expansion of block `last`: stride 16, the widest there."""

    blocks: tuple[BlockSize, ...]
    stem: int
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        layer = partial(
            ConvNormActivation,
            norm=self.norm,
            activation=nn.hard_swish,
            kernel_init=NORMAL,
            dtype=self.dtype,
        )
        x = layer(self.stem, stride=2, name="0")(x, train=train)
        *blocks, last = self.blocks
        for number, size in enumerate(blocks, start=1):
            block = InvertedResidual(size, 1, self.norm, self.dtype, NORMAL, name=str(number))
            x = block(x, train=train)
        return layer(last.expanded, 1, name=str(len(self.blocks)))(x, train=train)


class FromExpansion(nn.Module):
    """The rest of that block, those behind it, and the last convolution: stride 32."""

    blocks: tuple[BlockSize, ...]
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        first, *blocks = self.blocks
        options = (1, self.norm, self.dtype, NORMAL)
        x = Layers(first, *options, expand=False, name="0")(x, train=train)
        for number, size in enumerate(blocks, start=1):
            x = InvertedResidual(size, *options, name=str(number))(x, train=train)
        last = ConvNormActivation(
            6 * x.shape[-1],
            1,
            norm=self.norm,
            activation=nn.hard_swish,
            kernel_init=NORMAL,
            dtype=self.dtype,
            name=str(len(self.blocks)),
        )
        return last(x, train=train)


class Halves(nn.Module):
    """torch's Sequential of the two parts, each of which puts out a map."""

    blocks: tuple[BlockSize, ...]
    stem: int
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Maps:
        # The last block with a stride is the one that is taken apart.
        cut = max(i for i, size in enumerate(self.blocks) if size.stride > 1)
        before, behind = self.blocks[: cut + 1], self.blocks[cut:]
        first = UntilExpansion(before, self.stem, self.norm, self.dtype, name="0")(x, train=train)
        rest = FromExpansion(behind, self.norm, self.dtype, name="1")
        return first, rest(first, train=train)


class LiteExtraBlock(nn.Module):
    """1x1 to half of the channels, 3x3 of each by itself with a stride of 2, 1x1 to all."""

    features: int
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        layer = partial(
            ConvNormActivation,
            norm=self.norm,
            activation=nn.relu6,
            kernel_init=NORMAL,
            dtype=self.dtype,
        )
        half = self.features // 2
        x = layer(half, 1, name="0")(x, train=train)
        x = layer(half, 3, stride=2, groups=half, name="1")(x, train=train)
        return layer(self.features, 1, name="2")(x, train=train)


class LiteExtraBlocks(nn.Module):
    """torch's ModuleList of what makes each map of the one before it."""

    features: tuple[int, ...]
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Maps:
        maps = []
        for i, features in enumerate(self.features):
            block = LiteExtraBlock(features, self.norm, self.dtype, name=str(i))
            x = block(x, train=train)
            maps.append(x)
        return tuple(maps)


class SSDLiteFeatures(nn.Module):
    """Six maps of a picture: two of MobileNetV3 and four behind it, each half as large."""

    blocks: tuple[BlockSize, ...]
    width_mult: float = 1.0
    reduced_tail: bool = True
    extra_features: tuple[int, ...] = (512, 256, 256, 128)
    norm: Norm = Norm(eps=1e-3, momentum=0.03)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Maps:
        blocks = tuple(scaled_blocks(self.blocks, self.width_mult, self.reduced_tail))
        stem = divisible_by_8(16 * self.width_mult)
        halves = Halves(blocks, stem, self.norm, self.dtype, name="features")
        extra = LiteExtraBlocks(self.extra_features, self.norm, self.dtype, name="extra")
        maps = halves(images, train=train)
        return (*maps, *extra(maps[-1], train=train))
