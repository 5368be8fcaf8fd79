"""Pascal VOC: one XML file a picture, in the folders of the VOC devkit.

    VOC2007/Annotations/000005.xml      VOC2007/JPEGImages/000005.jpg
    VOC2007/ImageSets/Main/train.txt    val.txt, trainval.txt, test.txt: a name a line
    VOC2007/ImageSets/Segmentation/     the same for pictures with masks, which are in
    VOC2007/SegmentationObject/000032.png   (pixel j + 1 for object j of the XML; 255: undecided)

VOC counts pixels from 1 and includes the last one: xmin 1, xmax 1 is a box one pixel wide. So here
x1 = xmin - 1 and x2 = xmax, and the devkit's IoU, with its "+ 1", is the plain IoU of these boxes.
"""

import io
import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvision.data.detection import DetectionDataset
from jaxvision.data.formats.annotated import (
    AnnotatedObject,
    AnnotatedPicture,
    Announce,
    Size,
    announce_splits,
    check_sizes,
    read_class_names,
    read_lines,
    read_text,
    to_dataset,
)
from jaxvision.data.images import check_header
from jaxvision.errors import UserError

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
SPLITS = ("train", "val", "trainval", "test")
NAMES_FILE = "classes.txt"


def load_voc_folder(
    folder: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] = SPLITS,
    segmentation: bool = False,
    check: bool = True,
    name: str = "voc_xml",
    source: str | None = None,
    announce: Announce = print,
) -> dict[str, DetectionDataset]:
    """Reads a folder such as VOCdevkit/VOC2007 where it is: one data set a split that it lists.

    Of `splits` those are read for which ImageSets/Main has a list, or with `segmentation` those of
    ImageSets/Segmentation, which have masks. `class_names` gives the order of the classes, and a
    name that is not among them raises `UserError`; without it the classes are those of classes.txt
    in the folder, one a line, or else the names in the XML files, sorted. `check` compares each
    picture's header with its XML; without it only that the file is there is checked.

    A name of digits, such as 000005 or 2007_000027, becomes the picture's id (5, 2007000027); else
    pictures are numbered from 1, in the order of their names. XML with a DOCTYPE is refused, for it
    may be an attack.

    >>> splits = load_voc_folder("VOCdevkit/VOC2007", class_names=CLASS_NAMES)  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    lists = list_splits(folder, splits, segmentation=segmentation)
    stems = sorted({stem for listed in lists.values() for stem in listed})
    trees = {stem: read_annotation(folder / "Annotations" / f"{stem}.xml") for stem in stems}
    if class_names is None:
        class_names = _own_names(folder, trees)
    pictures = annotated_pictures(folder, trees, class_names, segmentation=segmentation)
    if check:
        sizes = [(each.image, each.size, each.name) for each in pictures.values()]
        check_sizes(sizes, f"checking {name}'s pictures")
    datasets = {
        split: to_dataset(
            [pictures[stem] for stem in listed],
            class_names=tuple(class_names),
            name=name,
            split=split,
            source=source or f"read where they are, in {folder}",
            announce=announce,
        )
        for split, listed in lists.items()
    }
    announce_splits(datasets, announce)
    return datasets


def list_splits(
    folder: Path, splits: Sequence[str] = SPLITS, *, segmentation: bool = False
) -> dict[str, list[str]]:
    """The names of the pictures of each split that ImageSets lists, in its order."""
    lists = folder / "ImageSets" / ("Segmentation" if segmentation else "Main")
    found = {}
    for split in splits:
        path = lists / f"{split}.txt"
        if path.is_file():
            # The lists of one class have a second column, which says whether it is in the picture.
            found[split] = [line.split()[0] for line in read_lines(path, "names of pictures")]
            _check_stems(path, found[split])
    if not found:
        names = ", ".join(f"{split}.txt" for split in splits)
        raise UserError(
            f"{lists}: expected at least one of {names}, which list the pictures of a split, got "
            "none: give a folder such as VOCdevkit/VOC2007"
        )
    return found


def annotated_pictures(
    folder: Path,
    trees: Mapping[str, "tuple[str, Size, list[NamedBox]]"],
    class_names: Sequence[str],
    *,
    segmentation: bool = False,
) -> dict[str, AnnotatedPicture]:
    """The pictures of these annotations, by name; one that is not there raises `UserError`."""
    labels = {name: label for label, name in enumerate(class_names)}
    ids = image_ids(list(trees))
    present = _listing(folder / "JPEGImages")
    pictures = {}
    for stem, (file_name, size, found) in trees.items():
        path = folder / "Annotations" / f"{stem}.xml"
        if file_name not in present:
            file_name = f"{stem}.jpg"  # other tools write the path or name that it had elsewhere
        if file_name not in present:
            raise UserError(
                f"{path}: expected its picture {folder / 'JPEGImages' / file_name}, but there is "
                "no such file: put it there, or take it out of ImageSets"
            )
        objects = []
        for number, each in enumerate(found, start=1):
            if each.name not in labels:
                raise UserError(
                    f"{path}, object {number}: expected one of the classes "
                    f"{', '.join(class_names)}, got {each.name!r}: correct or remove it"
                )
            where = f"{path}, object {number} ({each.name})"
            label = labels[each.name]
            objects.append(AnnotatedObject(each.box, label, where, difficult=each.difficult))
        image = folder / "JPEGImages" / file_name
        instances = None
        if segmentation:
            instances = instance_map(folder / "SegmentationObject" / f"{stem}.png", size)
        pictures[stem] = AnnotatedPicture(
            image, str(path), ids[stem], size, tuple(objects), instances
        )
    return pictures


def read_devkit(
    folder: Path, class_names: Sequence[str], splits: Sequence[str]
) -> list[tuple[AnnotatedPicture, tuple[str, ...]]]:
    """Every picture that a list names, sorted, with its lists, such as Main/train; with its masks.

    Headers of all pictures are compared with the annotations.
    """
    lists = {f"Main/{split}": stems for split, stems in list_splits(folder, splits).items()}
    segmented = list_splits(folder, splits, segmentation=True)
    lists |= {f"Segmentation/{split}": stems for split, stems in segmented.items()}
    with_masks = {stem for stems in segmented.values() for stem in stems}
    listing: dict[str, list[str]] = {}
    for name, stems in lists.items():
        for stem in stems:
            listing.setdefault(stem, []).append(name)
    pictures = {}
    for segmentation in (False, True):
        stems = [stem for stem in listing if (stem in with_masks) == segmentation]
        trees = {stem: read_annotation(folder / "Annotations" / f"{stem}.xml") for stem in stems}
        pictures |= annotated_pictures(folder, trees, class_names, segmentation=segmentation)
    sizes = [(each.image, each.size, each.name) for each in pictures.values()]
    check_sizes(sizes, f"checking {folder.name}'s pictures")
    return [(pictures[stem], tuple(listing[stem])) for stem in sorted(listing)]


class NamedBox:
    """An <object>: its class's name, its box between pixels, and whether it is difficult."""

    __slots__ = ("box", "difficult", "name")

    def __init__(self, name: str, box: tuple[float, float, float, float], difficult: bool):
        self.name, self.box, self.difficult = name, box, difficult


def read_annotation(path: Path) -> tuple[str, Size, list[NamedBox]]:
    """The picture's file name, its (height, width), and its objects, from one XML file."""
    text = read_text(path, "a VOC annotation")
    # It may declare entities, nested so that a few lines become gigabytes. VOC's files have none.
    if "<!DOCTYPE" in text:
        raise UserError(f"{path}: refused: expected XML without a DOCTYPE: remove it")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"{path}: expected XML, got a file that is malformed: {error}") from error
    size = root.find("size")
    if size is None:
        raise UserError(
            f"{path}: expected <size> with <width> and <height>, got none: add the picture's size"
        )
    height, width = (_number(size, side, path) for side in ("height", "width"))
    if not (height >= 1 and width >= 1 and height % 1 == width % 1 == 0):
        raise UserError(
            f"{path}: expected a <size> of whole pixels, got width {width:g} and height {height:g}"
            ": put the picture's size there"
        )
    found = [
        _read_object(element, path, number)
        for number, element in enumerate(root.iterfind("object"), start=1)
    ]
    file_name = (root.findtext("filename") or "").strip()
    return file_name, (int(height), int(width)), found


def image_ids(stems: Sequence[str]) -> dict[str, int]:
    """The digits of each name, where all are of digits and differ; else 1, 2, ... as sorted.

    >>> image_ids(["000005", "2007_000027"]), image_ids(["b", "a"])
    ({'000005': 5, '2007_000027': 2007000027}, {'a': 1, 'b': 2})
    """
    if all(re.fullmatch(r"[0-9]+(_[0-9]+)*", stem) and len(stem) <= 18 for stem in stems):
        ids = {stem: int(stem.replace("_", "")) for stem in stems}
        if len(set(ids.values())) == len(stems):
            return ids
    return {stem: number for number, stem in enumerate(sorted(stems), start=1)}


def instance_map(path: Path, size: Size) -> bytes:
    """SegmentationObject's picture as a grey PNG: its palette would be read as colours."""
    from PIL import Image

    check_header(path)
    with Image.open(path) as picture:
        if picture.mode not in ("P", "L"):
            raise UserError(f"{path}: expected numbers of objects (a palette), got {picture.mode}")
        numbers = np.array(picture)
    if numbers.shape != size:
        raise UserError(
            f"{path}: expected a mask of {size[0]} x {size[1]} pixels (h x w), as its picture, got "
            f"{numbers.shape[0]} x {numbers.shape[1]}"
        )
    grey = io.BytesIO()
    Image.fromarray(numbers).save(grey, "PNG")
    return grey.getvalue()


def _read_object(element: ET.Element, path: Path, number: int) -> NamedBox:
    where = f"{path}, object {number}"
    name = (element.findtext("name") or "").strip()
    bounds = element.find("bndbox")  # that of the object itself, not those of its <part>s
    if not name or bounds is None:
        raise UserError(f"{where}: expected <name> and <bndbox>, got {'<name>' if name else ''}")
    xmin, ymin, xmax, ymax = (
        _number(bounds, side, where) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if xmin > xmax or ymin > ymax:
        raise UserError(
            f"{where}: expected xmin <= xmax and ymin <= ymax, got x from {xmin:g} to {xmax:g}, "
            f"y from {ymin:g} to {ymax:g}: correct or remove it"
        )
    difficult = _number(element, "difficult", where) if element.find("difficult") is not None else 0
    return NamedBox(name, (xmin - 1, ymin - 1, xmax, ymax), bool(difficult))


def _number(element: ET.Element, tag: str, where: str | Path) -> float:
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        got = "none" if text is None else repr(text)
        raise UserError(f"{where}: expected a number in <{element.tag}><{tag}>, got {got}")
    return value


def _own_names(
    folder: Path, trees: Mapping[str, tuple[str, Size, list[NamedBox]]]
) -> Sequence[str]:
    path = folder / NAMES_FILE
    if path.is_file():
        return read_class_names(path)
    return sorted({each.name for _, _, found in trees.values() for each in found})


def _listing(folder: Path) -> set[str]:
    """The names in a folder: one look, where a look for each of thousands of files takes long."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder of pictures, got: {error.strerror}"
        ) from error


def _check_stems(path: Path, stems: Sequence[str]) -> None:
    seen = set()
    for stem in stems:
        if stem in seen or set(stem) & set("/\\\0"):
            what = "twice" if stem in seen else "as a name"
            raise UserError(f"{path}: expected names of pictures, once each, got {stem!r} {what}")
        seen.add(stem)
