"""SegNet (arXiv:1511.00561): VGG's convolutions, mirrored, and pools that remember places."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import Conv, ConvNormActivation
from jaxvision.ops import max_pool_with_argmax, max_unpool
from jaxvision.types import Array


class SegNet(nn.Module):
    """Logits of every pixel of normalised pictures: {"out": [b, h, w, num_classes]}.

    Sides are of any size from 32 pixels on, which five pools halve to one.
    The encoder is VGG16's, with batch normalisation. Each of its 2x2 max-pools hands the places of
    its maxima to the decoder's unpooling of the same size, and no more than that crosses over. The
    decoder has the encoder's convolutions in reverse, of which the last tells the classes apart.
    `widths` and `stage_sizes` are a stage's channels and convolutions. Class 0 is the background.
    """

    num_classes: int = 21
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b h w k"]]:
        stages = list(enumerate(zip(self.widths, self.stage_sizes, strict=True), start=1))
        pools = []
        for i, (width, num_convs) in stages:
            for j in range(1, num_convs + 1):
                x = self._block(width, f"conv{i}_{j}")(x, train=train)
            size = x.shape[1:3]
            x, places = max_pool_with_argmax(x, 2)
            pools.append((places, size))
        for i, (width, num_convs) in reversed(stages):
            x = max_unpool(x, *pools.pop())
            for j in range(num_convs, 1, -1):
                x = self._block(width, f"conv{i}_{j}_decoded")(x, train=train)
            if i > 1:
                x = self._block(self.widths[i - 2], f"conv{i}_1_decoded")(x, train=train)
        head = Conv(self.num_classes, (3, 3), padding=1, dtype=self.dtype, name="conv1_1_decoded")
        return {"out": head(x)}

    def _block(self, width: int, name: str) -> ConvNormActivation:
        return ConvNormActivation(width, dtype=self.dtype, name=name)
