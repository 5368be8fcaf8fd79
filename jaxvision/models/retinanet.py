"""RetinaNet (arXiv:1708.02002) as torchvision builds it, in both versions.

The network alone is here: `retinanet_loss` of `jaxvision.losses` trains it, and `make_detector`
finds objects with it. Modules are named as torchvision's are.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxvision.models import resnet
from jaxvision.models.dense import DenseOutputs, by_anchor, on_zeros
from jaxvision.models.fpn import DetectionBackbone, FeaturePyramidNetwork, LastLevelP6P7, Maps
from jaxvision.models.layers import Conv, Norm, normal
from jaxvision.models.rpn import Convolutions
from jaxvision.ops import anchors_of_levels
from jaxvision.ops.anchors import ASPECT_RATIOS
from jaxvision.types import Array

SIZE_DIVISIBLE = 32
"""Pictures are padded with zeros to multiples of this, the coarsest stage's stride."""
PRIOR = 0.01
"""What a new network thinks of each class at each anchor (section 4.1 of the paper)."""


def prediction(features: int, dtype: DTypeLike, bias: float = 0.0) -> Conv:
    """Returns a head's last layer, a 3x3 convolution that says next to nothing but `bias`."""
    return Conv(
        features,
        (3, 3),
        padding=1,
        kernel_init=normal(0.01),
        bias_init=nn.initializers.constant(bias),
        dtype=dtype,
    )


class ClassificationHead(nn.Module):
    """The layers `conv`, shared by all maps, and for each anchor the logit of each class."""

    num_classes: int
    num_anchors: int
    conv: nn.Module
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        bias = -math.log((1 - PRIOR) / PRIOR)
        self.cls_logits = prediction(self.num_classes * self.num_anchors, self.dtype, bias)

    def __call__(self, features: Maps, *, train: bool) -> tuple[Float[Array, "b _ k"], ...]:
        outputs = (self.cls_logits(self.conv(x, train=train)) for x in features)
        return tuple(by_anchor(x, self.num_classes) for x in outputs)


class RegressionHead(nn.Module):
    """The layers `conv`, shared by all maps, and for each anchor the four deltas of its box."""

    num_anchors: int
    conv: nn.Module
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.bbox_reg = prediction(4 * self.num_anchors, self.dtype)

    def __call__(self, features: Maps, *, train: bool) -> tuple[Float[Array, "b _ 4"], ...]:
        return tuple(by_anchor(self.bbox_reg(self.conv(x, train=train)), 4) for x in features)


class RetinaNetHead(nn.Module):
    """Classifies all anchors and refines their boxes, with as many convolutions for each."""

    num_classes: int
    num_anchors: int
    conv_depth: int = 4
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        def convolutions():
            return Convolutions(self.conv_depth, self.dtype, self.norm)

        self.classification_head = ClassificationHead(
            self.num_classes, self.num_anchors, convolutions(), self.dtype
        )
        self.regression_head = RegressionHead(self.num_anchors, convolutions(), self.dtype)

    def __call__(
        self, features: Maps, *, train: bool
    ) -> tuple[tuple[Float[Array, "b _ k"], ...], tuple[Float[Array, "b _ 4"], ...]]:
        return (
            self.classification_head(features, train=train),
            self.regression_head(features, train=train),
        )


class RetinaNet(nn.Module):
    """A backbone with a pyramid, and heads that look at anchors at each place of its maps.

    Pictures are normalised RGB, the padding to the right of them and below them is whatever it is:
    `sizes` (h, w) says where each ends, and without it each fills its array. How much padding there
    is does matter, as in torchvision's batches: the strides of the coarsest maps, and the
    statistics of GroupNorm in the second version's heads and in FCOS, are those of the array. Each
    class has a sigmoid of its own, as torchvision has it: of its logits the first, class 0, is that
    of the background, which no object ever has, so that nothing is found as such. `num_classes` of
    the functions that build one counts it: it is one more than there are kinds of objects.

    `box_loss` says what boxes are trained by, and `max_candidates` how many of each map's pairs of
    an anchor and a class are looked at when objects are found.
    """

    backbone: DetectionBackbone
    head: RetinaNetHead
    anchor_sizes: tuple[tuple[int | float, ...], ...]
    aspect_ratios: tuple[int | float, ...] = ASPECT_RATIOS
    box_loss: Literal["l1", "giou"] = "l1"
    max_candidates: int = 1000

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        sizes: Int[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> DenseOutputs:
        images = on_zeros(images, sizes, SIZE_DIVISIBLE)
        features = self.backbone(images, train=train)
        logits, deltas = self.head(features, train=train)
        anchors = anchors_of_levels(
            [x.shape[1:3] for x in features],
            images.shape[1:3],
            self.anchor_sizes,
            self.aspect_ratios,
        )
        return DenseOutputs(logits, deltas, tuple(anchors))


# ------------------------------------------------------------------------------------- the zoo
ANCHOR_SIZES = (32, 64, 128, 256, 512)


def three_sizes(size: int | float) -> tuple[int | float, ...]:
    """Returns a map's three sizes of anchors, a third of an octave apart, as torchvision rounds.

    >>> three_sizes(32)
    (32, 40, 50)
    """
    return size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))


def resnet_with_p6_p7(
    body: Callable[..., resnet.ResNet],
    norm: Norm,
    width: int,
    fpn_features: int,
    dtype: DTypeLike,
    *,
    from_p5: bool = True,
) -> DetectionBackbone:
    """Returns a ResNet with a pyramid of strides 8 to 128: of the finest stage there is no map."""
    return DetectionBackbone(
        body(features_only=True, width=width, norm=norm, dtype=dtype),
        ("layer2", "layer3", "layer4"),
        FeaturePyramidNetwork(
            fpn_features,
            last_level_max_pool=False,
            dtype=dtype,
            extra_blocks=LastLevelP6P7(fpn_features, from_p5, dtype),
        ),
    )


def group_norm(features: int) -> Norm:
    """Returns group normalisation in 32 groups, or in fewer where there are fewer channels."""
    return Norm("group", groups=math.gcd(32, features))


def retinanet_resnet_fpn(
    body: Callable[..., resnet.ResNet],
    num_classes: int = 91,
    *,
    frozen_norm: bool = True,
    norm_eps: float = 1e-5,
    width: int = 64,
    fpn_features: int = 256,
    head_depth: int = 4,
    anchor_sizes: Sequence[int | float] = ANCHOR_SIZES,
    aspect_ratios: Sequence[int | float] = ASPECT_RATIOS,
    p6_from_p5: bool = True,
    head_group_norm: bool = False,
    box_loss: Literal["l1", "giou"] = "l1",
    dtype: DTypeLike = jnp.float32,
) -> RetinaNet:
    """Returns RetinaNet on a ResNet; `anchor_sizes` are the smallest of each map's three.

    `frozen_norm` freezes the backbone's batch normalisation, as torchvision does as soon as the
    backbone or the whole comes with weights; `norm_eps` is 0 in torchvision's COCO_V1 for the
    ResNet-50 of the first version. The second version has `p6_from_p5=False`, `head_group_norm` and
    `box_loss="giou"`. For small machines and pictures of 128 pixels take `fpn_features=64` and
    `anchor_sizes=(16, 24, 40, 64, 96)`.
    """
    norm = Norm("frozen" if frozen_norm else "batch", eps=norm_eps)
    sizes = tuple(three_sizes(size) for size in anchor_sizes)
    return RetinaNet(
        resnet_with_p6_p7(body, norm, width, fpn_features, dtype, from_p5=p6_from_p5),
        RetinaNetHead(
            num_classes,
            3 * len(aspect_ratios),
            head_depth,
            group_norm(fpn_features) if head_group_norm else None,
            dtype,
        ),
        sizes,
        tuple(aspect_ratios),
        box_loss,
    )


retinanet_resnet50_fpn = partial(retinanet_resnet_fpn, resnet.resnet50)
retinanet_resnet18_fpn = partial(retinanet_resnet_fpn, resnet.resnet18, frozen_norm=False)
retinanet_resnet50_fpn_v2 = partial(
    retinanet_resnet_fpn,
    resnet.resnet50,
    frozen_norm=False,
    p6_from_p5=False,
    head_group_norm=True,
    box_loss="giou",
)
