"""Region proposal networks (arXiv:1506.01497, section 3), named as torchvision's are."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxvision.models.fpn import Maps
from jaxvision.models.layers import Conv, ConvNormActivation, Norm, normal
from jaxvision.ops import anchors_of_levels
from jaxvision.ops.anchors import ASPECT_RATIOS
from jaxvision.ops.rcnn import Proposals, select_proposals
from jaxvision.types import Array


class AnchorPredictions(NamedTuple):
    """What a network says of its anchors, level by level, in the order of `anchors_of_levels`."""

    objectness: tuple[Float[Array, "b _"], ...]
    """The logit of "there is an object"."""
    deltas: tuple[Float[Array, "b _ 4"], ...]
    """How the box of that object differs from the anchor, as `encode_boxes` has it."""


class RPNHead(nn.Module):
    """3x3 convolutions that all levels share, and for each anchor a logit and four deltas."""

    num_anchors: int
    conv_depth: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        options = {"kernel_init": normal(0.01), "bias_init": nn.initializers.zeros}
        options["dtype"] = self.dtype
        self.conv = Convolutions(self.conv_depth, self.dtype)
        self.cls_logits = Conv(self.num_anchors, (1, 1), **options)
        self.bbox_pred = Conv(4 * self.num_anchors, (1, 1), **options)

    def __call__(self, features: Maps) -> AnchorPredictions:
        objectness, deltas = [], []
        for x in features:
            y, b = self.conv(x), x.shape[0]
            objectness.append(self.cls_logits(y).reshape(b, -1))
            deltas.append(self.bbox_pred(y).reshape(b, objectness[-1].shape[1], 4))
        return AnchorPredictions(tuple(objectness), tuple(deltas))


class Convolutions(nn.Module):
    """torch's Sequential of 3x3 convolutions with ReLU, which keep the width."""

    depth: int
    dtype: DTypeLike
    norm: Norm | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        for i in range(self.depth):
            block = ConvNormActivation(
                x.shape[-1],
                norm=self.norm,
                kernel_init=normal(0.01),
                bias_init=nn.initializers.zeros,
                dtype=self.dtype,
                name=str(i),
            )
            x = block(x, train=train)
        return x


class RegionProposalNetwork(nn.Module):
    """Says of each anchor whether there is an object, and proposes the best boxes.

    `anchor_sizes` are each level's, in pixels of the picture, and `stride` is the finest level's.
    Of what is for training and otherwise, `pre_nms_top_n` and `post_nms_top_n` have both, in that
    order. See `select_proposals` for the rest.
    """

    anchor_sizes: tuple[tuple[int | float, ...], ...]
    stride: int
    aspect_ratios: tuple[int | float, ...] = ASPECT_RATIOS
    conv_depth: int = 1
    pre_nms_top_n: tuple[int, int] = (2000, 1000)
    post_nms_top_n: tuple[int, int] = (2000, 1000)
    nms_threshold: float = 0.7
    score_threshold: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        counts = {len(sizes) * len(self.aspect_ratios) for sizes in self.anchor_sizes}
        if len(counts) != 1:
            raise ValueError(
                f"expected as many anchor sizes at each level, got {self.anchor_sizes}"
            )
        self.head = RPNHead(counts.pop(), self.conv_depth, self.dtype)

    def __call__(self, features: Maps) -> AnchorPredictions:
        return self.head(features)

    def anchors(self, features: Maps) -> list[Float[np.ndarray, "_ 4"]]:
        """Returns the anchors of each level, which follow from the sizes of its maps."""
        sizes = [(x.shape[1], x.shape[2]) for x in features]
        image_size = (self.stride * sizes[0][0], self.stride * sizes[0][1])
        return anchors_of_levels(sizes, image_size, self.anchor_sizes, self.aspect_ratios)

    def propose(
        self,
        features: Maps,
        predictions: AnchorPredictions,
        sizes: Int[Array, "b 2"],
        *,
        for_training: bool,
    ) -> Proposals:
        """Returns the proposals of each picture of `sizes` (h, w), without gradients.

        How many they are hangs on what they are for; `train`, which a frozen network is called
        without, would not say it.
        """
        anchors, which = self.anchors(features), 0 if for_training else 1

        def one_picture(objectness, deltas, size):
            return select_proposals(
                objectness,
                deltas,
                anchors,
                (size[0], size[1]),
                pre_nms_top_n=self.pre_nms_top_n[which],
                post_nms_top_n=self.post_nms_top_n[which],
                iou_threshold=self.nms_threshold,
                score_threshold=self.score_threshold,
            )

        return jax.vmap(one_picture)(predictions.objectness, predictions.deltas, sizes)
