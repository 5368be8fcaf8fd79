"""What R-CNNs do with regions of interest: pool their features, classify, refine the box.

Fast R-CNN, arXiv:1504.08083; with a pyramid, arXiv:1612.03144. Named as torchvision's are.
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.fpn import Maps
from jaxvision.models.layers import (
    ConvNormActivation,
    Dense,
    Norm,
    flatten_as_torch,
    kaiming_normal_fan_out,
)
from jaxvision.ops import multiscale_roi_align, roi_align, roi_pool
from jaxvision.types import Array

Pooling = Literal["align", "pool"]


def pool_rois(
    features: Maps,
    boxes: Float[Array, "b n 4"],
    strides: tuple[int, ...],
    output_size: int = 7,
    pooling: Pooling = "align",
) -> Float[Array, "b n s s c"]:
    """Returns the features of each picture's boxes, in bins of `output_size` by `output_size`.

    `strides` are those of the first maps of `features`, which are the ones looked at: of several
    each box takes the one that suits its size. "align" is RoIAlign with two samples a bin and axis
    (arXiv:1703.06870), as torchvision has it; "pool" RoIPool, for one map only.
    """
    maps = features[: len(strides)]
    if pooling == "pool" and len(strides) != 1:
        raise ValueError(f"expected one map for RoIPool, got strides {strides}")

    def one_picture(maps, boxes):
        if len(strides) > 1:
            scales = [1 / stride for stride in strides]
            return multiscale_roi_align(maps, boxes, output_size, scales)
        if pooling == "pool":
            return roi_pool(maps[0], boxes, output_size, 1 / strides[0])
        return roi_align(maps[0], boxes, output_size, 1 / strides[0], sampling_ratio=2)

    return jax.vmap(one_picture)(tuple(maps), boxes)


class TwoMLPHead(nn.Module):
    """Two hidden layers, with dropout behind each where VGG is the backbone.

    With `ranks` each is two layers, thin in between: see `truncate_svd`.
    """

    features: int = 1024
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    ranks: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"], *, train: bool) -> Float[Array, "n k"]:
        x = flatten_as_torch(x)
        for name, rank in zip(("fc6", "fc7"), self.ranks or (None, None), strict=True):
            if rank is None:
                layer = Dense(self.features, dtype=self.dtype, name=name)
            else:
                layer = FactoredDense(self.features, rank, self.dtype, name=name)
            x = nn.relu(layer(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x


class FactoredDense(nn.Module):
    """A dense layer whose weights are the product of two, of `rank` columns and rows."""

    features: int
    rank: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n k"]:
        x = Dense(self.rank, use_bias=False, dtype=self.dtype, name="0")(x)
        return Dense(self.features, dtype=self.dtype, name="1")(x)


class FastRCNNConvFCHead(nn.Module):
    """3x3 convolutions with batch normalisation, then one hidden layer."""

    conv_features: tuple[int, ...] = (256, 256, 256, 256)
    features: int = 1024
    norm: Norm | None = Norm()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"], *, train: bool) -> Float[Array, "n k"]:
        init = {"kernel_init": kaiming_normal_fan_out, "bias_init": nn.initializers.zeros}
        block = partial(ConvNormActivation, norm=self.norm, dtype=self.dtype, **init)
        for i, width in enumerate(self.conv_features):
            x = block(width, name=str(i))(x, train=train)
        # In torch flattening is one number.
        name = str(len(self.conv_features) + 1)
        return nn.relu(Dense(self.features, dtype=self.dtype, name=name)(flatten_as_torch(x)))


class FastRCNNPredictor(nn.Module):
    """The logits of the classes, and for each class the four deltas of its box."""

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n c"]) -> tuple[Float[Array, "n k"], Float[Array, "n k 4"]]:
        logits = Dense(self.num_classes, dtype=self.dtype, name="cls_score")(x)
        deltas = Dense(4 * self.num_classes, dtype=self.dtype, name="bbox_pred")(x)
        return logits, deltas.reshape(-1, self.num_classes, 4)


class RoIHeads(nn.Module):
    """Classifies regions of interest, and refines their boxes for each class.

    `num_classes` counts the background, class 0. `strides` are those of the maps that RoIs are
    pooled from; see `pool_rois`.
    """

    num_classes: int
    box_head: nn.Module
    strides: tuple[int, ...] = (4, 8, 16, 32)
    pooling: Pooling = "align"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.box_predictor = FastRCNNPredictor(self.num_classes, self.dtype)

    def __call__(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
        b, n, _ = boxes.shape
        pooled = pool_rois(features, boxes, self.strides, pooling=self.pooling)
        x = self.box_head(pooled.reshape(b * n, *pooled.shape[2:]), train=train)
        logits, deltas = self.box_predictor(x)
        return logits.reshape(b, n, -1), deltas.reshape(b, n, -1, 4)
