"""VGG (arXiv:1409.1556), with and without batch normalisation, named as torchvision's are."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    flatten_as_torch,
    kaiming_normal_fan_out,
    normal,
)
from jaxvision.ops import adaptive_avg_pool, max_pool
from jaxvision.types import Array

WIDTHS = (64, 128, 256, 512, 512)


class Features(nn.Module):
    """3x3 convolutions, a pool of 2 after each stage; numbered as in torch's `nn.Sequential`."""

    stage_sizes: tuple[int, ...]
    widths: tuple[int, ...]
    batch_norm: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b h2 w2 k"], dict[str, Float[Array, "b _ _ _"]]]:
        stages, index = {}, 0
        sizes = zip(self.stage_sizes, self.widths, strict=True)
        for i, (num_convs, width) in enumerate(sizes, start=1):
            for _ in range(num_convs):
                conv = Conv(
                    width,
                    (3, 3),
                    padding=1,
                    kernel_init=kaiming_normal_fan_out,
                    bias_init=nn.initializers.zeros,
                    dtype=self.dtype,
                    name=str(index),
                )
                x = conv(x)
                if self.batch_norm:
                    x = BatchNorm(dtype=self.dtype, name=str(index + 1))(x, train=train)
                x = nn.relu(x)
                index += 3 if self.batch_norm else 2
            stages[f"stage{i}"] = x
            x = max_pool(x, 2)
            index += 1
        return x, stages


class Classifier(nn.Module):
    """Two hidden dense layers with dropout behind them, and the head, "6"."""

    num_classes: int
    hidden: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b c"], *, train: bool) -> Float[Array, "b k"]:
        init = normal(0.01)
        dense = partial(Dense, kernel_init=init, bias_init=nn.initializers.zeros, dtype=self.dtype)
        for name in ("0", "3"):
            x = nn.relu(dense(self.hidden, name=name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(self.num_classes, name="6")(x) if self.num_classes else x


class VGG(nn.Module):
    """Logits [b, num_classes] of normalised RGB pictures of 32 pixels a side or more.

    `num_classes=0` returns the [b, hidden] in front of the head, and `features_only` the last
    convolution's output of each stage, in front of its pool: {"stage1": [b, h, w, 64], … "stage5":
    [b, h/16, w/16, 512]}. Dropout in training needs the rng `dropout`.
    """

    stage_sizes: tuple[int, ...]
    num_classes: int = 1000
    batch_norm: bool = False
    widths: tuple[int, ...] = WIDTHS
    hidden: int = 4096
    dropout: float = 0.5
    features_only: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b k"] | dict[str, Float[Array, "b _ _ _"]]:
        features = Features(
            self.stage_sizes, self.widths, self.batch_norm, self.dtype, name="features"
        )
        x, stages = features(x, train=train)
        if self.features_only:
            return stages
        x = flatten_as_torch(adaptive_avg_pool(x, 7))
        classifier = Classifier(
            self.num_classes, self.hidden, self.dropout, self.dtype, name="classifier"
        )
        return classifier(x, train=train)


vgg11 = partial(VGG, stage_sizes=(1, 1, 2, 2, 2))
vgg13 = partial(VGG, stage_sizes=(2, 2, 2, 2, 2))
vgg16 = partial(VGG, stage_sizes=(2, 2, 3, 3, 3))
vgg19 = partial(VGG, stage_sizes=(2, 2, 4, 4, 4))
vgg11_bn = partial(vgg11, batch_norm=True)
vgg13_bn = partial(vgg13, batch_norm=True)
vgg16_bn = partial(vgg16, batch_norm=True)
vgg19_bn = partial(vgg19, batch_norm=True)
