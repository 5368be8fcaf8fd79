"""ResNet (arXiv:1512.03385), ResNeXt (arXiv:1611.05431) and Wide ResNet (arXiv:1605.07146).

Version 1.5: the 3x3 convolution of a bottleneck carries the stride. Modules are named as
torchvision's are, so that `layer2.0.conv1.weight` there is `params["layer2"]["0"]["conv1"]` here.
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import Conv, Dense, Norm, kaiming_normal_fan_out
from jaxvision.ops import global_avg_pool, max_pool
from jaxvision.types import Array


class Downsample(nn.Module):
    """The shortcut where the shape changes: a 1x1 convolution and batch normalisation."""

    features: int
    stride: int
    norm: Norm = Norm()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        x = _conv(self.features, 1, self.stride, dtype=self.dtype, name="0")(x)
        return self.norm(dtype=self.dtype, name="1")(x, train=train)


class BasicBlock(nn.Module):
    """3x3, 3x3, plus the shortcut."""

    features: int
    stride: int = 1
    groups: int = 1
    width_per_group: int = 64
    dilation: int = 1
    norm: Norm = Norm()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        if self.groups != 1 or self.width_per_group != 64 or self.dilation != 1:
            raise ValueError(
                "a basic block has groups=1, width_per_group=64 and no dilation; use a bottleneck"
            )
        conv, norm = partial(_conv, dtype=self.dtype), partial(self.norm, dtype=self.dtype)
        y = conv(self.features, 3, self.stride, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y, train=train))
        y = norm(name="bn2")(conv(self.features, 3, name="conv2")(y), train=train)
        if x.shape != y.shape:
            shortcut = Downsample(
                self.features, self.stride, self.norm, self.dtype, name="downsample"
            )
            x = shortcut(x, train=train)
        return nn.relu(y + x)


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3 (carries stride, groups and dilation), 1x1 expand, plus the shortcut."""

    features: int
    stride: int = 1
    groups: int = 1
    width_per_group: int = 64
    dilation: int = 1
    norm: Norm = Norm()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        conv, norm = partial(_conv, dtype=self.dtype), partial(self.norm, dtype=self.dtype)
        width = self.features * self.width_per_group // 64 * self.groups
        y = nn.relu(norm(name="bn1")(conv(width, 1, name="conv1")(x), train=train))
        conv2 = conv(
            width, 3, self.stride, groups=self.groups, dilation=self.dilation, name="conv2"
        )
        y = conv2(y)
        y = nn.relu(norm(name="bn2")(y, train=train))
        y = norm(name="bn3")(conv(4 * self.features, 1, name="conv3")(y), train=train)
        if x.shape != y.shape:
            shortcut = Downsample(
                4 * self.features, self.stride, self.norm, self.dtype, name="downsample"
            )
            x = shortcut(x, train=train)
        return nn.relu(y + x)


class Stage(nn.Module):
    """Blocks of one width; the first carries the stride, and has a dilation of its own."""

    block: type[BasicBlock] | type[Bottleneck]
    num_blocks: int
    features: int
    stride: int
    groups: int
    width_per_group: int
    first_dilation: int = 1
    dilation: int = 1
    norm: Norm = Norm()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        for i in range(self.num_blocks):
            block = self.block(
                self.features,
                self.stride if i == 0 else 1,
                self.groups,
                self.width_per_group,
                self.first_dilation if i == 0 else self.dilation,
                self.norm,
                self.dtype,
                name=str(i),
            )
            x = block(x, train=train)
        return x


class ResNet(nn.Module):
    """Logits [b, num_classes] of normalised RGB pictures of any size.

    `num_classes=0` returns the pooled features [b, c] in front of the head, and `features_only` the
    output of each stage, {"layer1": [b, h/4, w/4, c], … "layer4": [b, h/32, w/32, 8 c]} (sizes
    rounded up), for detectors. `stem="small"` is the 3x3 stem without pooling for pictures such as
    CIFAR's (the paper's section 4.2). `width` is the first stage's. Where
    `replace_stride_with_dilation` is True for layer2, layer3 or layer4, that stage keeps its
    input's size, and the kernels behind it are spread out to see as far as with the stride
    (arXiv:1511.07122), as segmentation wants it; networks of bottlenecks only. `norm` is what
    normalises: detectors have a frozen one.
    """

    block: type[BasicBlock] | type[Bottleneck]
    stage_sizes: tuple[int, ...]
    num_classes: int = 1000
    groups: int = 1
    width_per_group: int = 64
    stem: Literal["imagenet", "small"] = "imagenet"
    width: int = 64
    features_only: bool = False
    replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False)
    norm: Norm = Norm()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b k"] | dict[str, Float[Array, "b _ _ _"]]:
        # padding=3, not "SAME": with a stride of 2 "SAME" pads one side more, torch both alike.
        kernel, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = _conv(self.width, kernel, stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(self.norm(dtype=self.dtype, name="bn1")(x, train=train))
        if self.stem == "imagenet":
            x = max_pool(x, 3, stride=2, padding=1)
        stages, dilation = {}, 1
        dilated = (False, *self.replace_stride_with_dilation)
        for i, num_blocks in enumerate(self.stage_sizes):
            name = f"layer{i + 1}"
            # The first block still sees the map that its stage's stride would have halved.
            first_dilation = dilation
            dilation *= 2 if dilated[i] else 1
            stage = Stage(
                self.block,
                num_blocks,
                self.width * 2**i,
                1 if i == 0 or dilated[i] else 2,
                self.groups,
                self.width_per_group,
                first_dilation,
                dilation,
                self.norm,
                self.dtype,
                name=name,
            )
            x = stages[name] = stage(x, train=train)
        if self.features_only:
            return stages
        x = global_avg_pool(x)
        if not self.num_classes:
            return x
        return Dense(self.num_classes, dtype=self.dtype, name="fc")(x)


def _conv(features: int, kernel: int, stride: int = 1, dilation: int = 1, **options) -> Conv:
    return Conv(
        features,
        (kernel, kernel),
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        use_bias=False,
        kernel_init=kaiming_normal_fan_out,
        **options,
    )


resnet18 = partial(ResNet, block=BasicBlock, stage_sizes=(2, 2, 2, 2))
resnet34 = partial(ResNet, block=BasicBlock, stage_sizes=(3, 4, 6, 3))
resnet50 = partial(ResNet, block=Bottleneck, stage_sizes=(3, 4, 6, 3))
resnet101 = partial(ResNet, block=Bottleneck, stage_sizes=(3, 4, 23, 3))
resnet152 = partial(ResNet, block=Bottleneck, stage_sizes=(3, 8, 36, 3))
resnext50_32x4d = partial(resnet50, groups=32, width_per_group=4)
resnext101_32x8d = partial(resnet101, groups=32, width_per_group=8)
resnext101_64x4d = partial(resnet101, groups=64, width_per_group=4)
wide_resnet50_2 = partial(resnet50, width_per_group=128)
wide_resnet101_2 = partial(resnet101, width_per_group=128)
