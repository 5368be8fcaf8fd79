"""Instance masks: cropped to RoIs for training, pasted into pictures, run-length encoded.

`crop_masks` is jnp. `BoxMasks`, and what else follows a prediction, runs on the host with numpy,
because every picture has its own size and a pasted mask costs as much as its box, not its picture.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxvision.errors import UserError
from jaxvision.ops.resize import bilinear_weights
from jaxvision.ops.roi_samples import pixel_weights, sampled_axis
from jaxvision.types import Array

RunLength = dict[str, Any]
"""COCO's compressed run-length encoding: `size` [h, w] and `counts` bytes, column by column."""


def crop_masks(
    masks: Bool[Array, "m h w"] | Float[Array, "m h w"],
    boxes: Float[Array, "n 4"],
    matched: Int[Array, "n"],
    size: int | tuple[int, int],
    picture_size: tuple[int | Array, int | Array] | None = None,
) -> Float[Array, "n h2 w2"]:
    """Returns for each box the mask number `matched` of it, cropped to the box and resized.

    These are the mask head's targets (Mask R-CNN, section 3.1), in 0..1: `roi_align` of the mask
    with as many samples as the box has pixels, boxes in the mask's own pixels. A box with NaN gives
    zeros. The boxes get no gradient. `picture_size` (h, w) is that of a picture smaller than its
    array: then, too, what is sampled at its border is its last pixels.

    >>> mask = np.array([[True] * 4, [True] * 4, [False] * 4, [False] * 4])
    >>> box, first = np.array([[0, 0, 4, 4]], np.float32), np.array([0])
    >>> jax.jit(crop_masks, static_argnums=3)(mask[None], box, first, 2).tolist()
    [[[0.75, 0.75], [0.0, 0.0]]]
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    masks = jnp.asarray(masks)
    _, h, w = masks.shape
    picture_h, picture_w = (h, w) if picture_size is None else picture_size
    boxes = jax.lax.stop_gradient(boxes).astype(jnp.float32)

    def crop(box_and_match):
        box, match = box_and_match
        valid = jnp.isfinite(box).all()
        x1, y1, x2, y2 = jnp.where(valid, box, 0.0).reshape(4, 1)
        down = _bin_weights(y1, y2, h, picture_h, rows)
        across = _bin_weights(x1, x2, w, picture_w, columns)
        mask = masks[match].astype(jnp.float32)
        y = jnp.linalg.multi_dot([down, mask, across.T], precision=jax.lax.Precision.HIGHEST)
        return jnp.where(valid, y, 0.0)

    # A few at a time: a copy of the mask for every box would not fit where pictures are large.
    return jax.lax.map(crop, (boxes, matched), batch_size=16)


def _bin_weights(low, high, size, length, bins):
    """The matrix [bins, size] by which a box's bins average an axis's first `length` pixels."""
    lengths = jnp.asarray(length, jnp.int32).reshape(1)
    axis = sampled_axis(low, high, lengths, bins, -1, aligned=False)
    return pixel_weights(axis, bins, jnp.arange(size, dtype=jnp.int32).reshape(1, 1, -1))[0]


def paste_masks(
    masks: Float[np.ndarray, "n s s"],
    boxes: Float[np.ndarray, "n 4"],
    size: tuple[int, int],
    threshold: float | None = 0.5,
) -> Bool[np.ndarray, "n h w"] | Float[np.ndarray, "n h w"]:
    """Returns the masks [s, s] of the boxes as masks of a picture of `size` (h, w), on the host.

    Pixels above `threshold` are True; with None they stay probabilities, in float32. Each mask gets
    a border of zeros, its box grows alike and is cut to whole pixels, and it is resized bilinearly:
    torchvision's `paste_masks_in_image`. A box outside the picture, or with NaN, leaves nothing.

    >>> box = np.array([[8.0, 8.0, 24.0, 24.0]], np.float32)
    >>> paste_masks(np.ones((1, 28, 28), np.float32), box, (32, 32))[0, 16].nonzero()[0].tolist()
    [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]
    """
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    pasted = np.zeros((len(masks), *size), np.float32 if threshold is None else bool)
    side = masks.shape[-1]
    bordered = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((side + 2) / side)
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    finite = np.isfinite(boxes).all(axis=1)
    for i in np.flatnonzero(finite):
        # int() cuts towards zero, as torch's conversion does; the last pixel is inside.
        left, top = (int(v) for v in centre[i] - half[i])
        right, bottom = (int(v) for v in centre[i] + half[i])
        rows, down = _inside(top, bottom, size[0], side + 2)
        columns, across = _inside(left, right, size[1], side + 2)
        values = down @ bordered[i] @ across.T
        pasted[i, rows, columns] = values if threshold is None else values > threshold
    return pasted


@dataclass(frozen=True, eq=False)
class BoxMasks(Sequence):
    """The masks of a picture's objects: a sequence of bool [h, w], each pasted when asked for.

    What is kept is as small as a network gives it: `probabilities` [n, s, s] of the pixels of
    `boxes` [n, 4], in a picture of `size` (h, w). `paste_masks` says what becomes of them. A
    hundred masks of a large picture are gigabytes; `run_lengths` never holds more than one.

    >>> box = np.array([[8.0, 8.0, 24.0, 24.0]], np.float32)
    >>> masks = BoxMasks(np.ones((1, 28, 28), np.float32), box, (32, 32))
    >>> len(masks), int(masks[0].sum()), len(masks.select(np.array([False])))
    (1, 256, 0)
    """

    probabilities: Float[np.ndarray, "n s s"]
    boxes: Float[np.ndarray, "n 4"]
    size: tuple[int, int]
    threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Bool[np.ndarray, "h w"]:
        if np.ndim(index) or isinstance(index, slice):
            raise TypeError(
                f"expected the number of one mask, got {index!r}: `select` takes several, and "
                f"np.asarray(masks) is an array of all"
            )
        probabilities, box = self.probabilities[index], self.boxes[index]
        return paste_masks(probabilities[None], box[None], self.size, self.threshold)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All masks [n, h, w] at once; `copy` changes nothing, they are always made anew."""
        masks = np.stack(list(self)) if len(self) else np.zeros(self.shape, bool)
        return masks if dtype is None else masks.astype(dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, h, w), of what an array of all would have."""
        return (len(self), *self.size)

    def select(self, chosen: Bool[np.ndarray, "n"] | Int[np.ndarray, "k"]) -> "BoxMasks":
        """Returns the masks of some of the objects: where `chosen` is True, or of its indices."""
        return BoxMasks(self.probabilities[chosen], self.boxes[chosen], self.size, self.threshold)

    def resized(self, size: tuple[int, int]) -> "BoxMasks":
        """Returns the masks of the same objects in a picture of `size` (h, w)."""
        scale = np.array([size[1] / self.size[1], size[0] / self.size[0]] * 2, np.float32)
        return BoxMasks(self.probabilities, self.boxes * scale[None], size, self.threshold)

    def run_lengths(self) -> list["RunLength"]:
        """Returns COCO's run-length encoding of each mask."""
        return [run_length for mask in self for run_length in encode_masks(mask[None])]


def _inside(low: int, high: int, size: int, side: int) -> tuple[slice, np.ndarray]:
    """Returns a box's pixels that are inside the picture, and their weights [pixels, side]."""
    length = max(high - low + 1, 1)
    first, end = max(low, 0), min(low + length, size)
    end = max(end, first)
    outputs = range(first - low, end - low)
    return slice(first, end), bilinear_weights(side, length, outputs=outputs)


def encode_masks(masks: Bool[np.ndarray, "n h w"]) -> list[RunLength]:
    """Returns COCO's run-length encoding of each mask, by pycocotools.

    >>> decode_masks(encode_masks(np.eye(2, dtype=bool)[None]), (2, 2))[0].tolist()
    [[True, False], [False, True]]
    """
    from pycocotools import mask as coco

    masks = np.asarray(masks, bool)
    if not len(masks):
        return []
    return coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


def decode_masks(
    run_lengths: Sequence[RunLength], size: tuple[int, int]
) -> Bool[np.ndarray, "n h w"]:
    """The inverse of `encode_masks`, for masks of a picture of `size` (h, w)."""
    from pycocotools import mask as coco

    for i, run_length in enumerate(run_lengths):
        if tuple(run_length["size"]) != tuple(size):
            h, w = run_length["size"]
            raise UserError(
                f"expected run lengths of masks of {size[0]} x {size[1]} pixels (h x w), got number"
                f" {i} of {h} x {w}"
            )
    if not run_lengths:
        return np.zeros((0, *size), bool)
    with warnings.catch_warnings():
        # Of how pycocotools hands its array to NumPy 2; the numbers are right.
        warnings.simplefilter("ignore", DeprecationWarning)
        masks = coco.decode(list(run_lengths))
    return masks.transpose(2, 0, 1).astype(bool)
