"""Keypoint R-CNN (arXiv:1703.06870, section 5) as torchvision builds it: persons and their joints.

Each keypoint is one place of its box: a map of logits, of which the largest is where it is.
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
    fasterrcnn_resnet_fpn,
)
from jaxvision.models.fpn import Maps
from jaxvision.models.layers import Conv, ConvTranspose, kaiming_normal_fan_out
from jaxvision.models.roi_heads import RoIHeads, pool_rois
from jaxvision.ops.precision import at_least_float32
from jaxvision.ops.resize import resize_bilinear
from jaxvision.types import Array

KEYPOINT_RESOLUTION = 14
"""Bins of a RoI along each side; the maps of keypoints have four times as many."""
_INIT = {"kernel_init": kaiming_normal_fan_out, "bias_init": nn.initializers.zeros}


class KeypointRCNNHeads(nn.Module):
    """3x3 convolutions, by default twice as wide as the maps that RoIs are pooled from."""

    depth: int = 8
    features: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"]) -> Float[Array, "n s s c2"]:
        features = self.features or 2 * x.shape[-1]
        conv = partial(Conv, features, (3, 3), padding=1, dtype=self.dtype, **_INIT)
        for i in range(self.depth):
            x = nn.relu(conv(name=str(2 * i))(x))  # in torch the ReLUs are numbered too
        return x


class KeypointRCNNPredictor(nn.Module):
    """Four times the resolution: learnt twice, and bilinearly twice again."""

    num_keypoints: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"]) -> Float[Array, "n s2 s2 p"]:
        options = {"padding": 1, "dtype": self.dtype, "name": "kps_score_lowres", **_INIT}
        x = ConvTranspose(self.num_keypoints, (4, 4), 2, **options)(x)
        # In bfloat16 neighbours of a peak would be equal to it, and the first of them be taken.
        return resize_bilinear(at_least_float32(x), (2 * x.shape[1], 2 * x.shape[2]))


class KeypointRoIHeads(RoIHeads):
    """`RoIHeads` that also say where in a box each keypoint is."""

    num_keypoints: int = 17
    head_depth: int = 8
    head_features: int | None = None

    def setup(self) -> None:
        super().setup()
        self.keypoint_head = KeypointRCNNHeads(self.head_depth, self.head_features, self.dtype)
        self.keypoint_predictor = KeypointRCNNPredictor(self.num_keypoints, self.dtype)

    def __call__(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
        if self.is_initializing():  # else the keypoints' layers would have no parameters
            self.predict_keypoints(features, boxes[:, :1], train=train)
        return super().__call__(features, boxes, train=train)

    def predict_keypoints(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> Float[Array, "b n s s p"]:
        """Returns the logits of each keypoint's place in each of the boxes."""
        b, n, _ = boxes.shape
        pooled = pool_rois(features, boxes, self.strides, KEYPOINT_RESOLUTION, self.pooling)
        x = self.keypoint_head(pooled.reshape(b * n, *pooled.shape[2:]))
        logits = self.keypoint_predictor(x)
        return logits.reshape(b, n, *logits.shape[1:])


class KeypointRCNN(FasterRCNN):
    """`FasterRCNN`, whose heads are `KeypointRoIHeads`: called, it says the same of proposals."""

    def predict_keypoints(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> Float[Array, "b n s s p"]:
        """Returns the logits of each keypoint's place in any boxes; maps of 56 by 56."""
        return self.roi_heads.predict_keypoints(features, boxes, train=train)


# ------------------------------------------------------------------------------------- the zoo
def keypointrcnn_resnet_fpn(
    body: Callable[..., resnet.ResNet],
    num_classes: int = 2,
    num_keypoints: int = 17,
    *,
    frozen_norm: bool = True,
    norm_eps: float = 1e-5,
    width: int = 64,
    stem: Literal["imagenet", "small"] = "imagenet",
    stages: Sequence[str] = RESNET_STAGES,
    fpn_features: int = 256,
    representation_size: int = 1024,
    head_depth: int = 8,
    head_features: int | None = None,
    anchor_sizes: AnchorSizes = ONE_SIZE_A_LEVEL,
    pre_nms_top_n: Sequence[int] = (2000, 1000),
    post_nms_top_n: Sequence[int] = (2000, 1000),
    dtype: DTypeLike = jnp.float32,
) -> KeypointRCNN:
    """Returns `fasterrcnn_resnet_fpn` with these options, and `num_keypoints` keypoints an object.

    By default there are the background and persons, with COCO's 17 keypoints: `norm_eps` is 0 in
    torchvision's COCO_V1, and 1e-5 in its COCO_LEGACY. The keypoints' branch has `head_depth`
    convolutions of `head_features` channels, by default twice as many as the pyramid.
    """
    detector = fasterrcnn_resnet_fpn(
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
        pre_nms_top_n=pre_nms_top_n,
        post_nms_top_n=post_nms_top_n,
        dtype=dtype,
    )
    h = detector.roi_heads
    heads = KeypointRoIHeads(
        *(h.num_classes, h.box_head, h.strides, h.pooling, h.dtype),
        num_keypoints,
        head_depth,
        head_features,
    )
    return KeypointRCNN(detector.backbone, detector.rpn, heads)


keypointrcnn_resnet18_fpn = partial(keypointrcnn_resnet_fpn, resnet.resnet18, frozen_norm=False)
keypointrcnn_resnet50_fpn = partial(keypointrcnn_resnet_fpn, resnet.resnet50)
