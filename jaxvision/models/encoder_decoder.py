"""Segmentation as a course builds it up: shrink the map to save work, then grow it again.

One network with a choice of how maps grow, so that all else is equal when the ways are compared.
"""

from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.errors import UserError
from jaxvision.models.layers import BatchNorm, Conv, ConvNormActivation, ConvTranspose
from jaxvision.ops import (
    max_pool,
    max_pool_with_argmax,
    max_unpool,
    unpool_bed_of_nails,
    unpool_nearest,
)
from jaxvision.types import Array

Upsampling = Literal["full", "nearest", "bed_of_nails", "max_unpool", "transposed", "unet"]


class EncoderDecoder(nn.Module):
    """Logits of every pixel of normalised pictures: {"out": [b, h, w, num_classes]}.

    Between the encoder's stages, of `convs` 3x3 convolutions and a width each, a max-pool halves
    the map; the decoder narrows it stage by stage, doubles it, and convolves it once more.
    `upsampling` says how it is doubled:

    - "nearest" repeats each pixel; "bed_of_nails" puts it into the corner of a square of zeros;
    - "max_unpool" puts it where the encoder's pool found its maximum, and zeros around it
      (SegNet, arXiv:1511.00561);
    - "transposed" learns it: a transposed 3x3 convolution with a stride of 2;
    - "unet" repeats each pixel and joins the encoder's map of that size (arXiv:1505.04597);
    - "full" does without: no pools, every convolution sees the picture's full size.

    h and w must be multiples of 2 ** (len(widths) - 1), but for "full". Class 0 is the background.
    """

    num_classes: int = 11
    upsampling: Upsampling = "max_unpool"
    widths: tuple[int, ...] = (16, 32, 64, 128)
    convs: int = 2
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b h w k"]]:
        self._check(*x.shape[1:3])
        encoded, places = [], []
        for i, width in enumerate(self.widths, start=1):
            if i > 1 and self.upsampling != "full":
                encoded.append(x)
                x, place = self._shrunk(x)
                places.append(place)
            for j in range(1, self.convs + 1):
                x = self._block(width, f"encoder{i}_{j}")(x, train=train)
        for i in range(len(self.widths) - 1, 0, -1):
            width = self.widths[i - 1]
            x = self._block(width, f"narrow{i}")(x, train=train)
            if self.upsampling != "full":
                x = self._grown(x, encoded.pop(), places.pop(), i, train)
            x = self._block(width, f"decoder{i}")(x, train=train)
        head = Conv(self.num_classes, (1, 1), dtype=self.dtype, name="head")
        return {"out": head(x)}

    def _block(self, width: int, name: str) -> ConvNormActivation:
        return ConvNormActivation(width, dtype=self.dtype, name=name)

    def _shrunk(self, x):
        if self.upsampling == "max_unpool":
            return max_pool_with_argmax(x, 2)
        return max_pool(x, 2), None

    def _grown(self, x, encoded, place, stage: int, train: bool):
        if self.upsampling == "bed_of_nails":
            return unpool_bed_of_nails(x, 2)
        if self.upsampling == "max_unpool":
            return max_unpool(x, place, encoded.shape[1:3])
        if self.upsampling == "transposed":
            grow = ConvTranspose(
                x.shape[-1],
                (3, 3),
                stride=2,
                padding=1,
                output_padding=1,
                use_bias=False,
                dtype=self.dtype,
                name=f"grow{stage}",
            )
            norm = BatchNorm(dtype=self.dtype, name=f"grow{stage}_norm")
            return nn.relu(norm(grow(x), train=train))
        x = unpool_nearest(x, 2)
        return jnp.concatenate([encoded, x], axis=-1) if self.upsampling == "unet" else x

    def _check(self, h: int, w: int) -> None:
        if self.upsampling not in get_args(Upsampling):
            raise UserError(
                f"encoder_decoder: expected upsampling of {', '.join(get_args(Upsampling))}, got "
                f"{self.upsampling!r}"
            )
        multiple = 1 if self.upsampling == "full" else 2 ** (len(self.widths) - 1)
        if h % multiple or w % multiple:
            raise UserError(
                f"encoder_decoder: expected a picture whose sides are multiples of {multiple}, got "
                f"{h} x {w}: resize or pad it"
            )
