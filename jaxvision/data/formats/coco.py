"""COCO's instances: one JSON file a split, with its pictures in a folder.

`images` (id, file_name, height, width), `categories` (id, name), and `annotations` (image_id,
category_id, bbox as x, y, width, height, area, iscrowd, a segmentation: polygons or run lengths,
and keypoints: x, y and visibility of each that its category names).
Category ids may have gaps; labels are 0, 1, ... in the order of the ids, which are kept.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxvision.data.detection import DetectionDataset
from jaxvision.data.formats.annotated import (
    AnnotatedObject,
    AnnotatedPicture,
    Announce,
    Size,
    announce_splits,
    check_sizes,
    listed,
    read_text,
    to_dataset,
)
from jaxvision.data.formats.coco_keypoints import keypoint_names_of, keypoints_of
from jaxvision.data.run_lengths import is_finite, run_length
from jaxvision.errors import UserError

SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}


@dataclass(frozen=True, eq=False)
class CocoDataset(DetectionDataset):
    """A `DetectionDataset` that keeps COCO's number of each class, which results refer to."""

    category_ids: tuple[int, ...] = ()


def load_coco(
    annotations: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | Sequence[Path],
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    masks: bool = True,
    keypoints: bool = False,
    check: bool = True,
    leave_out_empty: bool = False,
    name: str = "coco_json",
    split: str = "train",
    source: str | None = None,
    announce: Announce = print,
) -> CocoDataset:
    """Reads one split: the JSON file `annotations` and the folder `pictures`, in the JSON's order.

    Of several folders that may have the pictures, the first that has the first picture is taken.
    `classes` keeps only those and the pictures that have any of them; `limit` the first of the
    pictures. `iscrowd` objects are `difficult`. `masks` reads the segmentations, which takes a
    minute or two for the whole of COCO; `keypoints` those, which all categories that have any must
    name alike. `check` compares each picture's header with its size in the JSON; without it only
    that the file is there is checked. `leave_out_empty` leaves out boxes of no width or height, of
    which COCO's own files have two, where else they raise `UserError`.

    An unknown picture or category, a picture that is missing or of another size, a negative width,
    a mask of another size, and JSON that lacks something raise `UserError` with the file's name.

    >>> people = load_coco("instances_val2017.json", "val2017", classes=("person",),
    ...                    limit=500)  # doctest: +SKIP
    """
    path = Path(annotations).expanduser()
    content = _read_json(path)
    categories = _by_id(content, "categories", path)
    names = {number: str(_field(each, "name", path)) for number, each in categories.items()}
    chosen = sorted(_chosen_categories(names, classes, path))
    labels = {number: label for label, number in enumerate(chosen)}
    images = _by_id(content, "images", path)
    folder = _folder_of(pictures, images, path)
    of_picture: dict[int, list[dict[str, Any]]] = {number: [] for number in images}
    for each in _list(content, "annotations", path):
        number, category = _field(each, "image_id", path), _field(each, "category_id", path)
        if not (_is_id(number) and number in images):
            raise _unknown(path, each, "image_id", number, "images")
        if not (_is_id(category) and category in names):
            raise _unknown(path, each, "category_id", category, "categories")
        if category in labels:
            of_picture[number].append(each)
    ids = [number for number in images if classes is None or of_picture[number]][:limit]
    _check_files(path, folder, [images[number] for number in ids])
    parts = keypoint_names_of(categories, chosen, path) if keypoints else ()
    annotated = [
        _picture(images[number], of_picture[number], path, folder, labels, masks, len(parts))
        for number in ids
    ]
    if check:
        sizes = [(each.image, each.size, f"{path}, image {each.image_id}") for each in annotated]
        check_sizes(sizes, f"checking {name}'s pictures")
    dataset = to_dataset(
        annotated,
        class_names=tuple(names[number] for number in chosen),
        name=name,
        split=split,
        source=source or f"read where they are, {path} and {folder}",
        announce=announce,
        leave_out_empty=leave_out_empty,
        keypoint_names=parts,
    )
    fields = {each.name: getattr(dataset, each.name) for each in dataclasses.fields(dataset)}
    return CocoDataset(**fields, category_ids=tuple(chosen))


def load_coco_folder(
    root: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    masks: bool = True,
    keypoints: bool = False,
    check: bool = True,
    leave_out_empty: bool = False,
    name: str = "coco_json",
    announce: Announce = print,
) -> dict[str, CocoDataset]:
    """Reads the splits of a folder of the user's own: train, and val (or valid) and test.

    The JSON file of train is the first of (for keypoints) annotations/person_keypoints_train*.json,
    annotations/instances_train*.json, annotations/train.json, train.json and
    train/_annotations.coco.json; its pictures are in train*, images/train*, images or the root,
    whichever has the first of them. The options are those of `load_coco`, which reads a split of
    another layout.

    >>> splits = load_coco_folder("my_pictures")  # doctest: +SKIP
    """
    root = Path(root).expanduser()
    options = {"classes": classes, "limit": limit, "masks": masks, "check": check}
    options |= {
        "keypoints": keypoints,
        "leave_out_empty": leave_out_empty,
        "name": name,
        "announce": announce,
    }
    splits = {}
    for split, spellings in SPLITS.items():
        for spelling in spellings:
            path = _annotations_of(root, spelling, keypoints)
            if path is not None:
                places = _places(root, spelling, path)
                splits[split] = load_coco(path, places, split=split, **options)
                break
    if not splits:
        raise UserError(
            f"{root}: expected annotations/instances_train.json, annotations/train.json, train.json"
            " or train/_annotations.coco.json (and the same of val and test), got none: name them "
            "so"
        )
    first, *others = splits.values()
    for each in others:
        if (each.class_names, each.category_ids) != (first.class_names, first.category_ids):
            raise UserError(
                f"{root}: expected the categories of {first.split} in {each.split}, got "
                f"{', '.join(each.class_names)}: give all splits the same ids and names"
            )
    announce_splits(splits, announce)
    return splits


def _annotations_of(root: Path, split: str, keypoints: bool) -> Path | None:
    found: list[Path] = []
    for kind in ("person_keypoints", "instances") if keypoints else ("instances",):
        files = sorted((root / "annotations").glob(f"{kind}_{split}*.json"))
        if len(files) > 1:
            names = ", ".join(each.name for each in files)
            raise UserError(
                f"{root}: expected one file of {split} annotations, got {names}: keep one"
            )
        found += files
    found += [root / "annotations" / f"{split}.json", root / f"{split}.json"]
    found += [root / split / "_annotations.coco.json"]
    return next((path for path in found if path.is_file()), None)


def _places(root: Path, split: str, annotations: Path) -> list[Path]:
    stem = annotations.stem.removeprefix("instances_").removeprefix("person_keypoints_")
    places = [root / stem, root / split, root / "images" / stem, root / "images" / split]
    return [place for place in (*places, root / "images", root) if place.is_dir()]


def _folder_of(
    pictures: str | os.PathLike[str] | Sequence[Path], images: Mapping[int, Any], path: Path
) -> Path:
    if isinstance(pictures, str | os.PathLike):
        return Path(pictures).expanduser()
    names = [_file_name(image, path) for image in images.values()][:1]
    having = (place for place in pictures if all((place / name).is_file() for name in names))
    return next(having, pictures[0])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, "COCO's JSON"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: expected JSON, got a file that is malformed: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with images, annotations and categories")
    return content


def _list(content: Mapping[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not (isinstance(entries, list) and all(isinstance(each, dict) for each in entries)):
        raise UserError(f"{path}: expected a list of objects as {key!r}, got none")
    return entries


def _field(entry: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in entry:
        raise UserError(f"{path}: expected {key!r} in each entry, got {str(entry)[:80]}")
    return entry[key]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _by_id(content: Mapping[str, Any], key: str, path: Path) -> dict[int, dict[str, Any]]:
    entries = {}
    for each in _list(content, key, path):
        number = _field(each, "id", path)
        if not _is_id(number) or number in entries:
            what = "twice" if _is_id(number) else "as one"
            raise UserError(
                f"{path}: expected whole numbers as ids of {key}, got {number!r} {what}"
            )
        entries[number] = each
    return entries


def _chosen_categories(
    names: Mapping[int, str], classes: Sequence[str] | None, path: Path
) -> list[int]:
    known = sorted(set(names.values()))
    if len(known) != len(names):
        raise UserError(f"{path}: expected each category's name once, got {', '.join(known)}")
    if unknown := sorted(set(classes or ()) - set(known)):
        raise UserError(f"{path}: expected classes among {', '.join(known)}, got {unknown[0]!r}")
    return [number for number, name in names.items() if classes is None or name in classes]


def _unknown(path: Path, entry: Mapping[str, Any], key: str, got: Any, known: str) -> UserError:
    return UserError(
        f"{path}, annotation {entry.get('id')}: expected the id of one of its {known} as {key}, "
        f"got {got!r}: add it to {known}, or remove the annotation"
    )


def _file_name(image: Mapping[str, Any], path: Path) -> str:
    name = _field(image, "file_name", path)
    if (
        not isinstance(name, str)
        or not name
        or PurePosixPath(name).is_absolute()
        or ".." in name.split("/")
        or "\0" in name
    ):
        raise UserError(f"{path}: expected a file_name below the folder of pictures, got {name!r}")
    return name


def _check_files(path: Path, folder: Path, images: Sequence[Mapping[str, Any]]) -> None:
    # One look at each folder: a look for each of a hundred thousand files takes long.
    names = [_file_name(image, path) for image in images]
    present = set()
    for place in sorted({PurePosixPath(name).parent.as_posix() for name in names}):
        if (folder / place).is_dir():
            present |= {(place, entry) for entry in os.listdir(folder / place)}
    missing = [
        name
        for name in names
        if (PurePosixPath(name).parent.as_posix(), PurePosixPath(name).name) not in present
    ]
    if missing:
        raise UserError(
            f"{path}: expected its {len(names):,} pictures in {folder}, but {len(missing):,} are "
            f"missing: {listed(missing)}: put them there, or give the folder that has them"
        )


def _picture(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    path: Path,
    folder: Path,
    labels: Mapping[int, int],
    masks: bool,
    num_keypoints: int,
) -> AnnotatedPicture:
    size = _field(image, "height", path), _field(image, "width", path)
    if not all(_is_id(side) and 0 < side < 2**31 for side in size):
        raise UserError(
            f"{path}, image {image['id']}: expected a height and a width of whole pixels, got "
            f"{size[0]!r} and {size[1]!r}: correct them"
        )
    objects = tuple(_object(each, path, size, labels, masks, num_keypoints) for each in annotations)
    file = folder / image["file_name"]
    return AnnotatedPicture(file, str(file), image["id"], size, objects)


def _object(
    entry: Mapping[str, Any],
    path: Path,
    size: Size,
    labels: Mapping[int, int],
    masks: bool,
    num_keypoints: int,
) -> AnnotatedObject:
    where = f"{path}, annotation {entry.get('id')}"
    box = _field(entry, "bbox", path)
    if not (isinstance(box, list) and len(box) == 4 and all(is_finite(x) for x in box)):
        raise UserError(f"{where}: expected a bbox of four finite numbers, got {str(box)[:80]}")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise UserError(
            f"{where}: expected a bbox [x, y, width, height] without negative width or height, got "
            f"{box}: correct or remove it"
        )
    area = entry.get("area")
    if area is not None and not (is_finite(area) and area >= 0):
        raise UserError(
            f"{where}: expected an area of at least 0 pixels, got {str(area)[:80]}: correct it"
        )
    mask = None
    if masks and entry.get("segmentation"):
        mask = run_length(entry["segmentation"], size, where)
    return AnnotatedObject(
        (float(x), float(y), float(x + width), float(y + height)),
        labels[entry["category_id"]],
        where,
        difficult=bool(entry.get("iscrowd", 0)),
        mask=mask,
        keypoints=keypoints_of(entry, num_keypoints, where),
        area=None if area is None else float(area),
    )
