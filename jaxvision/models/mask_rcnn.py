"""Mask R-CNN (arXiv:1703.06870) as torchvision builds it: Faster R-CNN, and a mask of each object.

The mask branch looks at boxes that are already found: in training at the regions that were drawn
for an object, otherwise at the detections. `mask_rcnn_loss` and `make_detector` do either.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models import resnet
from jaxvision.models.faster_rcnn import (
    ONE_SIZE_A_LEVEL,
    RESNET_STAGES,
    AnchorSizes,
    FasterRCNN,
    fasterrcnn_resnet50_fpn_v2,
    fasterrcnn_resnet_fpn,
)
from jaxvision.models.fpn import Maps
from jaxvision.models.layers import (
    Conv,
    ConvNormActivation,
    ConvTranspose,
    Norm,
    kaiming_normal_fan_out,
)
from jaxvision.models.roi_heads import RoIHeads, pool_rois
from jaxvision.ops.anchors import ASPECT_RATIOS
from jaxvision.types import Array

MASK_RESOLUTION = 14
"""Bins of a RoI along each side; the masks have twice as many."""


class MaskRCNNHeads(nn.Module):
    """3x3 convolutions, as wide as the maps that RoIs are pooled from."""

    depth: int = 4
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"], *, train: bool) -> Float[Array, "n s s c"]:
        init = {"kernel_init": kaiming_normal_fan_out, "bias_init": nn.initializers.zeros}
        block = partial(ConvNormActivation, x.shape[-1], norm=self.norm, dtype=self.dtype, **init)
        for i in range(self.depth):
            x = block(name=str(i))(x, train=train)
        return x


class MaskRCNNPredictor(nn.Module):
    """Twice the resolution, and there the logits of each class's mask."""

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"]) -> Float[Array, "n s2 s2 k"]:
        init = {"kernel_init": kaiming_normal_fan_out, "dtype": self.dtype}
        x = nn.relu(ConvTranspose(x.shape[-1], (2, 2), 2, name="conv5_mask", **init)(x))
        return Conv(self.num_classes, (1, 1), name="mask_fcn_logits", **init)(x)


class MaskRoIHeads(RoIHeads):
    """`RoIHeads` that also say of boxes which of their pixels are the object's."""

    mask_norm: Norm | None = None

    def setup(self) -> None:
        super().setup()
        self.mask_head = MaskRCNNHeads(norm=self.mask_norm, dtype=self.dtype)
        self.mask_predictor = MaskRCNNPredictor(self.num_classes, self.dtype)

    def __call__(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
        if self.is_initializing():  # else the masks' layers would have no parameters
            self.predict_masks(features, boxes[:, :1], train=train)
        return super().__call__(features, boxes, train=train)

    def predict_masks(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> Float[Array, "b n s s k"]:
        """Returns the logits of each class's mask in each of the boxes."""
        b, n, _ = boxes.shape
        pooled = pool_rois(features, boxes, self.strides, MASK_RESOLUTION, self.pooling)
        x = self.mask_head(pooled.reshape(b * n, *pooled.shape[2:]), train=train)
        logits = self.mask_predictor(x)
        return logits.reshape(b, n, *logits.shape[1:])


class MaskRCNN(FasterRCNN):
    """`FasterRCNN`, whose heads are `MaskRoIHeads`: called, it says the same of its proposals."""

    def predict_masks(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> Float[Array, "b n s s k"]:
        """Returns the logits of each class's mask in any boxes; masks of 28 by 28."""
        return self.roi_heads.predict_masks(features, boxes, train=train)


def with_masks(detector: FasterRCNN, mask_norm: Norm | None = None) -> MaskRCNN:
    """Returns the Mask R-CNN that is this Faster R-CNN and a mask branch."""
    h = detector.roi_heads
    heads = MaskRoIHeads(h.num_classes, h.box_head, h.strides, h.pooling, h.dtype, mask_norm)
    return MaskRCNN(detector.backbone, detector.rpn, heads)


# ------------------------------------------------------------------------------------- the zoo
def maskrcnn_resnet_fpn(
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
) -> MaskRCNN:
    """Returns `fasterrcnn_resnet_fpn` with these options, which says what they are, and masks.

    The mask branch is as wide as the pyramid. `num_classes` counts the background.
    """
    return with_masks(
        fasterrcnn_resnet_fpn(
            body,
            num_classes,
            frozen_norm=frozen_norm,
            norm_eps=norm_eps,
            width=width,
            stem=stem,
            stages=stages,
            fpn_features=fpn_features,
            representation_size=representation_size,
            anchor_sizes=anchor_sizes,
            aspect_ratios=aspect_ratios,
            pre_nms_top_n=pre_nms_top_n,
            post_nms_top_n=post_nms_top_n,
            score_threshold=score_threshold,
            dtype=dtype,
        )
    )


def maskrcnn_resnet50_fpn_v2(
    num_classes: int = 91,
    *,
    width: int = 64,
    fpn_features: int = 256,
    representation_size: int = 1024,
    dtype: DTypeLike = jnp.float32,
) -> MaskRCNN:
    """Returns the improved one (arXiv:2111.11429), as `fasterrcnn_resnet50_fpn_v2`: the mask head
    has batch normalisation too."""
    detector = fasterrcnn_resnet50_fpn_v2(
        num_classes,
        width=width,
        fpn_features=fpn_features,
        representation_size=representation_size,
        dtype=dtype,
    )
    return with_masks(detector, Norm())


maskrcnn_resnet50_fpn = partial(maskrcnn_resnet_fpn, resnet.resnet50)
maskrcnn_resnet18_fpn = partial(maskrcnn_resnet_fpn, resnet.resnet18, frozen_norm=False)
