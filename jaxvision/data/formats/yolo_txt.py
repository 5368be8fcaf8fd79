"""YOLO's text files: one a picture, one object a line, as "class cx cy width height".

The four numbers are fractions of the picture's width and height. Each of these is understood:

    root/images/train/a.jpg   root/labels/train/a.txt     and val, test
    root/train/images/a.jpg   root/train/labels/a.txt     and val (or valid), test
    root/images/a.jpg         root/labels/a.txt           some of them become val

with the classes' names in data.yaml (`names`, a list or a map from 0 on) or, one a line, in
classes.txt, in the root or among the labels. A picture without a text file has no objects.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxvision.data.detection import DetectionDataset
from jaxvision.data.files import in_threads, relative_name
from jaxvision.data.formats.annotated import (
    AnnotatedObject,
    AnnotatedPicture,
    Announce,
    Size,
    announce_splits,
    checked_names,
    listed,
    read_class_names,
    read_text,
    to_dataset,
)
from jaxvision.data.image_folder import SUFFIXES, VAL_FRACTION, in_validation
from jaxvision.data.images import picture_size
from jaxvision.errors import UserError

SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
YAML_FILES, NAMES_FILE = ("data.yaml", "data.yml", "dataset.yaml"), "classes.txt"


def load_yolo_folder(
    root: str | os.PathLike[str],
    *,
    val_fraction: float = VAL_FRACTION,
    name: str = "yolo_txt",
    source: str | None = None,
    announce: Announce = print,
) -> dict[str, DetectionDataset]:
    """Reads the folder where it is: one data set a split, pictures in the order of their paths.

    `val_fraction` is the share of pictures, by a hash of each one's path, that becomes val where
    the folder has no splits of its own. Pictures are numbered from 1, over all splits. No object is
    `difficult`, which the format can't say. A line that can't be right raises `UserError` with the
    file and its line, and so does a text file whose picture isn't there.

    >>> splits = load_yolo_folder("my_pictures")  # doctest: +SKIP
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder of pictures, but there is no such folder")
    class_names = read_names(root)
    given = _given_splits(root)
    files = {split: _pictures_and_labels(*folders) for split, folders in given.items()}
    if not files:
        files = _split_by_hash(root, val_fraction)
    splits, first = {}, 1
    for split, pairs in files.items():
        sizes = _sizes([path for path, _ in pairs], f"checking {name}'s {split} pictures")
        pictures = [
            AnnotatedPicture(path, str(path), number, size, tuple(_read_labels(labels, size)))
            for number, ((path, labels), size) in enumerate(zip(pairs, sizes, strict=True), first)
        ]
        first += len(pictures)
        splits[split] = to_dataset(
            pictures,
            class_names=class_names,
            name=name,
            split=split,
            source=source or f"read where they are, in {root}",
            announce=announce,
        )
    announce_splits(splits, announce)
    return splits


def read_names(root: Path) -> tuple[str, ...]:
    """The names of the classes, from data.yaml or classes.txt."""
    for file in YAML_FILES:
        if (root / file).is_file():
            return _names_in_yaml(root / file)
    places = [root / NAMES_FILE, root / "labels" / NAMES_FILE]
    places += [root / "labels" / "train" / NAMES_FILE, root / "train" / "labels" / NAMES_FILE]
    for path in places:
        if path.is_file():
            return read_class_names(path)
    raise UserError(
        f"{root}: expected the names of the classes in {YAML_FILES[0]} (names: [...]) or in "
        f"{NAMES_FILE} (one a line), got neither: add one of them"
    )


def _names_in_yaml(path: Path) -> tuple[str, ...]:
    import yaml

    try:
        content = yaml.safe_load(read_text(path, "a list of names"))
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: expected YAML, got a file that is malformed: {reason}") from error
    names: Any = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise UserError(
            f"{path}: expected names: [first, second, ...] or a map from 0, 1, ... to names, got "
            f"{str(names)[:80]}"
        )
    if content.get("nc", len(names)) != len(names):
        raise UserError(f"{path}: expected nc ({content['nc']}) names, got {len(names)}")
    return checked_names(tuple(str(each) for each in names), path)


def _given_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of pictures and of labels of each split that the folder has."""
    splits = {}
    for split, spellings in SPLITS.items():
        for spelling in spellings:
            for images, labels in (
                (root / "images" / spelling, root / "labels" / spelling),
                (root / spelling / "images", root / spelling / "labels"),
            ):
                if images.is_dir() and split not in splits:
                    splits[split] = images, labels
    if splits and "train" not in splits:
        raise UserError(
            f"{root}: expected a split train, got {', '.join(splits)}: add or rename it"
        )
    return splits


def _split_by_hash(root: Path, fraction: float) -> dict[str, list[tuple[Path, Path]]]:
    if not 0 < fraction < 1:
        raise UserError(f"expected a val_fraction between 0 and 1, got {fraction}")
    images = root / "images"
    if not images.is_dir():
        raise UserError(
            f"{root}: expected images/train and labels/train, train/images and train/labels, or "
            "images and labels, got none of them: name the folders so"
        )
    pairs = _pictures_and_labels(images, root / "labels")
    held = [in_validation(relative_name(path, root), fraction) for path, _ in pairs]
    sides = {
        "train": [pair for pair, is_held in zip(pairs, held, strict=True) if not is_held],
        "val": [pair for pair, is_held in zip(pairs, held, strict=True) if is_held],
    }
    for split, those in sides.items():
        if not those:
            raise UserError(
                f"{images}: expected some of {len(pairs)} pictures to become {split}, got none: "
                "add pictures, change val_fraction, or make folders train and val"
            )
    return sides


def _pictures_and_labels(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Each picture with the text file that it has, or would have if it had objects."""
    pictures = sorted(
        (path for path in _files(images) if path.suffix.lower() in SUFFIXES),
        key=lambda path: relative_name(path, images),
    )
    if not pictures:
        raise UserError(f"{images}: expected pictures, got none")
    pairs = [(path, (labels / path.relative_to(images)).with_suffix(".txt")) for path in pictures]
    known = {text for _, text in pairs}
    texts = [path for path in _files(labels) if path.suffix == ".txt" and path.name != NAMES_FILE]
    if orphans := sorted(str(path) for path in texts if path not in known):
        raise UserError(
            f"{labels}: expected a picture in {images} for each text file, but {len(orphans):,} "
            f"have none: {listed(orphans)}: add the pictures or remove the files"
        )
    if not texts:
        raise UserError(
            f"{labels}: expected a text file for at least one of {len(pairs):,} pictures, got none"
        )
    return pairs


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if not each.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _sizes(paths: list[Path], title: str) -> list[Size]:
    def size_or_fault(index: int) -> Size | str:
        try:
            return picture_size(paths[index])
        except UserError as error:
            return str(error)

    sizes = in_threads(size_or_fault, range(len(paths)), title)
    if faults := [each for each in sizes if isinstance(each, str)]:
        raise UserError(listed(faults))
    return sizes


def _read_labels(path: Path, size: Size) -> Iterator[AnnotatedObject]:
    if not path.exists():
        return
    height, width = size
    lines = read_text(path, "lines of 'class cx cy width height'").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where, columns = f"{path}, line {number}", line.split()
        if len(columns) != 5:
            raise UserError(
                f"{where}: expected five columns, class cx cy width height, got {len(columns)}: "
                "correct it; polygons and rotated boxes are not read"
            )
        try:
            label, (cx, cy, w, h) = int(columns[0]), map(float, columns[1:])
        except ValueError:
            raise UserError(
                f"{where}: expected a whole number and four numbers, got {line.strip()[:80]!r}"
            ) from None
        if not all(0 <= value <= 1 for value in (cx, cy, w, h)):
            raise UserError(
                f"{where}: expected fractions of the picture, from 0 to 1, got "
                f"{line.strip()[:80]!r}: divide pixels by the picture's width and height"
            )
        left, top = (cx - w / 2) * width, (cy - h / 2) * height
        yield AnnotatedObject((left, top, left + w * width, top + h * height), label, where)
