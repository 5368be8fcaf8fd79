"""Feature pyramids (arXiv:1612.03144) on a backbone's stages, named as torchvision's are."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import Conv, ConvNormActivation, Norm
from jaxvision.ops import resize_nearest
from jaxvision.types import Array

Maps = tuple[Float[Array, "b _ _ _"], ...]
"""A backbone's or a pyramid's feature maps, the finest first."""

INIT = {
    # torch's kaiming_uniform_ with a=1.
    "kernel_init": nn.initializers.variance_scaling(1.0, "fan_in", "uniform"),
    "bias_init": nn.initializers.zeros,
}


class Blocks(nn.Module):
    """torch's ModuleList of one convolution for each of several maps, numbered from 0."""

    features: int
    kernel_size: int
    norm: Norm | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: Maps, *, train: bool) -> Maps:
        def block(number: int) -> ConvNormActivation:
            return ConvNormActivation(
                self.features,
                self.kernel_size,
                norm=self.norm,
                activation=None,
                dtype=self.dtype,
                **INIT,
                name=str(number),
            )

        return tuple(block(i)(x, train=train) for i, x in enumerate(maps))


class LastLevelP6P7(nn.Module):
    """RetinaNet's two maps more, P6 and P7, each half as large as the one before it.

    P6 is a 3x3 convolution of a stride of 2 of the pyramid's coarsest map, P5, or, where `from_p5`
    is False, of the backbone's; P7 is one of P6, behind a ReLU (arXiv:1708.02002, section 4).
    """

    features: int = 256
    from_p5: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, p5: Float[Array, "b h w c"], c5: Float[Array, "b h w d"]) -> Maps:
        def halve(x, name):
            options = {"stride": 2, "padding": 1, "dtype": self.dtype, "name": name}
            return Conv(self.features, (3, 3), **options, **INIT)(x)

        p6 = halve(p5 if self.from_p5 else c5, "p6")
        return p6, halve(nn.relu(p6), "p7")


class FeaturePyramidNetwork(nn.Module):
    """Maps of any widths, the finest first, to as many of `features` channels, of the same sizes.

    A 1x1 convolution brings each to that width, the coarser one is enlarged and added, and a 3x3
    convolution smooths the sum. With `last_level_max_pool` there is one map more: every other pixel
    of the coarsest (torchvision's LastLevelMaxPool), and with `extra_blocks` two, RetinaNet's.
    `norm` is None in the original.
    """

    features: int = 256
    last_level_max_pool: bool = True
    norm: Norm | None = None
    dtype: DTypeLike = jnp.float32
    extra_blocks: LastLevelP6P7 | None = None

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]], *, train: bool) -> Maps:
        options = {"norm": self.norm, "dtype": self.dtype}
        inner = Blocks(self.features, 1, **options, name="inner_blocks")(tuple(maps), train=train)
        sums = [inner[-1]]
        for lateral in inner[-2::-1]:
            sums.insert(0, lateral + resize_nearest(sums[0], lateral.shape[1:3]))
        layers = Blocks(self.features, 3, **options, name="layer_blocks")
        results = layers(tuple(sums), train=train)
        if self.last_level_max_pool:
            results = (*results, results[-1][:, ::2, ::2])
        if self.extra_blocks is not None:
            results = (*results, *self.extra_blocks(results[-1], maps[-1]))
        return results


class DetectionBackbone(nn.Module):
    """Pictures to the feature maps that a detector works on, the finest first.

    `body` is a network that returns its stages by name, `stages` which of these are taken, and
    `fpn`, where there is one, what makes a pyramid of them.
    """

    body: nn.Module
    stages: tuple[str, ...]
    fpn: FeaturePyramidNetwork | None = None

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Maps:
        found = self.body(images, train=train)
        maps = tuple(found[name] for name in self.stages)
        return maps if self.fpn is None else self.fpn(maps, train=train)
