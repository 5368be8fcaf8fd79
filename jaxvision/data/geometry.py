"""Resizing, cropping, padding and flipping of one picture, equal to torchvision's on the host.

Each function takes a uint8 [h, w, c] array or a Pillow picture and returns the same kind. Sizes are
(height, width) in pixels. Pillow's filters shrink with antialiasing, as torchvision's do on Pillow
pictures (equal to the last bit) and, by default, on tensors (to a grey level for bilinear).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxvision.data.images import Picture, arrays_too, to_array, to_picture

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
Size = int | tuple[int, int]


def resized_size(
    height: int, width: int, size: Size, max_size: int | None = None
) -> tuple[int, int]:
    """The size that `resize` gives: `size` itself, or, for a number, the shorter side gets it.

    The longer side is `int(size * long / short)`, rounded down as torchvision does; where it would
    be above `max_size`, it is `max_size` and the shorter side is `int(max_size * short / long)` of
    the sides so far.

    >>> resized_size(375, 500, 256), resized_size(500, 375, 256, max_size=300)
    ((256, 341), (300, 225))
    """
    if isinstance(size, tuple):
        if max_size is not None:
            raise ValueError("expected max_size only where size is one number, the shorter side")
        return size
    short, long = sorted((height, width))
    new_short, new_long = size, int(size * long / short)
    if max_size is not None:
        if max_size <= size:
            raise ValueError(f"expected max_size to be above size, {size}, got {max_size}")
        if new_long > max_size:
            new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_long, new_short) if width <= height else (new_short, new_long)


def resize(
    picture: Picture,
    size: Size,
    *,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
    max_size: int | None = None,
) -> Picture:
    """Resizes to (height, width), or so that the shorter side is `size`: see `resized_size`.

    `antialias=False` samples without a low-pass filter, as torchvision does on tensors where it is
    told so (on Pillow pictures it never does): to a grey level for bilinear, the only
    interpolation besides nearest that has it here. OpenCV does that, Pillow the rest.

    >>> resize(np.zeros((375, 500, 3), np.uint8), 256).shape
    (256, 341, 3)
    """
    is_array = isinstance(picture, np.ndarray)
    now = picture.shape[:2] if is_array else (picture.height, picture.width)
    target = resized_size(*now, size, max_size)
    if target == now:
        return picture
    if antialias or interpolation == "nearest":
        return _filtered(picture, target, interpolation)
    if interpolation != "bilinear":
        raise ValueError(
            f"expected bilinear or nearest interpolation without antialias, got {interpolation}"
        )
    import cv2

    image = cv2.resize(to_array(picture), target[::-1], interpolation=cv2.INTER_LINEAR)
    image = image.reshape(*target, -1)
    return image if is_array else to_picture(image)


@arrays_too
def _filtered(picture: Picture, size: tuple[int, int], interpolation: Interpolation) -> Picture:
    from PIL import Image

    return picture.resize(size[::-1], Image.Resampling[interpolation.upper()])


@arrays_too
def crop(picture: Picture, top: int, left: int, height: int, width: int) -> Picture:
    """Cuts out a box; what lies outside of the picture is black."""
    return picture.crop((left, top, left + width, top + height))


@arrays_too
def center_crop(picture: Picture, size: Size) -> Picture:
    """Cuts out the middle `size`; a side that is too small is first padded with black.

    An odd rest is rounded half to even, an odd padding is larger at the right and the bottom: both
    as torchvision does.

    >>> center_crop(np.full((1, 2, 1), 9, np.uint8), (2, 2))[..., 0].tolist()
    [[9, 9], [0, 0]]
    """
    height, width = (size, size) if isinstance(size, int) else size
    missing_h, missing_w = max(height - picture.height, 0), max(width - picture.width, 0)
    if missing_h or missing_w:
        left, top = missing_w // 2, missing_h // 2
        picture = pad(picture, (left, top, missing_w - left, missing_h - top))
    top = round((picture.height - height) / 2)
    left = round((picture.width - width) / 2)
    return crop(picture, top, left, height, width)


@arrays_too
def pad(
    picture: Picture,
    padding: int | Sequence[int],
    *,
    fill: int | Sequence[int] = 0,
    mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant",
) -> Picture:
    """Pads each side by `padding` pixels: one number, (left and right, top and bottom), or
    (left, top, right, bottom), as torchvision's.

    `fill` is the grey level, or one a channel, of the mode "constant".

    >>> pad(np.ones((1, 1, 1), np.uint8), (1, 0))[..., 0].tolist()
    [[0, 1, 0]]
    """
    from PIL import ImageOps

    sides = (padding,) if isinstance(padding, int) else tuple(padding)
    if len(sides) not in (1, 2, 4) or min(sides) < 0:
        raise ValueError(f"expected 1, 2 or 4 paddings of at least 0, got {sides}")
    left, top, right, bottom = (sides * (4 // len(sides)))[:4]
    if mode == "constant":
        return ImageOps.expand(picture, (left, top, right, bottom), fill_of(picture, fill))
    image = np.pad(to_array(picture), ((top, bottom), (left, right), (0, 0)), mode)
    return to_picture(image)


@arrays_too
def horizontal_flip(picture: Picture) -> Picture:
    """Mirrors left to right."""
    from PIL import Image

    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@arrays_too
def vertical_flip(picture: Picture) -> Picture:
    """Mirrors top to bottom."""
    from PIL import Image

    return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def fill_of(picture: Picture, fill: int | float | Sequence[int | float]) -> int | tuple[int, ...]:
    """The colour of a Pillow picture's mode that one grey level, or one a channel, stands for."""
    bands = len(picture.getbands())
    levels = (fill,) * bands if isinstance(fill, int | float) else tuple(fill)
    if len(levels) != bands:
        raise ValueError(f"expected a fill of 1 or {bands} levels, got {levels}")
    return tuple(int(level) for level in levels) if bands > 1 else int(levels[0])
