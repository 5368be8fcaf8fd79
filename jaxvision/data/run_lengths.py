"""COCO's segmentations as run lengths, checked, and run lengths as masks.

pycocotools' C code trusts what it gets: run lengths of more pixels than the picture has make it
write past its memory, and a polygon a million pixels wide makes it fill gigabytes. So what comes
out of a file is checked here before it gets there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxvision.errors import UserError

RunLength = Mapping[str, Any]
"""COCO's compressed run-length encoding of one mask, as pycocotools has it: `size`, `counts`."""

FURTHEST = 2.0  # how far a polygon may be outside, in widths and heights of the picture


def run_length(segmentation: Any, size: tuple[int, int], where: str) -> RunLength:
    """The compressed run length of polygons, or of run lengths compressed or not.

    `size` is that of the picture, (h, w). What can't be a mask of it raises `UserError`, which
    begins with `where`.

    >>> run_length([[0, 0, 2, 0, 2, 1, 0, 1]], (2, 3), "annotation 1")  # doctest: +SKIP
    {'size': [2, 3], 'counts': b'01110'}
    """
    from pycocotools import mask

    height, width = size
    if isinstance(segmentation, list):
        _check_polygons(segmentation, size, where)
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, Mapping):
        raise UserError(f"{where}: expected polygons or run lengths, got {str(segmentation)[:80]}")
    if segmentation.get("size") != [height, width]:
        raise UserError(
            f"{where}: expected a mask of {height} x {width} pixels (h x w), as its picture, got "
            f"{segmentation.get('size')}"
        )
    counts = segmentation.get("counts")
    lengths = _lengths(counts, where)
    if sum(lengths) != height * width or min(lengths) < 0:
        raise UserError(
            f"{where}: expected run lengths of {height * width:,} pixels in all, as its picture, "
            f"got {sum(lengths):,}: correct or remove it"
        )
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    return mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)


def decode(encoded: RunLength) -> Bool[np.ndarray, "h w"]:
    """The mask of a compressed run length.

    pycocotools' own `decode` warns under NumPy 2, which a strict program takes for an error.

    >>> decode({"size": [2, 3], "counts": b"132"}).astype(int).tolist()
    [[0, 1, 0], [1, 1, 0]]
    """
    height, width = encoded["size"]
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    lengths = _lengths(text, "a run length")
    # By columns, and beginning with what is outside.
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height)
    return columns.T


def is_finite(value: Any) -> bool:
    """Whether something that JSON held is a number that a picture's coordinate may be."""
    # JSON in Python has NaN, infinities, and whole numbers too large for a float.
    return isinstance(value, int | float) and abs(value) < 1e12


def _check_polygons(polygons: Sequence[Any], size: tuple[int, int], where: str) -> None:
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(
                f"{where}: expected polygons of at least three points [x, y, x, y, ...], got "
                f"{str(polygon)[:80]}: correct or remove it"
            )
        for i, value in enumerate(polygon):
            side = size[1 - i % 2]
            if not (is_finite(value) and abs(value - side / 2) <= (FURTHEST + 0.5) * side):
                raise UserError(
                    f"{where}: expected a polygon in or near its picture of {size[0]} x {size[1]} "
                    f"pixels (h x w), got {value!r}: correct or remove it"
                )


def _lengths(counts: Any, where: str) -> list[int]:
    """The run lengths themselves: given, or from six bits a character as COCO packs them."""
    if isinstance(counts, list) and counts and all(type(each) is int for each in counts):
        return counts
    if not (isinstance(counts, str) and counts):
        raise UserError(f"{where}: expected run lengths as 'counts', got {str(counts)[:80]}")
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise UserError(f"{where}: expected packed run lengths, got {counts[:40]!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more of this number follows
            continue
        if bits & 16:
            value -= 1 << shift
        # From the fourth on, each is the difference from the one two before it.
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError(f"{where}: expected packed run lengths, got one that breaks off")
    return lengths
