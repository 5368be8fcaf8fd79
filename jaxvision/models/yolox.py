"""YOLOX (arXiv:2107.08430): anchor-free, a decoupled head on three levels of a feature pyramid.

Modules are named as Megvii's are (Apache-2.0), so that its published weights load. `decode_yolox`
of `jaxvision.ops` makes boxes of what the network returns, `yolox_loss` of `jaxvision.losses`
trains it.
"""

import math
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.csp_darknet import (
    Activation,
    Builder,
    ConvNorm,
    CSPDarknet,
    CSPLayer,
    Sequential,
    spatial_conv,
)
from jaxvision.models.darknet53 import Darknet53, LeakyConvNorm, alternating, leaky_relu
from jaxvision.models.layers import Conv
from jaxvision.ops import unpool_nearest
from jaxvision.types import Array

PRIOR = 0.01
"""The probability that a cell says at first for an object, and for each class: most have none."""


class YOLOX(nn.Module):
    """The raw maps of each level, (b, h/8, w/8, 5 + k), then 1/16 and 1/32, of RGB pictures.

    A cell's channels are x and y of the centre relative to the cell, the logarithms of width and
    height, all in units of the stride, the logit of "there is an object", and those of the classes.
    Sides of pictures are multiples of the last stride. Published weights expect pixels from 0 to
    255, neither centred nor scaled further: mean 0 and std 1/255 for the library's [0, 1].

    `width` multiplies all channels, `depth` the numbers of blocks; take multiples of 1/64 for
    `width`, or channels are rounded down. `depthwise` makes the 3x3 convolutions separable.
    For small objects there is `stem="small"`: without the stem's stride every level has twice the
    resolution (strides 4, 8, 16) and takes four times as long, which half the `width` makes up for.
    `darknet="53"` is Darknet-53 with a plain feature pyramid instead of CSPDarknet and PAFPN; it
    has neither of these two options.
    """

    num_classes: int = 80
    width: float = 1.0
    depth: float = 1.0
    depthwise: bool = False
    stem: Literal["focus", "small"] = "focus"
    darknet: Literal["csp", "53"] = "csp"
    dtype: DTypeLike = jnp.float32

    @property
    def strides(self) -> tuple[int, int, int]:
        """How many pixels of the picture a cell of each level is wide and high."""
        return (4, 8, 16) if self.stem == "small" else (8, 16, 32)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        if self.darknet == "53" and (self.depthwise or self.stem != "focus"):
            raise ValueError('darknet="53" has neither depthwise convolutions nor another stem')
        if any(side % self.strides[-1] for side in x.shape[1:3]):
            raise ValueError(
                f"expected pictures whose sides are multiples of {self.strides[-1]}, got "
                f"{x.shape[1]} x {x.shape[2]}: resize or pad them"
            )
        scale = {"width": self.width, "depth": self.depth, "dtype": self.dtype}
        if self.darknet == "53":
            maps = FeaturePyramid(**scale, name="backbone")(x, train=train)
            activation = leaky_relu
        else:
            options = {"depthwise": self.depthwise, "focus": self.stem == "focus"}
            maps = PathAggregation(**scale, **options, name="backbone")(x, train=train)
            activation = nn.silu
        head = DecoupledHead(
            self.num_classes,
            int(256 * self.width),
            self.depthwise,
            activation,
            self.dtype,
            name="head",
        )
        return head(maps, train=train)


class PathAggregation(nn.Module):
    """CSPDarknet's three maps, joined from the top down and from the bottom up (PAFPN)."""

    width: float = 1.0
    depth: float = 1.0
    depthwise: bool = False
    focus: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        backbone = CSPDarknet(
            self.width, self.depth, self.depthwise, self.focus, self.dtype, name="backbone"
        )
        fine, middle, coarse = backbone(x, train=train)
        c3, c4, c5 = (int(c * self.width) for c in (256, 512, 1024))

        def reduce(features, name, x):
            return ConvNorm(features, 1, dtype=self.dtype, name=name)(x, train=train)

        def shrink(features, name, x):
            conv = spatial_conv(self.depthwise)(features, 3, 2, dtype=self.dtype, name=name)
            return conv(x, train=train)

        def join(features, name, *maps):
            blocks = round(3 * self.depth)
            layer = CSPLayer(features, blocks, False, self.depthwise, self.dtype, name=name)
            return layer(jnp.concatenate(maps, axis=-1), train=train)

        top = reduce(c4, "lateral_conv0", coarse)
        down = join(c4, "C3_p4", unpool_nearest(top, 2), middle)
        across = reduce(c3, "reduce_conv1", down)
        fine = join(c3, "C3_p3", unpool_nearest(across, 2), fine)
        middle = join(c4, "C3_n3", shrink(c3, "bu_conv2", fine), across)
        coarse = join(c5, "C3_n4", shrink(c4, "bu_conv1", middle), top)
        return fine, middle, coarse


class FeaturePyramid(nn.Module):
    """Darknet-53's three maps, joined from the top down, as in YOLOv3."""

    width: float = 1.0
    depth: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        backbone = Darknet53(self.width, self.depth, self.dtype, name="backbone")
        fine, middle, coarse = backbone(x, train=train)

        def join(name, features, above, x):
            cbl = LeakyConvNorm(features, 1, dtype=self.dtype, name=f"{name}_cbl")
            y = unpool_nearest(cbl(above, train=train), 2)
            layers = alternating(features, 2 * features, 5, self.dtype)
            return Sequential(layers, name=name)(jnp.concatenate([y, x], axis=-1), train=train)

        middle = join("out1", int(256 * self.width), coarse, middle)
        fine = join("out2", int(128 * self.width), middle, fine)
        return fine, middle, coarse


class DecoupledHead(nn.Module):
    """Two branches for each level, one for the classes, one for the box and whether there is one.

    The last layers begin with the probability `PRIOR`, as RetinaNet's do (arXiv:1708.02002), so
    that the many empty cells don't drown the first steps.
    """

    num_classes: int
    features: int
    depthwise: bool = False
    activation: Activation = nn.silu
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        options = {"activation": self.activation, "dtype": self.dtype}
        conv = partial(spatial_conv(self.depthwise), self.features, 3, **options)
        branch = partial(Sequential, (conv, conv))
        predict = partial(Conv, kernel_size=(1, 1), dtype=self.dtype)
        rare = nn.initializers.constant(-math.log((1 - PRIOR) / PRIOR))

        def each(layer, name, maps, **kwargs):
            return EachLevel(layer, name=name)(maps, **kwargs)

        maps = each(partial(ConvNorm, self.features, 1, **options), "stems", maps, train=train)
        for_classes = each(branch, "cls_convs", maps, train=train)
        for_boxes = each(branch, "reg_convs", maps, train=train)
        classes = each(partial(predict, self.num_classes, bias_init=rare), "cls_preds", for_classes)
        boxes = each(partial(predict, 4), "reg_preds", for_boxes)
        objectness = each(partial(predict, 1, bias_init=rare), "obj_preds", for_boxes)
        levels = zip(boxes, objectness, classes, strict=True)
        return tuple(jnp.concatenate(level, axis=-1) for level in levels)


class EachLevel(nn.Module):
    """torch's ModuleList: a layer of its own for each of several maps, numbered from 0."""

    layer: Builder

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "b _ _ _"], ...], **kwargs: Any
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        return tuple(self.layer(name=str(i))(x, **kwargs) for i, x in enumerate(maps))


yolox_nano = partial(YOLOX, width=0.25, depth=0.33, depthwise=True)
yolox_tiny = partial(YOLOX, width=0.375, depth=0.33)
yolox_s = partial(YOLOX, width=0.5, depth=0.33)
yolox_m = partial(YOLOX, width=0.75, depth=0.67)
yolox_l = partial(YOLOX, width=1.0, depth=1.0)
yolox_x = partial(YOLOX, width=1.25, depth=1.33)
yolox_darknet53 = partial(YOLOX, darknet="53")
