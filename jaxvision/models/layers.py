"""Layers with torch's semantics: explicit padding and torch's default initialisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.ops import batch_norm, conv2d, conv_transpose2d, normalize_by
from jaxvision.types import Array

Initializer = nn.initializers.Initializer

kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""N(0, 2 / fan_out), torch's kaiming_normal_ with mode="fan_out" (arXiv:1502.01852)."""


@cache
def normal(std: float) -> Initializer:
    """N(0, std**2), one function for each `std`: equal layers share the trace of their draw."""
    return nn.initializers.normal(std)


@cache
def fan_in_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's draw for weights *and* biases of Linear and Conv.

    The published figures of small networks under plain SGD depend on it.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def parameter(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]
) -> Float[Array, "*d"]:
    """Returns `module.param(name, init, shape, jnp.float32)`, of which JAX has less to trace.

    linen traces the initialiser also where there is a value already, to compare its shape: half the
    time that tracing a network takes. And each layer's anew, where equal ones here share a trace.
    """
    if not module.has_variable("params", name):
        return module.param(name, _draw, init, shape)
    value = nn.unbox(module.get_variable("params", name))
    if jnp.shape(value) != shape:
        path = module.scope.path_text
        raise ScopeParamShapeError(name, path, jnp.shape(value), shape)
    return value


@partial(jax.jit, static_argnames=("init", "shape"))
def _draw(key: jax.Array, init: Initializer, shape: tuple[int, ...]) -> jax.Array:
    return init(key, shape, jnp.float32)


class Conv(nn.Module):
    """torch's Conv2d on NHWC: `kernel` [fh, fw, c, k], `bias` [k]; `padding` zeros on each side."""

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        init = fan_in_uniform(math.prod(shape[:-1]))
        kernel = parameter(self, "kernel", self.kernel_init or init, shape)
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            (self.padding, self.padding),
            self.groups,
            (self.dilation, self.dilation),
        )
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init or init, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


class ConvTranspose(nn.Module):
    """torch's ConvTranspose2d on NHWC: `kernel` [fh, fw, k, c], `bias` [k].

    The kernel is that of the convolution it transposes, with its input channels last (see
    `conv_transpose2d`): torch's weight is converted as a Conv2d's, and so is torch's draw of it.
    """

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    groups: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        shape = (*self.kernel_size, self.features // self.groups, x.shape[-1])
        init = fan_in_uniform(math.prod(shape[:-1]))  # torch's fan-in is of the outputs here
        kernel = parameter(self, "kernel", self.kernel_init or init, shape)
        y = conv_transpose2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            (self.padding, self.padding),
            (self.output_padding, self.output_padding),
            self.groups,
            (self.dilation, self.dilation),
        )
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init or init, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


class Dense(nn.Module):
    """torch's Linear: `kernel` [c, k], the transpose of torch's weight, and `bias` [k]."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b k"]:
        init = fan_in_uniform(x.shape[-1])
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init or init, shape)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init or init, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, -1)
        return y


class BatchNorm(nn.Module):
    """torch's BatchNorm over the last axis (arXiv:1502.03167), with its state in `batch_stats`.

    `train=True` normalises by the batch's own mean and biased variance and moves the stored ones:
    stored = (1 - momentum) * stored + momentum * batch's, where the variance that is stored is the
    *unbiased* one. `momentum` is torch's (linen's is 1 - it); None averages over all batches alike.
    `train=False` normalises by the stored ones. A batch of which no row is valid leaves them alone.

    Parameters `scale` and `bias` [c]; state `mean` and `var` [c] and `num_batches_tracked`, all but
    the last float32 whatever `dtype` is.
    """

    momentum: float | None = 0.1
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *d c"], *, train: bool) -> Float[Array, "b *d c"]:
        shape = x.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        tracked = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)
        x = x.astype(self.dtype)
        if not train or self.is_initializing():
            return normalize_by(x, mean.value, var.value, scale, bias, self.eps)
        if math.prod(x.shape[:-1]) < 2:
            raise ValueError(
                f"batch normalisation in training needs at least 2 values a channel, and an input "
                f"of shape {list(x.shape)} has 1: use a larger batch or picture, or train=False"
            )
        y, batch_mean, batch_var, count = batch_norm(x, scale, bias, self.eps)
        tracked.value = tracked.value + (count > 0).astype(jnp.int32)
        new = self.momentum
        if new is None:
            new = 1 / jnp.maximum(tracked.value, 1)
        unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
        # Where no row is valid there is no mean, and of a single value no variance.
        mean.value = jnp.where(count > 0, (1 - new) * mean.value + new * batch_mean, mean.value)
        var.value = jnp.where(count > 1, (1 - new) * var.value + new * unbiased, var.value)
        return y


class FrozenBatchNorm(nn.Module):
    """torchvision's FrozenBatchNorm2d: batch normalisation of which nothing is ever learnt.

    Detectors train with a picture or two at a time, too few for statistics. `scale`, `bias`, `mean`
    and `var` are all in `batch_stats`, so that neither gradients nor weight decay reach them.
    """

    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *d c"], *, train: bool) -> Float[Array, "b *d c"]:
        shape = x.shape[-1:]
        starts = {"mean": jnp.zeros, "var": jnp.ones, "scale": jnp.ones, "bias": jnp.zeros}
        state = {
            name: self.variable("batch_stats", name, start, shape, jnp.float32).value
            for name, start in starts.items()
        }
        return normalize_by(x.astype(self.dtype), **state, eps=self.eps)


class GroupNorm(nn.Module):
    """torch's GroupNorm (arXiv:1803.08494): every example by itself, in `groups` of channels.

    So it does not matter how many pictures a batch has, and there is no state. Mean and biased
    variance are those of all pixels and channels of a group, in float32 or better; `scale` and
    `bias` are [c].
    """

    groups: int = 32
    eps: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        if c % self.groups:
            raise ValueError(f"expected channels in {self.groups} groups, got {c} channels")
        scale = parameter(self, "scale", nn.initializers.ones, (c,))
        bias = parameter(self, "bias", nn.initializers.zeros, (c,))
        y = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        y = y.reshape(b, h * w, self.groups, c // self.groups)
        mean = y.mean(axis=(1, 3), keepdims=True)
        var = jnp.square(y - mean).mean(axis=(1, 3), keepdims=True)
        y = ((y - mean) * jax.lax.rsqrt(var + self.eps)).reshape(b, h, w, c)
        y = y * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
        return y.astype(self.dtype)


@dataclass(frozen=True)
class Norm:
    """Which normalisation a network has in all its layers; a call builds one.

    A value that can be compared and hashed, as linen modules that have it as a field must be.
    `momentum` is batch normalisation's, `groups` group normalisation's.
    """

    kind: Literal["batch", "frozen", "group"] = "batch"
    eps: float = 1e-5
    momentum: float = 0.1
    groups: int = 32

    def __call__(self, **options) -> BatchNorm | FrozenBatchNorm | GroupNorm:
        if self.kind == "frozen":
            return FrozenBatchNorm(self.eps, **options)
        if self.kind == "group":
            return GroupNorm(self.groups, self.eps, **options)
        return BatchNorm(self.momentum, self.eps, **options)


class ConvNormActivation(nn.Module):
    """A convolution that keeps the size, or halves it with a stride, a norm, and an activation.

    Numbered as in a torch Sequential, in which the convolution is number `first`. Without a norm
    the convolution has a bias.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    norm: Norm | None = Norm()
    activation: Callable[[jax.Array], jax.Array] | None = nn.relu
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    first: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 k"]:
        conv = Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            self.stride,
            padding=self.dilation * (self.kernel_size // 2),
            groups=self.groups,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dilation=self.dilation,
            dtype=self.dtype,
            name=str(self.first),
        )
        x = conv(x)
        if self.norm is not None:
            x = self.norm(dtype=self.dtype, name=str(self.first + 1))(x, train=train)
        return x if self.activation is None else self.activation(x)


class Head(nn.Module):
    """A network's last dense layer alone, on the features [b, …, c] in front of it.

    It takes the parameters of the whole network, of which it uses those at `location`: so a network
    whose other layers are frozen can be trained on features that were computed once.
    """

    num_classes: int
    location: tuple[str, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *d c"], *, train: bool = False) -> Float[Array, "b k"]:
        x = x.reshape(x.shape[0], -1)
        first, *rest = self.location
        if rest:
            return Head(self.num_classes, tuple(rest), self.dtype, name=first)(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, name=first)(x)


def flatten_as_torch(x: Float[Array, "b h w c"]) -> Float[Array, "b n"]:
    """Flattens in torch's order (c, h, w): the kernel of the Dense layer behind it is then torch's
    weight transposed, and no more."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
