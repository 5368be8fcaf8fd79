"""Faster R-CNN (arXiv:1506.01497) as torchvision builds it, and with VGG-16 as in the paper.

The network alone is here: `faster_rcnn_loss` of `jaxvision.losses` trains it, and `make_detector`
finds objects with it. Both call the same four methods, one after the other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxvision.models import mobilenet_v3, resnet, vgg
from jaxvision.models.fpn import DetectionBackbone, FeaturePyramidNetwork, Maps
from jaxvision.models.layers import Norm
from jaxvision.models.roi_heads import FastRCNNConvFCHead, Pooling, RoIHeads, TwoMLPHead
from jaxvision.models.rpn import AnchorPredictions, RegionProposalNetwork
from jaxvision.ops import zero_outside
from jaxvision.ops.anchors import ASPECT_RATIOS
from jaxvision.ops.rcnn import Proposals
from jaxvision.types import Array

SIZE_DIVISIBLE = 32
"""Pictures are padded with zeros to multiples of this, the coarsest stage's stride."""


class RCNNOutputs(NamedTuple):
    """Of each picture its proposals, and of each of these the logits of the classes, of which the
    first is the background, and the deltas of each class's box. `decode_rcnn` makes boxes of it."""

    proposals: Proposals
    class_logits: Float[Array, "b n k"]
    box_deltas: Float[Array, "b n k 4"]


class FasterRCNN(nn.Module):
    """A backbone, a network that proposes regions on its maps, and heads that classify them.

    Pictures are normalised RGB, the padding to the right of them and below them is whatever it is:
    `sizes` (h, w) says where each ends, and without it each fills its array. The classes inside the
    network count from 1, because 0 is the background, which `num_classes` of the functions that
    build one counts: it is one more than there are kinds of objects.
    """

    backbone: DetectionBackbone
    rpn: RegionProposalNetwork
    roi_heads: RoIHeads

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        sizes: Int[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> RCNNOutputs:
        """Returns what the heads say of the proposals, which `train` makes as for training."""
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.array([images.shape[1:3]]), (images.shape[0], 2))
        features = self.extract_features(images, sizes, train=train)
        predictions = self.score_anchors(features, train=train)
        proposals = self.propose(features, predictions, sizes, train=train)
        logits, deltas = self.classify_rois(features, proposals.boxes, train=train)
        return RCNNOutputs(proposals, logits, deltas)

    def extract_features(
        self, images: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> Maps:
        """Returns the feature maps, the finest first, of pictures on a background of zeros."""
        return self.backbone(zero_outside(images, sizes, SIZE_DIVISIBLE), train=train)

    def score_anchors(self, features: Maps, *, train: bool) -> AnchorPredictions:
        """Returns whether there is an object at each of `self.anchors(features)`, and where."""
        return self.rpn(features)

    def anchors(self, features: Maps) -> list[Float[Array, "_ 4"]]:
        """Returns the anchors of each level, the same for all pictures."""
        return self.rpn.anchors(features)

    def propose(
        self,
        features: Maps,
        predictions: AnchorPredictions,
        sizes: Int[Array, "b 2"],
        *,
        train: bool,
    ) -> Proposals:
        """Returns each picture's regions that may hold an object; more of them for training."""
        return self.rpn.propose(features, predictions, sizes, for_training=train)

    def classify_rois(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
        """Returns the logits of the classes, and each class's deltas, of any boxes."""
        return self.roi_heads(features, boxes, train=train)


# ------------------------------------------------------------------------------------- the zoo
AnchorSizes = Sequence[int | float | Sequence[int | float]]
ONE_SIZE_A_LEVEL = (32, 64, 128, 256, 512)
RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


def _per_level(anchor_sizes: AnchorSizes) -> tuple[tuple[int | float, ...], ...]:
    return tuple(tuple(s) if isinstance(s, Sequence) else (s,) for s in anchor_sizes)


def resnet_pyramid(
    body: Callable[..., resnet.ResNet],
    *,
    frozen_norm: bool,
    norm_eps: float,
    width: int,
    stem: Literal["imagenet", "small"],
    stages: Sequence[str],
    fpn_features: int | None,
    last_level_max_pool: bool,
    dtype: DTypeLike,
) -> tuple[DetectionBackbone, tuple[int, ...]]:
    """Returns a ResNet with a pyramid on its `stages`, and the strides of these.

    Without `fpn_features` there is no pyramid, and maps are as the ResNet has them.
    """
    unknown = set(stages) - set(RESNET_STAGES)
    if unknown or not stages:
        raise ValueError(f"expected some of {', '.join(RESNET_STAGES)}, got {tuple(stages)}")
    if fpn_features is None and len(stages) > 1:
        raise ValueError(f"expected one of the stages without a pyramid, got {tuple(stages)}")
    norm = Norm("frozen" if frozen_norm else "batch", eps=norm_eps)
    first = 4 if stem == "imagenet" else 1
    pyramid = None
    if fpn_features is not None:
        pyramid = FeaturePyramidNetwork(fpn_features, last_level_max_pool, dtype=dtype)
    backbone = DetectionBackbone(
        body(features_only=True, width=width, stem=stem, norm=norm, dtype=dtype),
        tuple(stages),
        pyramid,
    )
    return backbone, tuple(first * 2 ** RESNET_STAGES.index(stage) for stage in stages)


def fasterrcnn_resnet_fpn(
    body: Callable[..., resnet.ResNet],
    num_classes: int = 91,
    *,
    frozen_norm: bool = True,
    norm_eps: float = 1e-5,
    width: int = 64,
    stem: Literal["imagenet", "small"] = "imagenet",
    stages: Sequence[str] = RESNET_STAGES,
    fpn_features: int = 256,
    representation_size: int = 1024,
    anchor_sizes: AnchorSizes = ONE_SIZE_A_LEVEL,
    aspect_ratios: Sequence[int | float] = ASPECT_RATIOS,
    pre_nms_top_n: Sequence[int] = (2000, 1000),
    post_nms_top_n: Sequence[int] = (2000, 1000),
    score_threshold: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> FasterRCNN:
    """Returns a ResNet with a pyramid of strides 4 to 32, and 64 where anchors have a fifth size.

    `frozen_norm` freezes the backbone's batch normalisation, as torchvision does as soon as the
    backbone or the whole comes with weights; `norm_eps` is 0 in torchvision's COCO_V1 for the
    ResNet-50 of the first version. From such weights torchvision trains no layer before layer2:
    `freeze(tx, params, trainable=[f"backbone/body/layer{i}/**" for i in (2, 3, 4)] +
    ["backbone/fpn/**", "rpn/**", "roi_heads/**"])`. For small machines and pictures of 128 pixels
    take `fpn_features=64` and `anchor_sizes=(16, 32, 64, 96)`. `stages` are those that the pyramid
    stands on: anchors have as many sizes, or one more. With `stem="small"`, which is ResNet's for
    small pictures, strides are a quarter: `stages=("layer2", "layer3", "layer4")` have 2, 4 and 8.
    """
    sizes = _per_level(anchor_sizes)
    backbone, strides = resnet_pyramid(
        body,
        frozen_norm=frozen_norm,
        norm_eps=norm_eps,
        width=width,
        stem=stem,
        stages=stages,
        fpn_features=fpn_features,
        last_level_max_pool=len(sizes) == len(stages) + 1,
        dtype=dtype,
    )
    return FasterRCNN(
        backbone,
        RegionProposalNetwork(
            sizes,
            stride=strides[0],
            aspect_ratios=tuple(aspect_ratios),
            pre_nms_top_n=tuple(pre_nms_top_n),
            post_nms_top_n=tuple(post_nms_top_n),
            score_threshold=score_threshold,
            dtype=dtype,
        ),
        RoIHeads(num_classes, TwoMLPHead(representation_size, dtype=dtype), strides, dtype=dtype),
    )


def fasterrcnn_resnet50_fpn_v2(
    num_classes: int = 91,
    *,
    width: int = 64,
    fpn_features: int = 256,
    representation_size: int = 1024,
    dtype: DTypeLike = jnp.float32,
) -> FasterRCNN:
    """Returns the improved one (arXiv:2111.11429): batch normalisation, trained, in the pyramid and
    in a box head of four convolutions too, and two convolutions in the proposal network."""
    norm = Norm()
    return FasterRCNN(
        DetectionBackbone(
            resnet.resnet50(features_only=True, width=width, norm=norm, dtype=dtype),
            RESNET_STAGES,
            FeaturePyramidNetwork(fpn_features, norm=norm, dtype=dtype),
        ),
        RegionProposalNetwork(_per_level(ONE_SIZE_A_LEVEL), stride=4, conv_depth=2, dtype=dtype),
        RoIHeads(
            num_classes,
            FastRCNNConvFCHead((fpn_features,) * 4, representation_size, norm, dtype),
            dtype=dtype,
        ),
    )


def fasterrcnn_mobilenet_v3_large_fpn(
    num_classes: int = 91,
    *,
    frozen_norm: bool = True,
    width_mult: float = 1.0,
    fpn_features: int = 256,
    representation_size: int = 1024,
    anchor_sizes: Sequence[int | float] = ONE_SIZE_A_LEVEL,
    pre_nms_top_n: Sequence[int] = (2000, 1000),
    post_nms_top_n: Sequence[int] = (2000, 1000),
    score_threshold: float = 0.05,
    dtype: DTypeLike = jnp.float32,
) -> FasterRCNN:
    """Returns torchvision's fast one: two maps of stride 32 and one of 64, all anchors at each.

    RoIs are pooled from the first map alone, whatever their size: so it is in torchvision too,
    where the two maps of one stride count as one level.
    """
    norm = Norm("frozen" if frozen_norm else "batch")
    body = mobilenet_v3.MobileNetV3Features(
        mobilenet_v3.LARGE, width_mult=width_mult, norm=norm, dtype=dtype
    )
    return FasterRCNN(
        DetectionBackbone(body, ("C4", "C5"), FeaturePyramidNetwork(fpn_features, dtype=dtype)),
        RegionProposalNetwork(
            (tuple(anchor_sizes),) * 3,
            stride=32,
            pre_nms_top_n=tuple(pre_nms_top_n),
            post_nms_top_n=tuple(post_nms_top_n),
            score_threshold=score_threshold,
            dtype=dtype,
        ),
        RoIHeads(num_classes, TwoMLPHead(representation_size, dtype=dtype), (32,), dtype=dtype),
    )


def fasterrcnn_vgg16(
    num_classes: int = 21,
    *,
    widths: Sequence[int] = vgg.WIDTHS,
    pooling: Pooling = "pool",
    hidden: int = 4096,
    dropout: float = 0.5,
    anchor_sizes: Sequence[int | float] = (128, 256, 512),
    aspect_ratios: Sequence[int | float] = ASPECT_RATIOS,
    pre_nms_top_n: Sequence[int] = (12000, 6000),
    post_nms_top_n: Sequence[int] = (2000, 300),
    dtype: DTypeLike = jnp.float32,
) -> FasterRCNN:
    """Returns the paper's network: VGG-16's last map, of stride 16, nine anchors at each of its
    pixels, RoIs pooled to 7 x 7, and VGG-16's two hidden layers as fc6 and fc7."""
    body = vgg.vgg16(features_only=True, widths=tuple(widths), dtype=dtype)
    return FasterRCNN(
        DetectionBackbone(body, ("stage5",)),
        RegionProposalNetwork(
            (tuple(anchor_sizes),),
            stride=16,
            aspect_ratios=tuple(aspect_ratios),
            pre_nms_top_n=tuple(pre_nms_top_n),
            post_nms_top_n=tuple(post_nms_top_n),
            dtype=dtype,
        ),
        RoIHeads(num_classes, TwoMLPHead(hidden, dropout, dtype), (16,), pooling, dtype),
    )


fasterrcnn_resnet50_fpn = partial(fasterrcnn_resnet_fpn, resnet.resnet50)
fasterrcnn_resnet18_fpn = partial(fasterrcnn_resnet_fpn, resnet.resnet18, frozen_norm=False)
fasterrcnn_mobilenet_v3_large_320_fpn = partial(
    fasterrcnn_mobilenet_v3_large_fpn, pre_nms_top_n=(2000, 150), post_nms_top_n=(2000, 150)
)
