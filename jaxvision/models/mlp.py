"""The multi-layer perceptron of PyTorch's quickstart: 784-512-512-10 with ReLU between."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import Dense
from jaxvision.types import Array


class MLP(nn.Module):
    """Flattens the picture, then `fc1`, `fc2`, … with ReLU between; returns logits.

    `hidden` holds the width of each hidden layer; its length is the depth.
    """

    num_classes: int = 10
    hidden: tuple[int, ...] = (512, 512)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b k"]:
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden, start=1):
            x = nn.relu(Dense(width, dtype=self.dtype, name=f"fc{i}")(x))
        return Dense(self.num_classes, dtype=self.dtype, name=f"fc{len(self.hidden) + 1}")(x)
