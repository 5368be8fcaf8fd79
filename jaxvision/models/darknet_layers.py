"""Darknet's layers, as the sections of its .cfg files describe them, and the networks of YOLO v1.

A section is one line here: "convolutional filters=64 size=7 stride=2 pad=1 batch_normalize=1
activation=leaky". So a network's layers are a tuple of strings, which a checkpoint can hold, and
what a .cfg file says is such a tuple without any translation. The options and their defaults are
the author's (github.com/pjreddie/darknet).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.layers import BatchNorm, Conv, Dense, flatten_as_torch, normal, parameter
from jaxvision.ops import conv_output_size, max_pool
from jaxvision.types import Array

kaiming_normal_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
"""N(0, 2 / fan_in), as darknet draws its weights; biases are 0."""


def leaky_relu(x: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """x where x > 0, else x / 10: the activation of all but the last layer (equation 2)."""
    return nn.leaky_relu(x, 0.1)


ACTIVATIONS = {
    "leaky": leaky_relu,
    "linear": lambda x: x,
    "logistic": jax.nn.sigmoid,
    "relu": nn.relu,
}


class LocallyConnected(nn.Module):
    """A convolution whose kernel is another one at each place of its output.

    `kernel` [h2, w2, fh, fw, c, k] and `bias` [h2, w2, k], so it fits one size of picture alone.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 k"]:
        size, stride, channels = self.kernel_size, self.stride, x.shape[-1]
        out = [conv_output_size(side, size, stride, self.padding) for side in x.shape[1:3]]
        init = normal((2 / (size * size * channels)) ** 0.5)
        shape = (*out, size, size, channels, self.features)
        kernel = parameter(self, "kernel", init, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, (*out, self.features))
        pads = ((0, 0), (self.padding, self.padding), (self.padding, self.padding), (0, 0))
        x = jnp.pad(x.astype(self.dtype), pads)
        ends = [(n - 1) * stride + 1 for n in out]
        patches = jnp.stack(
            [
                x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
                for i in range(size)
                for j in range(size)
            ],
            axis=3,
        )
        kernel = kernel.astype(self.dtype).reshape(*out, size * size, channels, self.features)
        return jnp.einsum("bhwpc,hwpck->bhwk", patches, kernel) + bias.astype(self.dtype)[None]


def darknet_max_pool(
    x: Float[Array, "b h w c"], size: int, stride: int, padding: int
) -> Float[Array, "b h2 w2 c"]:
    """Darknet's pool: of `padding` in all, the smaller half lies to the left and above.

    With the default, size - 1, a pool of 2 with stride 2 has a last window of its own where the
    size is odd.
    """
    before = padding // 2
    pads = []
    for side in x.shape[1:3]:
        out = (side + padding - size) // stride + 1
        pads.append((before, max((out - 1) * stride + size - side - before, 0)))
    if any(sum(pad) for pad in pads):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return max_pool(x, size, stride)


class DarknetLayers(nn.Module):
    """Runs the sections in `layers` one after the other; returns the last one's output by itself.

    That is {"last": [b, h, w, c]}, or [b, c] behind a connected layer. The sections that a network
    of YOLO v1 is made of are known: convolutional, maxpool, local, connected and dropout. A layer
    with weights is called by its number among the sections, from 1 on: "conv1", with its
    normalisation "bn1"; "local29"; "connected31". Normalisation adds 1e-5 to the variance, as
    darknet does on GPUs.
    """

    layers: tuple[str, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> dict[str, Float[Array, "b *_"]]:
        for number, text in enumerate(self.layers, start=1):
            x = self._apply(number, *parse_section(text), x, train)
        return {"last": x}

    def _apply(self, number, kind, options, x, train):
        size, stride = int(options.get("size", 1)), int(options.get("stride", 1))
        filters = int(options.get("filters", 1))
        if kind == "maxpool":
            size = int(options.get("size", stride))
            return darknet_max_pool(x, size, stride, int(options.get("padding", size - 1)))
        if kind == "dropout":
            rate = float(options.get("probability", 0.2))
            return nn.Dropout(rate, deterministic=not train, name=f"dropout{number}")(x)
        if kind == "convolutional":
            norm = options.get("batch_normalize", "0") != "0"
            x = Conv(
                filters,
                (size, size),
                stride=stride,
                padding=conv_padding(options),
                use_bias=not norm,
                kernel_init=kaiming_normal_fan_in,
                bias_init=nn.initializers.zeros,
                dtype=self.dtype,
                name=f"conv{number}",
            )(x)
            if norm:
                x = BatchNorm(dtype=self.dtype, name=f"bn{number}")(x, train=train)
        elif kind == "local":
            padding = int(options.get("pad", 0))
            layer = LocallyConnected(
                filters, size, stride, padding, self.dtype, name=f"local{number}"
            )
            x = layer(x)
        elif kind == "connected":
            x = x if x.ndim == 2 else flatten_as_torch(x)  # darknet's order too: (c, h, w)
            norm = options.get("batch_normalize", "0") != "0"
            features = int(options.get("output", 1))
            x = connected(features, not norm, self.dtype, name=f"connected{number}")(x)
            if norm:
                x = BatchNorm(dtype=self.dtype, name=f"bn{number}")(x, train=train)
        else:
            raise ValueError(f"expected a section of YOLO v1, got [{kind}]")
        return ACTIVATIONS[options.get("activation", "logistic")](x)


def connected(features: int, use_bias: bool, dtype: DTypeLike, name: str) -> Dense:
    """A dense layer, drawn as darknet draws it."""
    zeros = nn.initializers.zeros
    return Dense(features, use_bias, kaiming_normal_fan_in, zeros, dtype=dtype, name=name)


def parse_section(text: str) -> tuple[str, dict[str, str]]:
    """Returns the kind of a section, and its options by name.

    >>> parse_section("maxpool size=2 stride=2")
    ('maxpool', {'size': '2', 'stride': '2'})
    """
    kind, *options = text.split()
    return kind, dict(option.split("=", 1) for option in options)


def conv_padding(options: dict[str, str]) -> int:
    """`pad=1` is half the kernel; otherwise `padding` is what there is on each side."""
    if options.get("pad", "0") != "0":
        return int(options.get("size", 1)) // 2
    return int(options.get("padding", 0))


def conv(filters: int, size: int = 3, stride: int = 1) -> str:
    """A convolution that keeps the size but for its stride, with BatchNorm and leaky ReLU."""
    return (
        f"convolutional batch_normalize=1 filters={filters} size={size} stride={stride} pad=1 "
        "activation=leaky"
    )


POOL = "maxpool size=2 stride=2"

YOLOV1_LAYERS = (
    *(conv(64, 7, 2), POOL, conv(192), POOL),
    *(conv(128, 1), conv(256), conv(256, 1), conv(512), POOL),
    *(conv(256, 1), conv(512)) * 4,
    *(conv(512, 1), conv(1024), POOL),
    *(conv(512, 1), conv(1024)) * 2,
    *(conv(1024), conv(1024, stride=2), conv(1024), conv(1024)),
    "local filters=256 size=3 stride=1 pad=1 activation=leaky",
    "dropout probability=0.5",
)
"""Of yolov1.cfg: the paper's 24 convolutions (figure 3), all with BatchNorm. In the place of its
first connected layer there is a locally connected one; the second, the head, is not listed."""

FAST_YOLOV1_LAYERS = (
    *(conv(16), POOL, conv(32), POOL, conv(64), POOL, conv(128), POOL, conv(256), POOL),
    *(conv(512), POOL, conv(1024), conv(256)),
)
"""Of tiny-yolov1.cfg (yolov1-tiny.cfg in the repository): 8 convolutions; with the connected head
they are the nine layers that the paper counts in Fast YOLO."""
