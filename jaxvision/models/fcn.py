"""Fully convolutional networks (arXiv:1411.4038) on a dilated ResNet, named as torchvision's are.

The last two stages keep their size and dilate their kernels instead, so that the map that is
classified has an eighth of the picture's sides, and not a thirty-second.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import BatchNorm, Conv
from jaxvision.models.resnet import ResNet, resnet50, resnet101
from jaxvision.ops import resize_bilinear
from jaxvision.types import Array


class FCNHead(nn.Module):
    """3x3 to a quarter of the channels, and a 1x1 convolution that tells the classes apart."""

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        conv = partial(Conv, dtype=self.dtype)
        x = conv(x.shape[-1] // 4, (3, 3), padding=1, use_bias=False, name="0")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="1")(x, train=train))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return conv(self.num_classes, (1, 1), name="4")(x)


class DilatedSegmenter(nn.Module):
    """Logits of every pixel of normalised RGB pictures: {"out": [b, h, w, num_classes]}.

    They are computed at an eighth of the size (rounded up) and resized bilinearly. With `aux_loss`
    there is "aux" besides: a second head's logits, from layer3, which only the loss in training
    wants (`jaxvision.losses.segmentation_loss`). Class 0 is the background. `width` is that of the
    backbone's first stage. Dropout in training needs the rng `dropout`.
    """

    make_backbone: Callable[..., ResNet]
    make_head: Callable[..., nn.Module]
    num_classes: int = 21
    aux_loss: bool = True
    width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b h w k"]]:
        backbone = self.make_backbone(
            features_only=True,
            replace_stride_with_dilation=(False, True, True),
            width=self.width,
            dtype=self.dtype,
            name="backbone",
        )
        stages, size = backbone(x, train=train), x.shape[1:3]
        head = self.make_head(self.num_classes, dtype=self.dtype, name="classifier")
        outputs = {"out": resize_bilinear(head(stages["layer4"], train=train), size)}
        if self.aux_loss:
            aux_head = FCNHead(self.num_classes, self.dtype, name="aux_classifier")
            outputs["aux"] = resize_bilinear(aux_head(stages["layer3"], train=train), size)
        return outputs


fcn_resnet50 = partial(DilatedSegmenter, make_backbone=resnet50, make_head=FCNHead)
fcn_resnet101 = partial(DilatedSegmenter, make_backbone=resnet101, make_head=FCNHead)
