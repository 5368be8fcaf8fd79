"""What every detector's loss takes from a batch: its pictures, and the objects in them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxvision.losses.forward import normalized_pictures
from jaxvision.types import Array, Batch, PerChannel


class Scenes(NamedTuple):
    """A detection batch on the device; no object of a picture that is padding is valid."""

    images: Float[Array, "b h w c"]
    """Normalised."""
    sizes: Int[Array, "b 2"]
    boxes: Float[Array, "b m 4"]
    labels: Int[Array, "b m"]
    box_valid: Bool[Array, "b m"]
    valid: Bool[Array, " b"]
    rows: Bool[Array, " b"] | None
    """`valid`, or None where the batch says nothing of it: what batch normalisation looks at."""


def pictures_and_objects(batch: Batch, mean: PerChannel, std: PerChannel) -> Scenes:
    """Returns the batch with normalised pictures, and with masks and sizes where it has none.

    >>> batch = {"image": np.zeros((1, 8, 9, 3), np.uint8), "boxes": np.zeros((1, 2, 4))}
    >>> scenes = pictures_and_objects({**batch, "labels": np.zeros((1, 2), np.int32)}, 0.5, 0.5)
    >>> scenes.sizes.tolist(), scenes.box_valid.tolist(), float(scenes.images.max())
    ([[8, 9]], [[True, True]], -1.0)
    """
    images = normalized_pictures(batch, mean, std)
    b, h, w, _ = images.shape
    rows = None if batch.get("valid") is None else jnp.asarray(batch["valid"])
    valid = jnp.ones(b, bool) if rows is None else rows
    sizes = jnp.asarray(batch.get("size", np.tile([[h, w]], (b, 1))))
    boxes, labels = jnp.asarray(batch["boxes"]), jnp.asarray(batch["labels"])
    box_valid = jnp.asarray(batch.get("box_valid", np.ones(labels.shape, bool))) & valid[:, None]
    return Scenes(images, sizes, boxes, labels, box_valid, valid, rows)


def usable_objects(
    boxes: Float[Array, "m 4"],
    labels: Int[Array, " m"] | None,
    box_valid: Bool[Array, " m"],
) -> tuple[Float[Array, "m2 4"], Int[Array, " m2"], Bool[Array, " m2"]]:
    """Returns one picture's objects, at least one slot for them; those that are none hold zeros.

    One without area is none.

    >>> boxes = jnp.array([[1.0, 1.0, 5.0, 5.0], [2.0, 2.0, 2.0, 9.0]])
    >>> usable_objects(boxes, None, jnp.array([True, True]))[2].tolist()
    [True, False]
    """
    if labels is None:
        labels = jnp.zeros(box_valid.shape, jnp.int32)
    if not len(box_valid):
        boxes, labels, box_valid = (
            jnp.zeros((1, *x.shape[1:]), x.dtype) for x in (boxes, labels, box_valid)
        )
    box_valid = box_valid & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return jnp.where(box_valid[:, None], boxes, 0.0), jnp.where(box_valid, labels, 0), box_valid
