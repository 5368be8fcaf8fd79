"""A folder of the user's own pictures, one folder a class, as torchvision's ImageFolder takes it.

    root/train/ants/1.jpg   root/val/ants/2.jpg     splits given: train, and val and/or test
    root/ants/1.jpg         root/bees/2.jpg         not given: some of the files become val

The folder is read where it is: a TFDS copy of it would cost the user's disk once more and hide it
when pictures are added. A split that is not given comes from a hash of each file's path below the
root, so a file is on the same side in every run and on every machine, whatever else is added.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxvision.data.files import Check, FileDataset, leave_out_broken, relative_name
from jaxvision.errors import UserError

# torchvision's, and so without .gif: the ants come with an "imageNotFound.gif".
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_FOLDERS |= {"test": "test"}
VAL_FRACTION = 0.2


def load_image_folder(
    root: str | os.PathLike[str],
    *,
    val_fraction: float = VAL_FRACTION,
    check: Check = "header",
    name: str = "image_folder",
    source: str | None = None,
    announce: Callable[[str], object] = print,
) -> dict[str, FileDataset]:
    """Reads the folder into one `FileDataset` a split: train first, then val and test.

    Classes are the folders' names, sorted, those of train. Pictures may lie in folders below a
    class. Other files are left alone. `val_fraction` is the share of files that
    becomes val where the root has no folder `train`. `check` is that of `leave_out_broken`.

    Raises `UserError` if the folder, a class or a split has no pictures, or if val has a class that
    train has not.

    >>> splits = load_image_folder("pictures", val_fraction=0.25)  # doctest: +SKIP
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder of pictures, but there is no such folder")
    if not 0 < val_fraction < 1:
        raise UserError(f"expected a val_fraction between 0 and 1, got {val_fraction}")
    folders = _given_splits(root)
    if folders:
        files = {split: _classes(folder, root) for split, folder in folders.items()}
    else:
        files = _split_by_hash(_classes(root, root), root, val_fraction)
    class_names = tuple(files["train"])
    _check_classes(root, class_names, files)
    splits = {
        split: _dataset(root, split, classes, class_names, name, source or f"pictures in {root}")
        for split, classes in files.items()
    }
    splits = {
        split: leave_out_broken(dataset, check, announce) for split, dataset in splits.items()
    }
    counts = ", ".join(f"{len(dataset):,} {split}" for split, dataset in splits.items())
    how = "as given" if folders else f"split by a hash of each path, {val_fraction:g} val"
    announce(f"{name}: {counts} pictures of {len(class_names)} classes in {root} ({how})")
    return splits


def load_class_folders(
    root: str | os.PathLike[str],
    *,
    split: str = "all",
    check: Check = "header",
    name: str = "image_folder",
    announce: Callable[[str], object] = print,
) -> FileDataset:
    """Reads a folder with a folder for each class, as ImageNet's validation set, into one data set.

    >>> pictures = load_class_folders("imagenet/val", split="val")  # doctest: +SKIP
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder of pictures, but there is no such folder")
    classes = _classes(root, root)
    dataset = _dataset(root, split, classes, tuple(classes), name, f"pictures in {root}")
    return leave_out_broken(dataset, check, announce)


def in_validation(relative_path: str, fraction: float) -> bool:
    """Whether a file belongs to the validation split: a pure function of its path.

    >>> [in_validation(f"ants/{i}.jpg", 0.2) for i in range(4)]
    [False, True, True, False]
    """
    digest = hashlib.sha256(relative_path.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _given_splits(root: Path) -> dict[str, Path]:
    """The folders of the splits, train first; empty where the root has none of its own."""
    if not (root / "train").is_dir():
        return {}
    found: dict[str, Path] = {}
    for folder, split in SPLIT_FOLDERS.items():
        if not (root / folder).is_dir():
            continue
        if split in found:
            raise UserError(
                f"{root}: expected one folder of validation pictures, got {found[split].name} and "
                f"{folder}: rename one of them"
            )
        found[split] = root / folder
    if len(found) == 1:
        raise UserError(
            f"{root}: expected a folder val or test beside train, got none: add one, or give the "
            "folder train itself and some of it becomes val"
        )
    return found


def _classes(folder: Path, root: Path) -> dict[str, list[Path]]:
    """The pictures of each class, both sorted; a class without any raises `UserError`."""
    subfolders = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name)
    )
    if not subfolders:
        raise UserError(
            f"{folder}: expected a folder of pictures for each class, got no folder: make one a "
            "class, or choose another folder"
        )
    classes = {}
    for name in subfolders:
        pictures = sorted(_pictures(folder / name), key=lambda path: relative_name(path, root))
        if not pictures:
            raise UserError(
                f"{folder / name}: expected pictures ({', '.join(sorted(SUFFIXES))}), got none: "
                "put some there or delete the folder"
            )
        classes[name] = pictures
    return classes


def _pictures(folder: Path) -> Iterator[Path]:
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not _is_hidden(name):
                yield Path(parent, name)


def _is_hidden(name: str) -> bool:
    # Also the second halves of files that macOS writes into archives.
    return name.startswith(".") or name == "__MACOSX"


def _split_by_hash(
    classes: Mapping[str, list[Path]], root: Path, fraction: float
) -> dict[str, dict[str, list[Path]]]:
    sides: dict[str, dict[str, list[Path]]] = {"train": {}, "val": {}}
    for name, paths in classes.items():
        held = {path: in_validation(relative_name(path, root), fraction) for path in paths}
        sides["train"][name] = [path for path in paths if not held[path]]
        sides["val"][name] = [path for path in paths if held[path]]
        if not sides["train"][name]:
            raise UserError(
                f"{root / name}: expected pictures for training, but all {len(paths)} became "
                "validation pictures: add some, or lower val_fraction"
            )
    return sides


def _check_classes(
    root: Path, class_names: tuple[str, ...], files: Mapping[str, Mapping[str, list[Path]]]
) -> None:
    for split, classes in files.items():
        if unknown := sorted(set(classes) - set(class_names)):
            raise UserError(
                f"{root}: expected the classes of train in {split}, got also {', '.join(unknown)}: "
                f"rename or remove, or add to train"
            )
        if not any(classes.values()):
            raise UserError(
                f"{root}: expected pictures in {split}, got none: add pictures or, where it is "
                "split by hash, raise val_fraction"
            )


def _dataset(
    root: Path,
    split: str,
    classes: Mapping[str, list[Path]],
    class_names: tuple[str, ...],
    name: str,
    source: str,
) -> FileDataset:
    paths = [path for class_name in classes for path in classes[class_name]]
    counts = [len(paths) for paths in classes.values()]
    indices = [class_names.index(class_name) for class_name in classes]
    return FileDataset(
        files=tuple(paths),
        names=tuple(str(path) for path in paths),
        labels=np.repeat(np.array(indices, np.int32), counts),
        class_names=class_names,
        name=name,
        split=split,
        source=source,
    )
