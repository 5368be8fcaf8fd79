"""FCOS (arXiv:1904.01355, arXiv:2006.09214) as torchvision builds it.

The network alone is here: `fcos_loss` of `jaxvision.losses` trains it, and `make_detector` finds
objects with it. Modules are named as torchvision's are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxvision.models import resnet
from jaxvision.models.dense import by_anchor, on_zeros
from jaxvision.models.fpn import DetectionBackbone, Maps
from jaxvision.models.layers import Conv, Norm, normal
from jaxvision.models.retinanet import (
    SIZE_DIVISIBLE,
    ClassificationHead,
    group_norm,
    prediction,
    resnet_with_p6_p7,
)
from jaxvision.ops import anchors_of_levels
from jaxvision.types import Array

STRIDES = (8, 16, 32, 64, 128)


class FCOSOutputs(NamedTuple):
    """What the network says of each place, map by map, the finest first, each row by row."""

    class_logits: tuple[Float[Array, "b _ k"], ...]
    distances: tuple[Float[Array, "b _ 4"], ...]
    """From the place to the box's left, upper, right and lower side, in sides of its square."""
    centerness: tuple[Float[Array, "b _"], ...]
    """The logit of how near to the middle of its object the place is."""
    anchors: tuple[Float[Array, "_ 4"], ...]
    """A square around each place, in pixels, as large as its map's stride."""


class NormalizedConvolutions(nn.Module):
    """torch's Sequential of 3x3 convolutions, each with group normalisation and ReLU behind it."""

    depth: int
    norm: Norm
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        for i in range(self.depth):
            conv = Conv(
                x.shape[-1],
                (3, 3),
                padding=1,
                kernel_init=normal(0.01),
                bias_init=nn.initializers.zeros,
                dtype=self.dtype,
                name=str(3 * i),
            )
            norm = self.norm(dtype=self.dtype, name=str(3 * i + 1))
            x = nn.relu(norm(conv(x), train=train))
        return x


class FCOSRegressionHead(nn.Module):
    """The layers `conv`, shared by all maps, and for each place its box and its centerness."""

    conv: nn.Module
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.bbox_reg = prediction(4, self.dtype)
        self.bbox_ctrness = prediction(1, self.dtype)

    def __call__(
        self, features: Maps, *, train: bool
    ) -> tuple[tuple[Float[Array, "b _ 4"], ...], tuple[Float[Array, "b _"], ...]]:
        maps = [self.conv(x, train=train) for x in features]
        distances = tuple(by_anchor(nn.relu(self.bbox_reg(x)), 4) for x in maps)
        return distances, tuple(by_anchor(self.bbox_ctrness(x), 1)[..., 0] for x in maps)


class FCOSHead(nn.Module):
    """Classifies all places and measures the boxes around them."""

    num_classes: int
    norm: Norm
    conv_depth: int = 4
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def convolutions():
            return NormalizedConvolutions(self.conv_depth, self.norm, self.dtype)

        self.classification_head = ClassificationHead(
            self.num_classes, 1, convolutions(), self.dtype
        )
        self.regression_head = FCOSRegressionHead(convolutions(), self.dtype)

    def __call__(self, features: Maps, *, train: bool) -> tuple[tuple, tuple, tuple]:
        logits = self.classification_head(features, train=train)
        return (logits, *self.regression_head(features, train=train))


class FCOS(nn.Module):
    """A backbone with a pyramid, and heads that look at each place of its maps, without anchors.

    Pictures, `sizes` and the classes, of which 0 is the background's, are as in `RetinaNet`.
    `max_candidates` is how many of each map's pairs of a place and a class are looked at when
    objects are found.
    """

    backbone: DetectionBackbone
    head: FCOSHead
    anchor_sizes: tuple[int | float, ...] = STRIDES
    max_candidates: int = 1000

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        sizes: Int[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> FCOSOutputs:
        images = on_zeros(images, sizes, SIZE_DIVISIBLE)
        features = self.backbone(images, train=train)
        anchors = anchors_of_levels(
            [x.shape[1:3] for x in features],
            images.shape[1:3],
            [(size,) for size in self.anchor_sizes],
            (1.0,),
        )
        return FCOSOutputs(*self.head(features, train=train), tuple(anchors))


def fcos_resnet_fpn(
    body: Callable[..., resnet.ResNet],
    num_classes: int = 91,
    *,
    frozen_norm: bool = True,
    width: int = 64,
    fpn_features: int = 256,
    head_depth: int = 4,
    anchor_sizes: Sequence[int | float] = STRIDES,
    dtype: DTypeLike = jnp.float32,
) -> FCOS:
    """Returns FCOS on a ResNet, whose batch normalisation `frozen_norm` freezes.

    The places of a map answer for objects whose farthest side is 4 to 8 times its size among
    `anchor_sizes`, by default the maps' strides, away; those of the finest map for smaller objects
    too, those of the coarsest for larger ones. For small machines take `fpn_features=64`.
    """
    norm = Norm("frozen" if frozen_norm else "batch")
    return FCOS(
        resnet_with_p6_p7(body, norm, width, fpn_features, dtype),
        FCOSHead(num_classes, group_norm(fpn_features), head_depth, dtype),
        tuple(anchor_sizes),
    )


fcos_resnet50_fpn = partial(fcos_resnet_fpn, resnet.resnet50)
fcos_resnet18_fpn = partial(fcos_resnet_fpn, resnet.resnet18, frozen_norm=False)
