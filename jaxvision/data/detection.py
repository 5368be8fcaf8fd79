"""A data set for detection: pictures of any size, and what is in each: boxes, classes, masks.

Boxes are (x1, y1, x2, y2) in pixels of their picture, float32, between pixels: the pixel in row 0
and column 0 is the box (0, 0, 1, 1). So formats that count pixels from 1 and include the last one,
such as VOC's, are converted when they are read. Labels count from 0; no class is the background.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int32, Int64, UInt8

from jaxvision.data.detection_geometry import mirrored_names
from jaxvision.data.images import decode_image, read_image
from jaxvision.data.run_lengths import RunLength, decode
from jaxvision.errors import UserError


@dataclass(frozen=True, eq=False)
class Objects:
    """The `m` objects of one picture. `difficult` ones (VOC's) neither count nor count against.

    `area`, in pixels, is what COCO's files say of each: mostly its segmentation's. COCO's scores
    call an object small or large by it, and measure by it how far off a keypoint is.
    """

    boxes: Float32[np.ndarray, "m 4"]
    labels: Int32[np.ndarray, "m"]
    difficult: Bool[np.ndarray, "m"]
    area: Float64[np.ndarray, "m"] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(
        cls,
        boxes: Iterable[Sequence[float]],
        labels: Iterable[int],
        difficult: Iterable[bool] | None = None,
    ) -> "Objects":
        """Makes the arrays, also of no objects at all.

        >>> len(Objects.of([], [])), Objects.of([(0.0, 0.0, 2.0, 1.0)], [3]).difficult.tolist()
        (0, [False])
        """
        boxes = np.array(list(boxes), np.float32).reshape(-1, 4)
        labels = np.array(list(labels), np.int32)
        if difficult is None:
            return cls(boxes, labels, np.zeros(len(boxes), bool))
        return cls(boxes, labels, np.array(list(difficult), bool))

    def __post_init__(self) -> None:
        lengths = {name: len(x) for name, x in vars(self).items() if x is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected as many of each, got {lengths}")


@dataclass(frozen=True, eq=False)
class DetectionDataset:
    """Pictures with objects, and where they came from.

    `images` are one array where all have one size and fit in memory, else files: paths, or the
    bytes of small files. `names` are what an error calls them. `image_ids` are the data set's own
    numbers, which results for COCO refer to. `masks`, where the data set has them, are for each
    picture either an instance map, whose pixels hold j + 1 where they belong to object j and 0
    elsewhere (a uint8 [h, w] array, or a PNG's bytes), or one run length an object. `keypoints`,
    where it has them, are those of each picture's objects (see `keypoints`), by `keypoint_names`.
    """

    images: UInt8[np.ndarray, "n h w 3"] | tuple[Path | bytes, ...]
    names: tuple[str, ...]
    image_ids: Int64[np.ndarray, "n"]
    objects: tuple[Objects, ...]
    class_names: tuple[str, ...]
    name: str
    split: str
    source: str
    masks: UInt8[np.ndarray, "n h w"] | tuple[bytes | tuple[RunLength, ...], ...] | None = None
    keypoints: tuple[Float32[np.ndarray, "_ _ 3"], ...] | None = None
    keypoint_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lengths = {"images": len(self.images), "names": len(self.names)}
        lengths |= {"image_ids": len(self.image_ids), "objects": len(self.objects)}
        if self.masks is not None:
            lengths["masks"] = len(self.masks)
        if self.keypoints is not None:
            lengths["keypoints"] = len(self.keypoints)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected as many of each, got {lengths}")

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture number `index`; a broken file raises `UserError` with its name."""
        entry = self.images[index]
        if isinstance(entry, np.ndarray):
            return entry
        if isinstance(entry, bytes):
            return decode_image(entry, name=self.names[index])
        return read_image(entry)

    def example(
        self, index: int, *, masks: bool = False, keypoints: bool = False
    ) -> dict[str, Any]:
        """The example number `index`, as transforms take it, in arrays that may be written to.

        `image` uint8 [h, w, 3], `boxes` float32 [m, 4], `labels` int32 [m], `difficult` bool [m],
        `image_id`, with `masks` `masks` bool [m, h, w], and with `keypoints` `keypoints` float32
        [m, p, 3] and `keypoint_mirror` int32 [p], which are in each one's place in a mirror image.
        """
        image, objects = self.image(index), self.objects[index]
        example = {
            "image": image.copy(),
            "boxes": objects.boxes.copy(),
            "labels": objects.labels.copy(),
            "difficult": objects.difficult.copy(),
            "image_id": int(self.image_ids[index]),
        }
        if masks:
            example["masks"] = self._masks(index, image.shape[:2])
        if keypoints:
            if self.keypoints is None:
                raise UserError(f"{self.name} has no keypoints: expected a data set with keypoints")
            example["keypoints"] = self.keypoints[index].copy()
            example["keypoint_mirror"] = np.array(mirrored_names(self.keypoint_names), np.int32)
        return example

    def subset(self, indices: Int[np.ndarray, "k"]) -> "DetectionDataset":
        """The examples at `indices`, in that order: for a quick run, or one class only."""
        chosen = {
            field: _chosen(getattr(self, field), indices)
            for field in ("images", "names", "image_ids", "objects", "masks", "keypoints")
        }
        return dataclasses.replace(self, **chosen)

    def _masks(self, index: int, size: tuple[int, int]) -> Bool[np.ndarray, "m h w"]:
        if self.masks is None:
            raise UserError(f"{self.name} has no masks: expected a data set with masks")
        entry, count = self.masks[index], len(self.objects[index])
        if isinstance(entry, tuple):
            masks = _from_run_lengths(entry, size)
        else:
            if isinstance(entry, bytes):
                name = f"the masks of {self.names[index]}"
                entry = decode_image(entry, channels=1, name=name)[..., 0]
            masks = entry == np.arange(1, count + 1)[:, None, None]
        if masks.shape != (count, *size):
            raise UserError(
                f"{self.names[index]}: expected {count} masks of {size[0]} x {size[1]} pixels (h x "
                f"w), got {len(masks)} of {masks.shape[1]} x {masks.shape[2]}"
            )
        return masks


def _chosen(values: Any, indices: np.ndarray) -> Any:
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[indices]
    return tuple(values[i] for i in indices)


def _from_run_lengths(
    entry: Sequence[RunLength], size: tuple[int, int]
) -> Bool[np.ndarray, "m h w"]:
    if not entry:
        return np.zeros((0, *size), bool)
    return np.stack([decode(each) for each in entry])
