"""CSPDarknet, YOLOX's backbone (arXiv:2107.08430), and the layers that the network is built of.

Cross stage partial networks are arXiv:1911.11929. Modules are named as Megvii's YOLOX names them,
so that `backbone.backbone.dark2.0.conv.weight` there is the same path here.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import BatchNorm, Conv
from jaxvision.ops import max_pool
from jaxvision.types import Array

Activation = Callable[[jax.Array], jax.Array]
Builder = Callable[..., nn.Module]


class ConvNorm(nn.Module):
    """A convolution without bias, BatchNorm (eps 1e-3, momentum 0.03) and the activation.

    `depthwise` convolves each channel by itself.
    """

    features: int
    kernel_size: int
    stride: int = 1
    depthwise: bool = False
    activation: Activation = nn.silu
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        conv = Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            self.stride,
            padding=self.kernel_size // 2,
            groups=x.shape[-1] if self.depthwise else 1,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )
        norm = BatchNorm(momentum=0.03, eps=1e-3, dtype=self.dtype, name="bn")
        return self.activation(norm(conv(x), train=train))


class SeparableConvNorm(nn.Module):
    """Depthwise, which carries the size and the stride, then 1x1: one `ConvNorm` each."""

    features: int
    kernel_size: int
    stride: int = 1
    activation: Activation = nn.silu
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        conv = partial(ConvNorm, activation=self.activation, dtype=self.dtype)
        depthwise = conv(x.shape[-1], self.kernel_size, self.stride, depthwise=True, name="dconv")
        return conv(self.features, 1, name="pconv")(depthwise(x, train=train), train=train)


def spatial_conv(depthwise: bool) -> type[ConvNorm] | type[SeparableConvNorm]:
    """Returns what a network of this kind has for its 3x3 convolutions."""
    return SeparableConvNorm if depthwise else ConvNorm


class Sequential(nn.Module):
    """torch's Sequential: one layer after another, numbered from 0."""

    layers: tuple[Builder, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        for i, layer in enumerate(self.layers):
            x = layer(name=str(i))(x, train=train)
        return x


class Bottleneck(nn.Module):
    """1x1, then 3x3, of as many channels, plus its input where there is a `shortcut`."""

    features: int
    shortcut: bool = True
    depthwise: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        y = ConvNorm(self.features, 1, dtype=self.dtype, name="conv1")(x, train=train)
        conv = spatial_conv(self.depthwise)(self.features, 3, dtype=self.dtype, name="conv2")
        y = conv(y, train=train)
        return y + x if self.shortcut and x.shape == y.shape else y


class CSPLayer(nn.Module):
    """Half of the channels go through bottlenecks, half pass by; a 1x1 convolution joins them."""

    features: int
    num_blocks: int
    shortcut: bool = True
    depthwise: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        half = self.features // 2
        conv = partial(ConvNorm, kernel_size=1, dtype=self.dtype)
        through = conv(half, name="conv1")(x, train=train)
        past = conv(half, name="conv2")(x, train=train)
        block = partial(Bottleneck, half, self.shortcut, self.depthwise, self.dtype)
        through = Sequential((block,) * self.num_blocks, name="m")(through, train=train)
        y = jnp.concatenate([through, past], axis=-1)
        return conv(self.features, name="conv3")(y, train=train)


class SpatialPyramidPooling(nn.Module):
    """The map beside its maxima over 5x5, 9x9 and 13x13 pixels, between two 1x1 convolutions."""

    features: int
    activation: Activation = nn.silu
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        conv = partial(ConvNorm, kernel_size=1, activation=self.activation, dtype=self.dtype)
        maps = [conv(x.shape[-1] // 2, name="conv1")(x, train=train)]
        for _ in range(3):  # maxima over 5x5 of maxima over 5x5 are maxima over 9x9, and so on
            maps.append(max_pool(maps[-1], 5, stride=1, padding=2))
        return conv(self.features, name="conv2")(jnp.concatenate(maps, axis=-1), train=train)


class Stem(nn.Module):
    """The first 3x3 convolution, by default of pixels joined in fours ("Focus"), as a stride of 2.

    The channels of a joined pixel are those of its upper left, lower left, upper right and lower
    right pixel.
    """

    features: int
    focus: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        if self.focus:
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
            x = x.reshape(b, h // 2, w // 2, 4 * c)
        return ConvNorm(self.features, 3, dtype=self.dtype, name="conv")(x, train=train)


class CSPDarknet(nn.Module):
    """Returns the maps (dark3, dark4, dark5), of 1/8, 1/16 and 1/32 of the picture's size.

    Without `focus` they are twice as large. They have 256, 512 and 1,024 channels times `width`;
    `depth` multiplies the numbers of bottlenecks, (3, 9, 9, 3).
    """

    width: float = 1.0
    depth: float = 1.0
    depthwise: bool = False
    focus: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        base, blocks = int(64 * self.width), max(round(3 * self.depth), 1)
        x = Stem(base, self.focus, self.dtype, name="stem")(x, train=train)
        maps = []
        for i, num_blocks in enumerate((blocks, 3 * blocks, 3 * blocks, blocks)):
            features, last = base * 2 ** (i + 1), i == 3
            layers: list[Builder] = [
                partial(spatial_conv(self.depthwise), features, 3, 2, dtype=self.dtype)
            ]
            if last:
                layers.append(partial(SpatialPyramidPooling, features, dtype=self.dtype))
            layers.append(
                partial(CSPLayer, features, num_blocks, not last, self.depthwise, self.dtype)
            )
            x = Sequential(tuple(layers), name=f"dark{i + 2}")(x, train=train)
            maps.append(x)
        return tuple(maps[1:])
