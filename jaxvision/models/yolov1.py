"""YOLO v1 (arXiv:1506.02640): boxes and classes of all cells of a grid from one look."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxvision.models.darknet_layers import (
    FAST_YOLOV1_LAYERS,
    DarknetLayers,
    connected,
    conv,
)
from jaxvision.models.layers import Conv, flatten_as_torch, normal
from jaxvision.ops import adaptive_avg_pool
from jaxvision.types import Array

FIRST_CONFIDENCE = -2.0
"""In front of the sigmoid; further down its slope would hold up those that have to rise."""


class YOLOv1(nn.Module):
    """Raw outputs [b, S, S, B * 5 + C]: B times (x, y, w, h, confidence) of a cell, then C classes.

    `decode_yolov1` of `jaxvision.ops` makes boxes and scores of them, and says what each number is;
    `bounded` goes along with them: False, the numbers are the quantities themselves, as the paper
    and the author's files have it; True, sigmoids and a softmax keep centres in their cells, and
    probabilities in [0, 1], which trains without the paper's slow start.

    `backbone` is a model that returns its stages, as `features_only=True` has it; the head looks at
    the last. `fully_connected` is the author's head, a dense layer on the whole map, so the network
    fits one size of picture, and the grid has `grid_size` cells a side whatever that is. Otherwise
    the head is a convolution of 1x1, behind those of 3x3 whose widths `neck` gives: the grid is the
    map's, or, with a `grid_size`, one that the map is averaged to.
    """

    backbone: nn.Module
    num_classes: int = 20
    num_boxes: int = 2
    grid_size: int | None = None
    neck: tuple[int, ...] = ()
    fully_connected: bool = False
    bounded: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b rows columns k"]:
        *_, x = self.backbone(x, train=train).values()
        per_cell = 5 * self.num_boxes + self.num_classes
        if self.fully_connected:
            if self.grid_size is None:
                raise ValueError("a fully connected head needs a grid_size")
            x = x if x.ndim == 2 else flatten_as_torch(x)
            x = connected(self.grid_size**2 * per_cell, True, self.dtype, name="head")(x)
            return grid_of_darknet(x, self.grid_size, self.num_boxes, self.num_classes)
        if self.neck:
            layers = tuple(conv(width) for width in self.neck)
            x = DarknetLayers(layers, self.dtype, name="neck_layers")(x, train=train)["last"]
        if self.grid_size is not None and x.shape[1:3] != (self.grid_size, self.grid_size):
            x = adaptive_avg_pool(x, self.grid_size)
        small = normal(0.01)
        return Conv(
            per_cell, (1, 1), kernel_init=small, bias_init=self._bias, dtype=self.dtype, name="head"
        )(x)

    def _bias(self, key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        """Zeros, but that bounded confidences begin low, as almost all of them have to be."""
        bias = jnp.zeros(shape, dtype)
        return bias.at[4 : 5 * self.num_boxes : 5].set(FIRST_CONFIDENCE) if self.bounded else bias


def grid_of_darknet(
    x: Float[Array, "b n"], grid_size: int, num_boxes: int, num_classes: int
) -> Float[Array, "b s s k"]:
    """Returns the outputs cell by cell.

    Darknet's last layer has all cells' classes first, then all confidences, then all boxes.
    """
    grid = (x.shape[0], grid_size, grid_size)
    cells = grid_size**2
    classes, confidences, boxes = jnp.split(
        x, [cells * num_classes, cells * (num_classes + num_boxes)], axis=1
    )
    boxes = boxes.reshape(*grid, num_boxes, 4)
    confidences = confidences.reshape(*grid, num_boxes, 1)
    boxes = jnp.concatenate([boxes, confidences], axis=-1).reshape(*grid, 5 * num_boxes)
    return jnp.concatenate([boxes, classes.reshape(*grid, num_classes)], axis=-1)


def darknet_yolov1(
    layers: Sequence[str],
    num_classes: int = 20,
    num_boxes: int = 2,
    grid_size: int = 7,
    bounded: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> YOLOv1:
    """Returns the network whose `layers` in front of the head are those sections of a .cfg file."""
    return YOLOv1(
        DarknetLayers(tuple(layers), dtype),
        num_classes,
        num_boxes,
        grid_size,
        fully_connected=True,
        bounded=bounded,
        dtype=dtype,
    )


def fast_yolov1(
    num_classes: int = 20,
    num_boxes: int = 2,
    grid_size: int = 7,
    layers: Sequence[str] = FAST_YOLOV1_LAYERS,
    bounded: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> YOLOv1:
    """Returns Fast YOLO, as the author's tiny-yolov1.cfg has it, for pictures of 448 x 448."""
    return darknet_yolov1(layers, num_classes, num_boxes, grid_size, bounded, dtype)


TINY_LAYERS = (
    *(conv(32, stride=2), conv(64, stride=2), conv(64), conv(64)),
    *(conv(128, stride=2), conv(128), conv(128), conv(192, stride=2), conv(256)),
)
"""Most of the work is done at a fourth and an eighth of the size, where garments have details."""


def yolov1_tiny(
    num_classes: int = 10,
    num_boxes: int = 2,
    grid_size: int | None = None,
    bounded: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> YOLOv1:
    """Returns a YOLO v1 for CPUs: a cell has 16 x 16 pixels, so 128 x 128 make 8 x 8 cells."""
    return YOLOv1(
        DarknetLayers(TINY_LAYERS, dtype),
        num_classes,
        num_boxes,
        grid_size,
        bounded=bounded,
        dtype=dtype,
    )
