"""A picture as a model takes it, and the way back to the picture's own pixels.

A checkpoint's `meta["preprocessing"]` says how, by its "kind":

- letterbox: as large as fits into "size" (h, w), on a canvas of the grey level "fill", in its
  middle or ("center" false) at the top left
- shortest_side: the shorter side becomes "shortest" pixels, unless the longer one would be more
  than "longest", rounded as torchvision's detection models do; sides are then padded at the right
  and the bottom to multiples of "multiple", so that there are few shapes
- shorter_side: the same, rounded as torchvision's resize does
- resize: to "size" (h, w), whatever the aspect was, with Pillow's filter "interpolation", or
  ("antialias" false) as torchvision's detection models do
- crop, or none: torchvision's for classification, see `classification_eval`

Without any it is a resize to the model's input, bilinear with antialiasing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from jaxvision.data import Placement, classification_eval, letterbox, read_image
from jaxvision.data import resize as resize_picture
from jaxvision.data.detection_geometry import place_image, shortest_side_placement
from jaxvision.data.geometry import resized_size
from jaxvision.data.images import to_picture
from jaxvision.data.transforms import IMAGENET_MEAN_COLOR
from jaxvision.errors import UserError
from jaxvision.types import Array

Picture = Array | str | Path
"""uint8 [h, w, c] or [h, w], or the path of a picture file."""

KINDS = ("letterbox", "shortest_side", "shorter_side", "resize", "crop")


@dataclass(frozen=True)
class Prepared:
    """The picture as the model takes it, and where on that the picture lies.

    None where a part was cut away: then there is no way back, and classification needs none.
    `proposals`, in pixels of `image`, are for models that are given some.
    """

    image: UInt8[np.ndarray, "h w c"]
    placement: Placement | None
    proposals: Float32[np.ndarray, "n 4"] | None = None
    letterboxed: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(h, w), from the top left, that the model is to look at, as it was in training: of a
        letterbox all of the canvas, whose grey it knows; otherwise the picture and no padding."""
        if self.placement is None or self.letterboxed:
            return self.image.shape[:2]
        return self.placement.resized


def read_picture(picture: Picture, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Returns a file's pixels, upright, or an array's, with `channels` (1 or 3) channels."""
    if isinstance(picture, str | Path):
        return read_image(picture, channels=channels)
    picture = np.asarray(picture)
    if picture.dtype != np.uint8:
        raise TypeError(f"expected a uint8 picture [h, w, c], got {picture.dtype}")
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3) or 0 in picture.shape:
        raise ValueError(
            f"expected a picture [h, w, 1 or 3], got shape {list(picture.shape)}; give several "
            f"pictures as a list"
        )
    if picture.shape[-1] == channels:
        return picture
    if channels == 3:
        return np.repeat(picture, 3, axis=-1)
    return np.asarray(to_picture(picture).convert("L"))[:, :, None]


def prepare(
    picture: UInt8[np.ndarray, "h w c"],
    preprocessing: Mapping[str, Any] | None,
    input_size: tuple[int, int],
) -> Prepared:
    """Returns the picture as `preprocessing` wants it, by default resized to `input_size`."""
    options = dict(preprocessing or {"kind": "resize", "size": input_size})
    kind = options.pop("kind", "crop")
    if kind == "crop":
        return Prepared(classification_eval(**options)(picture), None)
    if kind == "letterbox":
        return _letterboxed(picture, **options)
    if kind in ("shortest_side", "shorter_side"):
        return _by_shortest_side(picture, kind == "shorter_side", **options)
    if kind == "resize":
        return _resized(picture, **options)
    raise UserError(
        f"expected a preprocessing of the kind {', '.join(KINDS)} in the checkpoint's meta, got "
        f"{kind!r}"
    )


def _letterboxed(
    picture: np.ndarray,
    size: Sequence[int],
    fill: int = 114,
    center: bool = True,
    antialias: bool = False,
) -> Prepared:
    transform = letterbox(tuple(size), fill=fill, center=center, antialias=antialias)
    placement = transform.placement(*picture.shape[:2])
    image = place_image(picture, placement, fill=fill, antialias=antialias)
    return Prepared(image, placement, letterboxed=True)


def _by_shortest_side(
    picture: np.ndarray,
    as_resize: bool,
    shortest: int,
    longest: int | None = None,
    multiple: int = 1,
    antialias: bool = False,
) -> Prepared:
    height, width = picture.shape[:2]
    if as_resize:
        h, w = (max(1, side) for side in resized_size(height, width, shortest, longest))
        placement = Placement((height, width), (h, w), (h, w))
    else:
        placement = shortest_side_placement(height, width, shortest, longest)
    h, w = (-(-side // multiple) * multiple for side in placement.resized)
    placement = replace(placement, canvas=(h, w))
    image = place_image(picture, placement, fill=IMAGENET_MEAN_COLOR, antialias=antialias)
    return Prepared(image, placement)


def _resized(
    picture: np.ndarray,
    size: Sequence[int],
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Prepared:
    size = tuple(size)
    # Pillow's antialiased bilinear is torchvision's default when it shrinks a picture.
    image = resize_picture(picture, size, interpolation=interpolation, antialias=antialias)
    return Prepared(image, Placement(picture.shape[:2], size, size))
