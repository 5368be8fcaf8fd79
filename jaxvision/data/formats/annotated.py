"""Pictures as their annotations describe them, and what becomes of boxes that can't be right.

Every format comes through `to_dataset`, so that all of them treat a bad box in one way:

- not a number, infinite, or x2 < x1 or y2 < y1: `UserError`, because nobody knows what was meant;
- partly outside of the picture: clipped to it, and announced with how many there are;
- empty, or wholly outside: `UserError`, or with `leave_out_empty` left out and announced.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64

from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.files import in_threads
from jaxvision.data.images import picture_size
from jaxvision.data.run_lengths import RunLength
from jaxvision.errors import UserError, describe_os_error

Announce = Callable[[str], object]
Size = tuple[int, int]
"""(height, width) in pixels."""

ROUNDING = 0.01  # pixels by which a box may be outside because its file rounds its numbers
SHOWN = 5


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One object; `where` is what an error calls it: its file and its number or line there."""

    box: tuple[float, float, float, float]
    label: int
    where: str
    difficult: bool = False
    mask: RunLength | None = None
    keypoints: tuple[tuple[float, float, float], ...] = ()
    area: float | None = None


@dataclass(frozen=True, slots=True)
class AnnotatedPicture:
    """One picture, its objects, and perhaps an instance map of them (the bytes of a PNG)."""

    image: Path | bytes
    name: str
    image_id: int
    size: Size
    objects: tuple[AnnotatedObject, ...]
    instances: bytes | None = None


def to_dataset(
    pictures: Sequence[AnnotatedPicture],
    *,
    class_names: tuple[str, ...],
    name: str,
    split: str,
    source: str,
    announce: Announce,
    leave_out_empty: bool = False,
    keypoint_names: tuple[str, ...] = (),
) -> DetectionDataset:
    """The data set of these pictures, in their order, each box held to the rules above.

    It has masks if every object has one, or every picture a map of them, areas if every object has
    one, and keypoints if there are names of them.
    """
    objects = [each for picture in pictures for each in picture.objects]
    _check_labels(objects, class_names)
    with_areas = bool(objects) and all(each.area is not None for each in objects)
    boxes, kept = _held_to_picture(pictures, objects, f"{name}, {split}", announce, leave_out_empty)
    starts = np.cumsum([0, *(len(picture.objects) for picture in pictures)])
    parts = [slice(a, b) for a, b in itertools.pairwise(starts)]
    left = [
        [each for each, stays in zip(picture.objects, kept[part], strict=True) if stays]
        for picture, part in zip(pictures, parts, strict=True)
    ]
    return DetectionDataset(
        images=tuple(picture.image for picture in pictures),
        names=tuple(picture.name for picture in pictures),
        image_ids=np.array([picture.image_id for picture in pictures], np.int64),
        objects=tuple(
            Objects(
                boxes[part][kept[part]],
                np.array([each.label for each in those], np.int32),
                np.array([each.difficult for each in those], bool),
                np.array([each.area for each in those], np.float64) if with_areas else None,
            )
            for part, those in zip(parts, left, strict=True)
        ),
        class_names=class_names,
        name=name,
        split=split,
        source=source,
        masks=_masks(pictures, left, f"{name}, {split}", announce),
        keypoints=_keypoints(left, len(keypoint_names)) if keypoint_names else None,
        keypoint_names=keypoint_names,
    )


def announce_splits(splits: dict[str, DetectionDataset], announce: Announce) -> None:
    """Says in one line how much each split holds, and where it is from."""
    first = next(iter(splits.values()))
    counts = ", ".join(f"{len(dataset):,} {split}" for split, dataset in splits.items())
    objects = sum(len(each) for dataset in splits.values() for each in dataset.objects)
    announce(
        f"{first.name}: {counts} pictures with {objects:,} objects of {len(first.class_names)} "
        f"classes: {first.source}"
    )


def check_sizes(pictures: Sequence[tuple[Path | bytes, Size, str]], title: str) -> None:
    """Reads the header of each (picture, size, name of the annotation that gives this size).

    One that is missing, is no picture, or has another size raises `UserError` with both names.
    """

    def fault(index: int) -> str | None:
        image, size, where = pictures[index]
        try:
            found = picture_size(image) if isinstance(image, Path) else picture_size(image, name="")
        except UserError as error:
            return f"{where}: {error}"
        if found != size:
            called = f"{image} has" if isinstance(image, Path) else "the picture has"
            return f"{where}: expected a picture of {_pixels(size)}, but {called} {_pixels(found)}"
        return None

    faults = [each for each in in_threads(fault, range(len(pictures)), title) if each is not None]
    if faults:
        raise UserError(listed(faults) + ": correct the annotations, or put the pictures there")


def listed(faults: Sequence[str]) -> str:
    """The first few of them in one line, and how many more there are."""
    more = len(faults) - SHOWN
    return "; ".join(faults[:SHOWN]) + (f"; and {more:,} more" if more > 0 else "")


def read_text(path: Path, what: str) -> str:
    """The text of a UTF-8 file, or a `UserError` that says `what` was expected there."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected {what} in UTF-8, got other bytes ({error})") from error
    except OSError as error:
        reason = describe_os_error(error)
        raise UserError(f"{path}: expected {what}, but it can't be read: {reason}") from error


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 file that hold anything, without the blanks around them."""
    return [line.strip() for line in read_text(path, what).splitlines() if line.strip()]


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names of the classes, one a line, each once."""
    return checked_names(tuple(read_lines(path, "a class's name a line")), path)


def checked_names(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The same names; none at all, or one twice, raises `UserError`."""
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: expected a name for each class, once, got {', '.join(names)}")
    return names


def _pixels(size: Size) -> str:
    return f"{size[0]} x {size[1]} pixels (h x w)"


def _check_labels(objects: Sequence[AnnotatedObject], class_names: tuple[str, ...]) -> None:
    for each in objects:
        if not 0 <= each.label < len(class_names):
            raise UserError(
                f"{each.where}: expected a class from 0 to {len(class_names) - 1}, got "
                f"{each.label}: correct it, or add the class"
            )


def _held_to_picture(
    pictures: Sequence[AnnotatedPicture],
    objects: Sequence[AnnotatedObject],
    where: str,
    announce: Announce,
    leave_out_empty: bool,
) -> tuple[Float32[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
    """The clipped boxes of all objects, and which of them stay."""
    given: Float64[np.ndarray, "n 4"]
    given = np.array([each.box for each in objects], np.float64).reshape(-1, 4)
    counts = [len(picture.objects) for picture in pictures]
    sizes = np.array([picture.size for picture in pictures], np.float64).reshape(-1, 2)
    limits = np.repeat(sizes[:, [1, 0, 1, 0]], counts, axis=0)

    def refuse(which: Bool[np.ndarray, "n"], expected: str) -> None:
        for i in np.flatnonzero(which)[:1]:
            got = ", ".join(f"{x:g}" for x in given[i])
            picture = f"{limits[i, 1]:g} x {limits[i, 0]:g}"
            raise UserError(
                f"{objects[i].where}: expected {expected}, got the box ({got}) as x1, y1, x2, y2 "
                f"in a picture of {picture} pixels (h x w): correct or remove it"
            )

    refuse(~np.isfinite(given).all(axis=1), "finite numbers")
    refuse((given[:, 2:] < given[:, :2]).any(axis=1), "x1 <= x2 and y1 <= y2")
    boxes = np.clip(given, 0, limits).astype(np.float32)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not leave_out_empty:
        refuse(~kept, "a box of which at least some is in its picture")
    moved = np.abs(boxes - given).max(axis=1, initial=0) > ROUNDING
    for which, done in (
        (kept & moved, "clipped to their pictures, from which they stuck out"),
        (~kept, "left out, because they are empty or outside of their pictures"),
    ):
        if which.any():
            first = objects[int(which.argmax())].where
            announce(
                f"{where}: {which.sum():,} of {len(objects):,} boxes were {done} (first: {first})"
            )
    return boxes, kept


def _masks(
    pictures: Sequence[AnnotatedPicture],
    left: Sequence[Sequence[AnnotatedObject]],
    where: str,
    announce: Announce,
) -> tuple[Any, ...] | None:
    maps = [picture.instances for picture in pictures]
    if maps and all(each is not None for each in maps):
        return tuple(maps)
    having = [each.mask is not None for each in _all(left)]
    if having and all(having):
        return tuple(tuple(each.mask for each in those) for those in left)
    if any(having):
        announce(
            f"{where}: no masks, because {having.count(False):,} of {len(having):,} objects "
            "have none"
        )
    return None


def _keypoints(
    left: Sequence[Sequence[AnnotatedObject]], count: int
) -> tuple[Float32[np.ndarray, "_ _ 3"], ...]:
    none = ((0.0, 0.0, 0.0),) * count
    return tuple(
        np.array([each.keypoints or none for each in those], np.float32).reshape(-1, count, 3)
        for those in left
    )


def _all(left: Sequence[Sequence[AnnotatedObject]]) -> Iterator[AnnotatedObject]:
    for those in left:
        yield from those
