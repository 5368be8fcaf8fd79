"""Layers with torch's semantics: explicit padding and torch's default initialisation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxvision.ops import conv2d


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's draw for weights *and* biases of Linear and Conv.

    The published figures of small networks under plain SGD depend on it.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """torch's Conv2d on NHWC: `kernel` [fh, fw, c, k], `bias` [k]; `padding` zeros on each side."""

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        init = fan_in_uniform(math.prod(shape[:-1]))
        kernel = self.param("kernel", init, shape, jnp.float32)
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            (self.padding, self.padding),
            self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


class Dense(nn.Module):
    """torch's Linear: `kernel` [c, k], the transpose of torch's weight, and `bias` [k]."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b k"]:
        init = fan_in_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, -1)
        return y
