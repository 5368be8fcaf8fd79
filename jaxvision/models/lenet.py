"""The course's GarmentClassifier, a LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.errors import UserError
from jaxvision.models.layers import Conv, Dense
from jaxvision.ops import conv_output_size, max_pool
from jaxvision.types import Array


class LeNet(nn.Module):
    """Convolution, ReLU and a pool of 2 for each of `features`; then dense layers `hidden`; logits.

    With the defaults and 28 x 28 pictures: 24, 12, 8, 4 pixels a side, so 16 * 4 * 4 = 256 values
    are flattened. Change `features`, `kernel_sizes` (one a convolution) and `hidden` as the
    course's exercise asks; what does not fit into the picture is refused with the sizes.
    """

    num_classes: int = 10
    features: tuple[int, ...] = (6, 16)
    kernel_sizes: tuple[int, ...] = (5, 5)
    hidden: tuple[int, ...] = (120, 84)
    padding: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b k"]:
        layer_sizes(x.shape[1:3], self.features, self.kernel_sizes, self.padding)
        for i, (width, kernel) in enumerate(
            zip(self.features, self.kernel_sizes, strict=True), start=1
        ):
            conv = Conv(
                width, (kernel, kernel), padding=self.padding, dtype=self.dtype, name=f"conv{i}"
            )
            x = max_pool(nn.relu(conv(x)), 2)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, start=1):
            x = nn.relu(Dense(width, dtype=self.dtype, name=f"fc{i}")(x))
        return Dense(self.num_classes, dtype=self.dtype, name=f"fc{len(self.hidden) + 1}")(x)


def layer_sizes(
    image_size: tuple[int, int],
    features: tuple[int, ...],
    kernel_sizes: tuple[int, ...],
    padding: int = 0,
) -> list[tuple[int, int]]:
    """Returns the (height, width) after each convolution and each pool, from (N + 2P - F) / S + 1.

    Raises `UserError` that names the layer and the sizes where a layer does not fit.
    """
    if len(features) != len(kernel_sizes):
        raise UserError(
            f"lenet: {len(features)} convolution widths {features} but {len(kernel_sizes)} kernel "
            f"sizes {kernel_sizes}; give one kernel size for each convolution"
        )
    h, w = image_size
    sizes = []
    for i, kernel in enumerate(kernel_sizes, start=1):
        layers = (
            (f"convolution {i} (kernel {kernel})", kernel, 1, padding),
            (f"pool {i}", 2, 2, 0),
        )
        for layer, f, stride, p in layers:
            try:
                out = conv_output_size(h, f, stride, p), conv_output_size(w, f, stride, p)
            except ValueError as error:
                raise UserError(
                    f"lenet: {layer} does not fit: its input is {h}x{w} pixels with padding {p} "
                    f"(the picture is {image_size[0]}x{image_size[1]}); use fewer layers, smaller "
                    f"kernels, more padding or larger pictures"
                ) from error
            h, w = out
            sizes.append(out)
    return sizes
