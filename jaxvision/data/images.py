"""Pictures: read from files and bytes, and turned from Pillow's form into arrays and back.

Pillow reads JPEG, not OpenCV, although their pixels are bit-equal and OpenCV is a tenth quicker:
OpenCV fills what is missing of a truncated file with grey and says nothing.
"""

import functools
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxvision.errors import UserError

Picture = Any
"""A uint8 [h, w, c] array with 1 or 3 channels, or a Pillow picture of mode L or RGB."""

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
QUARTER_TURNS = (5, 6, 7, 8)  # its values where height and width change places


def read_image(path: str | os.PathLike[str], *, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Reads a picture file, upright (EXIF), as uint8 RGB (`channels=3`) or grey (`channels=1`).

    Every format that Pillow reads. Palettes and CMYK are converted, 16-bit grey is scaled to 8
    bits, transparency is put on white, and an animation gives its first frame. A missing, truncated
    or other file raises `UserError`.

    >>> read_image("garment.jpg", channels=1).shape  # doctest: +SKIP
    (480, 640, 1)
    """
    return to_array(open_picture(path, channels=channels))


def decode_image(
    data: bytes, *, channels: int = 3, name: str = "picture"
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes the bytes of a picture file as `read_image` does; errors call it `name`."""
    return to_array(open_picture(data, channels=channels, name=name))


def open_picture(
    source: str | os.PathLike[str] | bytes, *, channels: int = 3, name: str | None = None
) -> Picture:
    """As `read_image`, of a path or of a file's bytes, but gives a Pillow picture (L or RGB).

    `name` is what an error calls it, by default the path.
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"expected channels to be 1 or 3, got {channels}")
    mode = "L" if channels == 1 else "RGB"
    name = name or _name(source)
    try:
        with Image.open(_file(source)) as file:
            picture = _to_eight_bits(file, name)
            # Only where it turns something, because Pillow copies the picture even if not.
            if picture.getexif().get(ORIENTATION, 1) != 1:
                picture = ImageOps.exif_transpose(picture)
            picture = _on_white(picture)
            return picture if picture.mode == mode else picture.convert(mode)
    except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise _broken(error, name) from error


def check_header(source: str | os.PathLike[str] | bytes, *, name: str | None = None) -> None:
    """Raises `UserError` unless this begins as a picture does; nothing is decoded."""
    from PIL import Image

    name = name or _name(source)
    try:
        with Image.open(_file(source)):
            pass
    except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise _broken(error, name) from error


def picture_size(
    source: str | os.PathLike[str] | bytes, *, name: str | None = None
) -> tuple[int, int]:
    """(height, width) of the upright picture, from the file's header; nothing is decoded."""
    from PIL import Image

    name = name or _name(source)
    try:
        with Image.open(_file(source)) as file:
            width, height = file.size
            # The base class's: a PNG's own decodes the picture, to look for EXIF behind its pixels.
            turned = Image.Image.getexif(file).get(ORIENTATION, 1) in QUARTER_TURNS
    except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise _broken(error, name) from error
    return (width, height) if turned else (height, width)


def to_picture(image: UInt8[np.ndarray, "h w c"]) -> Picture:
    """The Pillow picture (L or RGB) of an array with 1 or 3 channels."""
    from PIL import Image

    if image.shape[-1] not in (1, 3):
        raise ValueError(f"expected a picture with 1 or 3 channels, got shape {image.shape}")
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_array(picture: Picture) -> UInt8[np.ndarray, "h w c"]:
    """The array of a Pillow picture of mode L or RGB; an array is given back as it is."""
    if isinstance(picture, np.ndarray):
        return picture
    return np.array(picture).reshape(picture.height, picture.width, len(picture.getbands()))


def arrays_too(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function of a Pillow picture take an array as well, and then return one."""

    @functools.wraps(function)
    def either(picture: Picture, *arguments: Any, **options: Any) -> Picture:
        if isinstance(picture, np.ndarray):
            return to_array(function(to_picture(picture), *arguments, **options))
        return function(picture, *arguments, **options)

    return either


# Pillow's decoders raise all of these on damaged data.
_DECODING_ERRORS = (
    *(OSError, SyntaxError, EOFError, struct.error, zlib.error),
    *(LookupError, ValueError, OverflowError, MemoryError),
)


def _broken(error: Exception, name: str) -> Exception:
    from PIL import Image

    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):
        return UserError(f"{name}: expected a picture here, but there is no such file")
    if isinstance(error, Image.UnidentifiedImageError):
        return UserError(
            f"{name}: expected a picture (JPEG, PNG, ...), got a file of another kind: "
            "convert it or leave it out"
        )
    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"{name}: expected a picture of sane size: {error}: shrink it")
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{name}: expected a complete picture, got: {reason}: replace it")


def _file(source: str | os.PathLike[str] | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source)


def _name(source: str | os.PathLike[str] | bytes) -> str:
    return "picture" if isinstance(source, bytes) else os.fspath(source)


def _to_eight_bits(picture: Picture, name: str) -> Picture:
    """Pillow clips integer pixels above 255 when it converts them; they must be scaled."""
    from PIL import Image

    if picture.mode == "F":
        raise UserError(f"{name}: expected 8- or 16-bit pixels, got floats: convert it to PNG")
    if not picture.mode.startswith("I"):
        picture.load()
        return picture
    values = np.asarray(picture)
    if values.max(initial=0) > 255 or picture.mode != "I":
        values = np.clip(values, 0, 65535) >> 8
    scaled = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    scaled.info.update(picture.info)
    return scaled


def _on_white(picture: Picture) -> Picture:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture)
