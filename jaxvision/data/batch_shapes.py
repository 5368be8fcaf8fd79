"""The few shapes that detection batches come in: buckets of padded sizes, and sizes that change.

A compiled step takes one shape, so pictures of any size go to a few: each new one costs a compile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from jaxvision.data.detection import DetectionDataset
from jaxvision.data.detection_geometry import Placement, move_keypoints, resize_masks
from jaxvision.data.files import in_threads
from jaxvision.data.geometry import resize
from jaxvision.data.images import picture_size
from jaxvision.data.order import SCALES, draw
from jaxvision.errors import UserError

Size = tuple[int, int]


def picture_sizes(dataset: DetectionDataset, *, workers: int = 2) -> Int32[np.ndarray, "n 2"]:
    """(height, width) of each picture, upright, from the files' headers: nothing is decoded."""
    images, names = dataset.images, dataset.names
    if isinstance(images, np.ndarray):
        return np.tile(np.array(images.shape[1:3], np.int32), (len(images), 1))
    sizes = in_threads(
        lambda i: picture_size(images[i], name=names[i] if isinstance(images[i], bytes) else None),
        range(len(images)),
        f"sizes of {dataset.name}'s {dataset.split} set",
        workers=workers,
    )
    return np.array(sizes, np.int32).reshape(-1, 2)


def bucket_of(
    sizes: Int[np.ndarray, "n 2"], buckets: Sequence[Size], names: Sequence[str]
) -> Int32[np.ndarray, "n"]:
    """The number of the smallest bucket, by area, that holds each picture; of equal ones the first.

    A picture that none holds raises `UserError`, with its name among `names`.

    >>> bucket_of(np.array([[3, 4], [4, 3]]), [(4, 4), (4, 3)], ["a", "b"]).tolist()
    [0, 1]
    """
    corners = np.array(buckets, np.int64).reshape(-1, 2)
    holds = (sizes[:, None] <= corners).all(axis=-1)
    homeless = np.flatnonzero(~holds.any(axis=1))
    if homeless.size:
        first = homeless[0]
        more = f", as {homeless.size - 1} others are" if homeless.size > 1 else ""
        given = ", ".join(f"{h} x {w}" for h, w in buckets)
        raise UserError(
            f"{names[first]}: expected a picture that one of the buckets {given} (h x w) holds, "
            f"got {sizes[first][0]} x {sizes[first][1]} after the transform{more}: add a bucket, "
            "or resize to less"
        )
    areas = np.where(holds, corners.prod(axis=1), np.iinfo(np.int64).max)
    return areas.argmin(axis=1).astype(np.int32)


@dataclass(frozen=True)
class MultiScale:
    """Another size for the pictures every few steps, drawn from `sizes` (height, width).

    As YOLO trains (arXiv:1612.08242, section 2): the size of a step is a pure function of the seed
    and of `step // every`. Each size costs a compile.

    >>> scales = MultiScale([(96, 96), (128, 128)], every=10)
    >>> scales.size(3, seed=0) == scales.size(7, seed=0)
    True
    """

    sizes: Sequence[Size]
    every: int = 10

    def __post_init__(self) -> None:
        if not self.sizes or min(min(size) for size in self.sizes) < 1 or self.every < 1:
            raise ValueError(
                f"expected sizes of at least 1 x 1, and every of at least 1, got {self.sizes} "
                f"and {self.every}"
            )

    def size(self, step: int, *, seed: int) -> Size:
        """The (height, width) of this step's pictures."""
        number = draw(len(self.sizes), seed=seed, purpose=SCALES, index=step // self.every)
        return tuple(self.sizes[number])


def resize_batch(batch: dict[str, np.ndarray], size: Size) -> dict[str, np.ndarray]:
    """The batch with its pictures resized bilinearly to `size`, its objects with them."""
    before = batch["image"].shape[1:3]
    if before == size:
        return batch
    placement = Placement(before, size, size)
    resized = {
        **batch,
        "image": np.stack([resize(image, size, antialias=False) for image in batch["image"]]),
        "size": np.rint(batch["size"] * np.array(placement.scale)).astype(np.int32),
    }
    for name in {"boxes", "proposals"} & batch.keys():
        boxes = batch[name]
        resized[name] = placement.to_canvas(boxes.reshape(-1, 4)).reshape(boxes.shape)
    if "keypoints" in batch:
        resized["keypoints"] = move_keypoints(batch["keypoints"], placement)
    if "masks" in batch:
        resized["masks"] = np.stack([resize_masks(masks, size) for masks in batch["masks"]])
    return resized
