"""MobileNetV3 (arXiv:1905.02244), named and padded so that torchvision's weights load."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import (
    Conv,
    ConvNormActivation,
    Dense,
    Initializer,
    Norm,
    kaiming_normal_fan_out,
    normal,
)
from jaxvision.ops import global_avg_pool
from jaxvision.types import Array

NORM = Norm(eps=1e-3, momentum=0.01)
"""The classifiers' batch normalisation; torchvision's detectors have their own."""


class BlockSize(NamedTuple):
    """One row of the paper's tables 1 and 2."""

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    hard_swish: bool
    stride: int
    tail: bool = False
    """Whether it is among the last blocks, which a reduced tail makes narrow."""


LARGE = (
    BlockSize(3, 16, 16, False, False, 1),
    BlockSize(3, 64, 24, False, False, 2),
    BlockSize(3, 72, 24, False, False, 1),
    BlockSize(5, 72, 40, True, False, 2),
    BlockSize(5, 120, 40, True, False, 1),
    BlockSize(5, 120, 40, True, False, 1),
    BlockSize(3, 240, 80, False, True, 2),
    BlockSize(3, 200, 80, False, True, 1),
    BlockSize(3, 184, 80, False, True, 1),
    BlockSize(3, 184, 80, False, True, 1),
    BlockSize(3, 480, 112, True, True, 1),
    BlockSize(3, 672, 112, True, True, 1),
    BlockSize(5, 672, 160, True, True, 2, tail=True),
    BlockSize(5, 960, 160, True, True, 1, tail=True),
    BlockSize(5, 960, 160, True, True, 1, tail=True),
)
SMALL = (
    BlockSize(3, 16, 16, True, False, 2),
    BlockSize(3, 72, 24, False, False, 2),
    BlockSize(3, 88, 24, False, False, 1),
    BlockSize(5, 96, 40, True, True, 2),
    BlockSize(5, 240, 40, True, True, 1),
    BlockSize(5, 240, 40, True, True, 1),
    BlockSize(5, 120, 48, True, True, 1),
    BlockSize(5, 144, 48, True, True, 1),
    BlockSize(5, 288, 96, True, True, 2, tail=True),
    BlockSize(5, 576, 96, True, True, 1, tail=True),
    BlockSize(5, 576, 96, True, True, 1, tail=True),
)


def divisible_by_8(channels: int | float) -> int:
    """Returns the nearest multiple of 8, but not less than nine tenths of what was asked for.

    >>> divisible_by_8(20), divisible_by_8(16 * 0.75), divisible_by_8(11)
    (24, 16, 16)
    """
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def scaled_blocks(
    blocks: Sequence[BlockSize], width_mult: float, reduced_tail: bool
) -> list[BlockSize]:
    """Returns the blocks with all their channels times `width_mult`.

    A reduced tail halves what the last blocks put out, and what all but the first expand to.
    """
    scaled, tail, previous = [], 2 if reduced_tail else 1, False
    for size in blocks:
        expanded = size.expanded // (tail if previous else 1)
        features = size.features // (tail if size.tail else 1)
        scaled.append(
            size._replace(
                expanded=divisible_by_8(expanded * width_mult),
                features=divisible_by_8(features * width_mult),
            )
        )
        previous = size.tail
    return scaled


class SqueezeExcitation(nn.Module):
    """Weights each channel by what all channels' means say of it (arXiv:1709.01507)."""

    squeezed: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = kaiming_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        options = {"kernel_init": self.kernel_init, "bias_init": nn.initializers.zeros}
        conv = partial(Conv, kernel_size=(1, 1), dtype=self.dtype, **options)
        y = global_avg_pool(x)[:, None, None, :]
        y = nn.relu(conv(self.squeezed, name="fc1")(y))
        return x * nn.hard_sigmoid(conv(x.shape[-1], name="fc2")(y))


class Layers(nn.Module):
    """Expand, filter each channel by itself, squeeze and excite, project: a torch Sequential.

    Without `expand` its first layer has been done already, and counts in the others' numbers.
    """

    size: BlockSize
    dilation: int
    norm: Norm
    dtype: DTypeLike
    kernel_init: Initializer = kaiming_normal_fan_out
    expand: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        size = self.size
        layer = partial(
            ConvNormActivation,
            norm=self.norm,
            activation=nn.hard_swish if size.hard_swish else nn.relu,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        names = iter("0123" if self.expand else "123")
        if self.expand and size.expanded != x.shape[-1]:
            x = layer(size.expanded, 1, name=next(names))(x, train=train)
        depthwise = layer(
            size.expanded,
            size.kernel_size,
            1 if self.dilation > 1 else size.stride,
            self.dilation,
            groups=size.expanded,
            name=next(names),
        )
        x = depthwise(x, train=train)
        if size.squeeze:
            squeezed = divisible_by_8(size.expanded // 4)
            squeeze = SqueezeExcitation(squeezed, self.dtype, self.kernel_init, name=next(names))
            x = squeeze(x)
        return layer(size.features, 1, activation=None, name=next(names))(x, train=train)


class InvertedResidual(nn.Module):
    """`Layers`, and the input on top where the shape stays."""

    size: BlockSize
    dilation: int
    norm: Norm
    dtype: DTypeLike
    kernel_init: Initializer = kaiming_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        options = (self.dilation, self.norm, self.dtype, self.kernel_init)
        layers = Layers(self.size, *options, name="block")
        y = layers(x, train=train)
        return y + x if self.size.stride == 1 and x.shape == y.shape else y


class MobileNetV3Features(nn.Module):
    """The convolutions, a torch Sequential: {"C0": [b, h/2, w/2, c], …} (sizes rounded up).

    "C0" is the stem's output, the next ones are those of the blocks that have a stride, and "C5" is
    the last convolution's.
    """

    blocks: tuple[BlockSize, ...]
    width_mult: float = 1.0
    reduced_tail: bool = False
    dilated: bool = False
    norm: Norm = NORM
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b _ _ _"]]:
        layer = partial(
            ConvNormActivation,
            norm=self.norm,
            activation=nn.hard_swish,
            kernel_init=kaiming_normal_fan_out,
            dtype=self.dtype,
        )
        x = layer(divisible_by_8(16 * self.width_mult), stride=2, name="0")(x, train=train)
        stages = {"C0": x}
        sizes = scaled_blocks(self.blocks, self.width_mult, self.reduced_tail)
        for number, size in enumerate(sizes, start=1):
            dilation = 2 if self.dilated and size.tail else 1
            block = InvertedResidual(size, dilation, self.norm, self.dtype, name=str(number))
            x = block(x, train=train)
            if size.stride > 1:
                stages[f"C{len(stages)}"] = x
        last = layer(6 * x.shape[-1], 1, name=str(len(self.blocks) + 1))
        stages["C5"] = last(x, train=train)
        return stages


class Classifier(nn.Module):
    """A hidden layer and the head, "3"."""

    num_classes: int
    hidden: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b c"], *, train: bool) -> Float[Array, "b k"]:
        init = {"kernel_init": normal(0.01), "bias_init": nn.initializers.zeros}
        x = nn.hard_swish(Dense(self.hidden, dtype=self.dtype, name="0", **init)(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, dtype=self.dtype, name="3", **init)(x)


class MobileNetV3(nn.Module):
    """Logits [b, num_classes] of normalised RGB pictures of any size.

    `num_classes=0` returns the pooled features [b, c], and `features_only` the maps of
    `MobileNetV3Features`. `width_mult` multiplies all widths, `reduced_tail` halves those of the
    last blocks, and `dilated` spreads their kernels instead of halving the map. Dropout in training
    needs the rng `dropout`.
    """

    blocks: tuple[BlockSize, ...]
    hidden: int
    num_classes: int = 1000
    width_mult: float = 1.0
    reduced_tail: bool = False
    dilated: bool = False
    dropout: float = 0.2
    features_only: bool = False
    norm: Norm = NORM
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b k"] | dict[str, Float[Array, "b _ _ _"]]:
        features = MobileNetV3Features(
            self.blocks,
            self.width_mult,
            self.reduced_tail,
            self.dilated,
            self.norm,
            self.dtype,
            name="features",
        )
        stages = features(x, train=train)
        if self.features_only:
            return stages
        x = global_avg_pool(stages["C5"])
        if not self.num_classes:
            return x
        hidden = divisible_by_8(self.hidden // (2 if self.reduced_tail else 1) * self.width_mult)
        classifier = Classifier(
            self.num_classes, hidden, self.dropout, self.dtype, name="classifier"
        )
        return classifier(x, train=train)


mobilenet_v3_large = partial(MobileNetV3, blocks=LARGE, hidden=1280)
mobilenet_v3_small = partial(MobileNetV3, blocks=SMALL, hidden=1024)
