"""DeepLabv3 (arXiv:1706.05587) on a dilated ResNet, named as torchvision's is."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.fcn import DilatedSegmenter
from jaxvision.models.layers import BatchNorm, Conv, ConvNormActivation
from jaxvision.models.resnet import resnet50, resnet101
from jaxvision.ops import adaptive_avg_pool
from jaxvision.types import Array

FEATURES = 256
"""Channels of every layer of the head but the last."""


class Branches(nn.Module):
    """The pyramid's looks at one map, side by side in the channels."""

    rates: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        block = partial(ConvNormActivation, FEATURES, dtype=self.dtype)
        looks = [block(kernel_size=1, name="0")(x, train=train)]
        for i, rate in enumerate(self.rates, start=1):
            looks.append(block(dilation=rate, name=str(i))(x, train=train))
        # At the whole picture, as one pixel. In torch the pool is number 0, so the convolution 1.
        whole = adaptive_avg_pool(x, 1)
        whole = block(kernel_size=1, first=1, name=str(len(looks)))(whole, train=train)
        looks.append(jnp.broadcast_to(whole, looks[0].shape))
        return jnp.concatenate(looks, axis=-1)


class PyramidPooling(nn.Module):
    """Atrous spatial pyramid pooling (section 3.3): kernels of several dilations, then 1x1."""

    rates: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        x = Branches(self.rates, self.dtype, name="convs")(x, train=train)
        x = ConvNormActivation(FEATURES, 1, dtype=self.dtype, name="project")(x, train=train)
        return nn.Dropout(0.5, deterministic=not train)(x)


class DeepLabHead(nn.Module):
    """The pyramid, a 3x3 convolution, and a 1x1 one that tells the classes apart."""

    num_classes: int
    rates: tuple[int, ...] = (12, 24, 36)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        x = PyramidPooling(self.rates, self.dtype, name="0")(x, train=train)
        conv = partial(Conv, dtype=self.dtype)
        x = conv(FEATURES, (3, 3), padding=1, use_bias=False, name="1")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="2")(x, train=train))
        return conv(self.num_classes, (1, 1), name="4")(x)


deeplabv3_resnet50 = partial(DilatedSegmenter, make_backbone=resnet50, make_head=DeepLabHead)
deeplabv3_resnet101 = partial(DilatedSegmenter, make_backbone=resnet101, make_head=DeepLabHead)
