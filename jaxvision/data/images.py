"""Reads a user's own picture into the array that a model is given."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxvision.errors import UserError


def read_image(path: str | os.PathLike[str], *, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Reads a picture file, upright (EXIF), as uint8 RGB (`channels=3`) or grey (`channels=1`).

    Every format that Pillow reads. Palettes and CMYK are converted, 16-bit grey is scaled to 8
    bits, transparency is put on white, and an animation gives its first frame. A missing, truncated
    or other file raises `UserError`.

    >>> read_image("garment.jpg", channels=1).shape  # doctest: +SKIP
    (480, 640, 1)
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"expected channels to be 1 or 3, got {channels}")
    path = Path(path)
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(_to_eight_bits(file, path))
            picture = _on_white(picture).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a picture here, but there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{path}: expected a picture (JPEG, PNG, ...), got a file of another kind: "
            "convert it or leave it out"
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: expected a picture of sane size: {error}: shrink it") from error
    # Pillow's decoders raise all of these on damaged data.
    except (OSError, SyntaxError, EOFError, struct.error, zlib.error, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: expected a complete picture, got: {reason}") from error
    return np.array(picture).reshape(picture.height, picture.width, channels)


def _to_eight_bits(picture: Any, path: Path) -> Any:
    """Pillow clips integer pixels above 255 when it converts them; they must be scaled."""
    from PIL import Image

    if picture.mode == "F":
        raise UserError(f"{path}: expected 8- or 16-bit pixels, got floats: convert it to PNG")
    if not picture.mode.startswith("I"):
        picture.load()
        return picture
    values = np.asarray(picture)
    if values.max(initial=0) > 255 or picture.mode != "I":
        values = np.clip(values, 0, 65535) >> 8
    scaled = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    scaled.info.update(picture.info)
    return scaled


def _on_white(picture: Any) -> Any:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture)
