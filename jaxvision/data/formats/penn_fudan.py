"""Penn-Fudan pedestrians: pictures with a mask that numbers the pedestrians in it.

    PennFudanPed/PNGImages/FudanPed00001.png
    PennFudanPed/PedMasks/FudanPed00001_mask.png    0: background, else a pedestrian's number
    PennFudanPed/Annotation/FudanPed00001.txt       boxes of an earlier edition, not read

As in torchvision's tutorial, each number of the mask is one object and its box goes round its
pixels. That tutorial's boxes end at the last pixel; these end behind it, between pixels.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxvision.data.formats.annotated import (
    AnnotatedObject,
    AnnotatedPicture,
    check_sizes,
)
from jaxvision.data.images import check_header, picture_size
from jaxvision.errors import UserError

CLASS_NAMES = ("pedestrian",)
FOLDER = "PennFudanPed"
SPLITS = ("train", "test")
PICTURES, TEST_PICTURES = 170, 50


def unpacked_folder(folder: Path) -> Path | None:
    """`folder`, or the folder of the archive's name in it, whichever has the pictures; or None."""
    for place in (folder, folder / FOLDER):
        if (place / "PNGImages").is_dir():
            return place
    return None


def list_pictures(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """(picture, mask) by split: of the 170 sorted names the last 50 are test, the others train."""
    pictures = sorted((folder / "PNGImages").glob("*.png"))
    pairs = [(path, folder / "PedMasks" / f"{path.stem}_mask.png") for path in pictures]
    for path, mask in pairs:
        if not mask.is_file():
            raise UserError(f"{path}: expected its mask {mask}, but there is no such file")
    if len(pairs) != PICTURES:
        raise UserError(
            f"{folder / 'PNGImages'}: expected the {PICTURES} pictures of Penn-Fudan, got "
            f"{len(pairs)}: unpack the archive again"
        )
    return {"train": pairs[:-TEST_PICTURES], "test": pairs[-TEST_PICTURES:]}


def read_picture(path: Path, mask: Path, image_id: int) -> AnnotatedPicture:
    """One picture with the pedestrians of its mask, renumbered 1, 2, ... in the map it gives."""
    size = picture_size(path)
    check_sizes([(mask, size, str(path))], "")
    numbers = _read_numbers(mask)
    found = np.unique(numbers[numbers > 0])
    instances = np.searchsorted(found, numbers).astype(np.uint8) + (numbers > 0)
    objects = []
    for number in range(1, len(found) + 1):
        rows, columns = np.nonzero(instances == number)
        box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        where = f"{mask}, pedestrian {found[number - 1]}"
        objects.append(AnnotatedObject(tuple(map(float, box)), 0, where))
    return AnnotatedPicture(path, path.name, image_id, size, tuple(objects), _png(instances))


def _read_numbers(mask: Path) -> UInt8[np.ndarray, "h w"]:
    from PIL import Image

    check_header(mask)
    with Image.open(mask) as picture:
        if picture.mode not in ("L", "P"):
            raise UserError(f"{mask}: expected a mask of 8 bits a pixel, got {picture.mode}")
        return np.array(picture)


def _png(instances: UInt8[np.ndarray, "h w"]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(instances).save(file, "PNG")
    return file.getvalue()
