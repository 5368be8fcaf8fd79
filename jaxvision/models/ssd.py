"""SSD (arXiv:1512.02325) and SSDlite (arXiv:1801.04381, section 6.2) as torchvision builds them.

The networks alone are here: `ssd_loss` of `jaxvision.losses` trains them, and `make_detector` finds
objects with them. Modules are named as torchvision's are.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxvision.models import vgg
from jaxvision.models.dense import DenseOutputs, by_anchor, on_zeros
from jaxvision.models.fpn import Maps
from jaxvision.models.layers import (
    Conv,
    ConvNormActivation,
    Norm,
    kaiming_normal_fan_out,
    parameter,
)
from jaxvision.models.mobilenet_v3 import LARGE
from jaxvision.models.ssdlite_features import NORMAL, SSDLiteFeatures
from jaxvision.ops import max_pool
from jaxvision.ops.anchors import default_boxes
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array

XAVIER = {"kernel_init": nn.initializers.xavier_uniform(), "bias_init": nn.initializers.zeros}
LENGTH = nn.initializers.constant(20.0)
VGG = {"kernel_init": kaiming_normal_fan_out, "bias_init": nn.initializers.zeros}


class UntilConv4(nn.Module):
    """VGG-16 up to conv4_3, with a third pool that rounds sizes up; numbered as torch's."""

    widths: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        index = 0
        for stage, num_convs in enumerate((2, 2, 3, 3)):
            if stage:
                x = max_pool(x, 2, ceil_mode=stage == 3)
                index += 1
            for _ in range(num_convs):
                options = {"padding": 1, "dtype": self.dtype, "name": str(index)}
                x = nn.relu(Conv(self.widths[stage], (3, 3), **options, **VGG)(x))
                index += 2
        return x


class FullyConvolutional(nn.Module):
    """A pool that keeps the size, and VGG's fc6, spread out by six pixels, and fc7."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        x = max_pool(x, 3, stride=1, padding=1)
        options = {"dtype": self.dtype, **XAVIER}
        fc6 = Conv(self.features, (3, 3), padding=6, dilation=6, name="1", **options)
        fc7 = Conv(self.features, (1, 1), name="3", **options)
        return nn.relu(fc7(nn.relu(fc6(x))))


class Conv5AndFC(nn.Module):
    """VGG-16 behind conv4_3: a pool, its fifth stage, and what its dense layers became."""

    width: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        x = max_pool(x, 2)
        for name in ("1", "3", "5"):
            conv = Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name=name, **VGG)
            x = nn.relu(conv(x))
        return FullyConvolutional(self.features, self.dtype, name="7")(x)


class ExtraBlock(nn.Module):
    """1x1 to half of the channels, then 3x3: with a stride of 2, or without padding."""

    features: int
    halve: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        narrow = Conv(self.features // 2, (1, 1), dtype=self.dtype, name="0", **XAVIER)
        stride, padding = (2, 1) if self.halve else (1, 0)
        if not self.halve and min(x.shape[1:3]) < 3:
            raise ValueError(
                "expected a larger picture (SSD's has 300 pixels a side), got one of which a map "
                f"of {x.shape[1]} x {x.shape[2]} is left where 3 x 3 is the least"
            )
        options = {"stride": stride, "padding": padding, "dtype": self.dtype, "name": "2"}
        return nn.relu(Conv(self.features, (3, 3), **options, **XAVIER)(nn.relu(narrow(x))))


class ExtraBlocks(nn.Module):
    """torch's ModuleList of what makes each map of the one before it."""

    width: int
    fc_features: int
    extra_features: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Maps:
        maps = [Conv5AndFC(self.width, self.fc_features, self.dtype, name="0")(x)]
        for i, features in enumerate(self.extra_features, start=1):
            block = ExtraBlock(features, i <= 2, self.dtype, name=str(i))
            maps.append(block(maps[-1]))
        return tuple(maps)


class SSDFeatures(nn.Module):
    """VGG-16's conv4_3, each pixel scaled to a length that is learnt, and the maps behind it."""

    widths: tuple[int, ...] = vgg.WIDTHS
    fc_features: int = 1024
    extra_features: tuple[int, ...] = (512, 256, 256, 256)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Maps:
        x = UntilConv4(self.widths, self.dtype, name="features")(images)
        scale_weight = parameter(self, "scale_weight", LENGTH, x.shape[-1:])
        scaled = scale_weight.reshape(1, 1, 1, -1) * unit_length(x)
        extra = ExtraBlocks(
            self.widths[4], self.fc_features, self.extra_features, self.dtype, name="extra"
        )
        return (scaled.astype(self.dtype), *extra(x))


def unit_length(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Returns each pixel's channels divided by their Euclidean norm, in float32 or better.

    Where all are zero they stay so, and the gradient is no NaN.

    >>> [round(float(x), 3) for x in unit_length(jnp.array([[3.0, 4.0], [0.0, 0.0]])).ravel()]
    [0.6, 0.8, 0.0, 0.0]
    """
    x = at_least_float32(x)
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    return x / jnp.maximum(norm, 1e-12)


# ------------------------------------------------------------------------------------------ heads
class LitePrediction(nn.Module):
    """SSDlite's last layers: 3x3 of each channel by itself, and 1x1."""

    features: int
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        width = x.shape[-1]
        depthwise = ConvNormActivation(
            width,
            groups=width,
            norm=self.norm,
            activation=nn.relu6,
            kernel_init=NORMAL,
            dtype=self.dtype,
            name="0",
        )
        options = {"kernel_init": NORMAL, "bias_init": nn.initializers.zeros, "name": "1"}
        x = depthwise(x, train=train)
        return Conv(self.features, (1, 1), dtype=self.dtype, **options)(x)


class Predictions(nn.Module):
    """torch's ModuleList of one prediction for each map: `columns` numbers for each anchor."""

    columns: int
    num_anchors: tuple[int, ...]
    lite_norm: Norm | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool) -> tuple[Float[Array, "b _ k"], ...]:
        outputs = []
        for i, (x, count) in enumerate(zip(maps, self.num_anchors, strict=True)):
            features = self.columns * count
            if self.lite_norm is None:
                options = {"padding": 1, "dtype": self.dtype, "name": str(i)}
                y = Conv(features, (3, 3), **options, **XAVIER)(x)
            else:
                last = LitePrediction(features, self.lite_norm, self.dtype, name=str(i))
                y = last(x, train=train)
            outputs.append(by_anchor(y, self.columns))
        return tuple(outputs)


class ScoringHead(nn.Module):
    """`Predictions`, under the name that torchvision gives them."""

    columns: int
    num_anchors: tuple[int, ...]
    lite_norm: Norm | None
    dtype: DTypeLike

    def setup(self) -> None:
        self.module_list = Predictions(self.columns, self.num_anchors, self.lite_norm, self.dtype)

    def __call__(self, maps: Maps, *, train: bool) -> tuple[Float[Array, "b _ k"], ...]:
        return self.module_list(maps, train=train)


class SSDHead(nn.Module):
    """Of each map's default boxes the logits of the classes, and the deltas.

    With `lite_norm` they are SSDlite's, normalised by that.
    """

    num_classes: int
    num_anchors: tuple[int, ...]
    lite_norm: Norm | None = None
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        options = (self.num_anchors, self.lite_norm, self.dtype)
        self.classification_head = ScoringHead(self.num_classes, *options)
        self.regression_head = ScoringHead(4, *options)

    def __call__(
        self, maps: Maps, *, train: bool
    ) -> tuple[tuple[Float[Array, "b _ k"], ...], tuple[Float[Array, "b _ 4"], ...]]:
        return self.classification_head(maps, train=train), self.regression_head(maps, train=train)


class SSD(nn.Module):
    """A backbone of six maps, and on each of them convolutions that look at default boxes.

    Pictures are normalised RGB of one size, the padding to the right of them and below them is
    whatever it is: `sizes` (h, w) says where each ends, and without it each fills its array. The
    classes count from 1, because 0 is the background, which `num_classes` of the functions that
    build one counts. `max_candidates` is how many boxes of each class are looked at when objects
    are found; for the rest see `default_boxes`.
    """

    backbone: nn.Module
    head: SSDHead
    scales: tuple[float, ...]
    aspect_ratios: tuple[tuple[int | float, ...], ...]
    steps: tuple[int, ...] | None = None
    max_candidates: int = 400

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        sizes: Int[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> DenseOutputs:
        images = on_zeros(images, sizes)
        maps = self.backbone(images, train=train)
        grids = [x.shape[1:3] for x in maps]
        boxes = default_boxes(grids, images.shape[1:3], self.scales, self.aspect_ratios, self.steps)
        return DenseOutputs(*self.head(maps, train=train), tuple(boxes))


# ------------------------------------------------------------------------------------- the zoo
def _num_anchors(aspect_ratios: Sequence[Sequence[int | float]]) -> tuple[int, ...]:
    return tuple(2 + 2 * len(ratios) for ratios in aspect_ratios)


def ssd300_vgg16(
    num_classes: int = 91,
    *,
    widths: Sequence[int] = vgg.WIDTHS,
    fc_features: int = 1024,
    extra_features: Sequence[int] = (512, 256, 256, 256),
    scales: Sequence[float] = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    dtype: DTypeLike = jnp.float32,
) -> SSD:
    """Returns SSD on VGG-16, for pictures of 300 x 300: 8,732 default boxes at strides 8 to 300.

    `widths` are those of VGG's five stages, `fc_features` of its two layers that were dense, and
    `extra_features` of the four maps behind; `scales` are the default boxes' sides as shares of the
    picture's.
    """
    aspect_ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    return SSD(
        SSDFeatures(tuple(widths), fc_features, tuple(extra_features), dtype),
        SSDHead(num_classes, _num_anchors(aspect_ratios), dtype=dtype),
        tuple(scales),
        aspect_ratios,
        steps=(8, 16, 32, 64, 100, 300),
    )


def ssdlite320_mobilenet_v3_large(
    num_classes: int = 91,
    *,
    width_mult: float = 1.0,
    reduced_tail: bool = True,
    extra_features: Sequence[int] = (512, 256, 256, 128),
    dtype: DTypeLike = jnp.float32,
) -> SSD:
    """Returns SSDlite on MobileNetV3, for pictures of 320 x 320: maps of strides 16 to 320.

    `reduced_tail` halves the last blocks' channels, as in torchvision's COCO_V1 and wherever the
    backbone does not come with a classifier's weights.
    """
    norm = Norm(eps=1e-3, momentum=0.03)
    aspect_ratios = ((2, 3),) * 6
    scales = tuple(0.2 + (0.95 - 0.2) * k / 5 for k in range(6))
    return SSD(
        SSDLiteFeatures(LARGE, width_mult, reduced_tail, tuple(extra_features), norm, dtype),
        SSDHead(num_classes, _num_anchors(aspect_ratios), norm, dtype),
        (*scales, 1.0),
        aspect_ratios,
        max_candidates=300,
    )
