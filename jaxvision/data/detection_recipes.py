"""Where each detection data set comes from, by name: local files, a download, or prepared earlier.

An unpacked folder that the user gives is read where it is, because a copy would cost the disk once
more. Official archives, given or downloaded, are checked, unpacked and prepared once. COCO's
pictures, which don't fit in memory, stay files.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.data.archives import extract
from jaxvision.data.detection import DetectionDataset
from jaxvision.data.detection_archives import (
    COCO_ARCHIVES,
    PENN_FUDAN_ARCHIVE,
    VOC_ARCHIVES,
    Listed,
    Source,
    data_folder,
    prepared_once,
)
from jaxvision.data.download import download as fetch
from jaxvision.data.formats import penn_fudan, voc
from jaxvision.data.formats.annotated import (
    AnnotatedPicture,
    Announce,
    announce_splits,
    to_dataset,
)
from jaxvision.data.formats.coco import load_coco, load_coco_folder
from jaxvision.data.formats.yolo_txt import load_yolo_folder
from jaxvision.data.prepared import damaged
from jaxvision.data.recipes import source_sentence
from jaxvision.errors import UserError

Splits = dict[str, DetectionDataset]
WITH_MASKS: dict[str, dict[str, Any]] = {
    "coco": {"masks": True},
    **{name: {"segmentation": True} for name in ("voc2007", "voc2012", "voc0712")},
}
"""What `load_detection` must be told so that objects have their masks, where that is an option."""
VOC_SPLITS = {"2007": voc.SPLITS, "2012": ("train", "val", "trainval")}


# ------------------------------------------------------------------------------------- Pascal VOC
def _voc(
    year: str, *, source: Source, data_dir: Source, announce: Announce, segmentation: bool = False
) -> Splits:
    """One year, with the splits train, val and trainval, and of 2007 test."""
    name = f"voc{year}"
    place = None if source is None else _devkit(Path(source).expanduser(), year)
    if place is not None:
        return voc.load_voc_folder(
            place,
            class_names=voc.CLASS_NAMES,
            splits=VOC_SPLITS[year],
            segmentation=segmentation,
            check=False,
            name=name,
            announce=announce,
        )

    def make(**options: Any) -> Any:
        from jaxvision.data.builders.voc import VOC

        return VOC(config=year, **options)

    def read(folders: Sequence[Path]) -> Listed:
        listed: list[tuple[AnnotatedPicture, tuple[str, ...]]] = []
        for folder in folders:
            place = _devkit(folder, year)
            if place is None:
                raise UserError(f"{folder}: expected VOCdevkit/VOC{year} in the archive, got none")
            listed += voc.read_devkit(place, voc.CLASS_NAMES, VOC_SPLITS[year])
        return listed

    archives = VOC_ARCHIVES[year]
    what = f"{', '.join(each.file for each in archives)} or the unpacked VOCdevkit/VOC{year}"
    builder = prepared_once(name, make, archives, read, what, source, data_dir, announce)
    kind = "Segmentation" if segmentation else "Main"
    lists = {split: f"{kind}/{split}" for split in VOC_SPLITS[year]}
    return _from_builder(builder, lists, name, voc.CLASS_NAMES, announce, masks=segmentation)


def _voc0712(
    *, source: Source, data_dir: Source, announce: Announce, segmentation: bool = False
) -> Splits:
    """train: trainval of 2007 and then of 2012; test: that of 2007."""
    options = {"source": source, "data_dir": data_dir, "announce": announce}
    years = [_voc(year, **options, segmentation=segmentation) for year in VOC_ARCHIVES]
    if "test" not in years[0]:
        raise UserError(
            "voc0712: expected the test split of VOC2007 as well, got none: unpack "
            f"{VOC_ARCHIVES['2007'][1].file} beside it"
        )
    splits = {
        "train": _joined([each["trainval"] for each in years], "voc0712", "train"),
        "test": _joined([years[0]["test"]], "voc0712", "test"),
    }
    announce_splits(splits, announce)
    return splits


def _devkit(folder: Path, year: str) -> Path | None:
    places = (folder, folder / f"VOC{year}", folder / "VOCdevkit" / f"VOC{year}")
    if re.fullmatch(r"VOC[0-9]{4}", name := folder.resolve().name) and name != f"VOC{year}":
        places = places[1:]  # it is that of another year
    return next((place for place in places if (place / "Annotations").is_dir()), None)


def _joined(parts: Sequence[DetectionDataset], name: str, split: str) -> DetectionDataset:
    def all_of(field: str) -> tuple[Any, ...]:
        return tuple(each for part in parts for each in getattr(part, field))

    masks = None if any(part.masks is None for part in parts) else all_of("masks")
    return DetectionDataset(
        images=all_of("images"),
        names=all_of("names"),
        image_ids=np.concatenate([part.image_ids for part in parts]),
        objects=all_of("objects"),
        class_names=parts[0].class_names,
        name=name,
        split=split,
        source="; ".join(part.source for part in parts),
        masks=masks,
    )


# ------------------------------------------------------------------------------------- Penn-Fudan
def _penn_fudan(*, source: Source, data_dir: Source, announce: Announce) -> Splits:
    name = "penn_fudan"
    folder = None if source is None else Path(source).expanduser()
    place = None if folder is None else penn_fudan.unpacked_folder(folder)
    if place is not None:
        listed = _penn_fudan_pictures([place])
        lists = {
            split: [picture for picture, those in listed if split in those]
            for split in penn_fudan.SPLITS
        }
        sentence = f"read where they are, in {place}"
        return _datasets(lists, name, penn_fudan.CLASS_NAMES, sentence, announce)

    def make(**options: Any) -> Any:
        from jaxvision.data.builders.penn_fudan import PennFudan

        return PennFudan(config="full", **options)

    what = f"{PENN_FUDAN_ARCHIVE.file} or the unpacked {penn_fudan.FOLDER}"
    archives = (PENN_FUDAN_ARCHIVE,)
    builder = prepared_once(
        name, make, archives, _penn_fudan_pictures, what, source, data_dir, announce
    )
    lists = {split: split for split in penn_fudan.SPLITS}
    return _from_builder(builder, lists, name, penn_fudan.CLASS_NAMES, announce, masks=True)


def _penn_fudan_pictures(folders: Sequence[Path]) -> Listed:
    (folder,) = folders
    place = penn_fudan.unpacked_folder(folder)
    if place is None:
        raise UserError(f"{folder}: expected {penn_fudan.FOLDER}/PNGImages in it, got none")
    pairs = [
        (split, *pair) for split, those in penn_fudan.list_pictures(place).items() for pair in those
    ]
    return [
        (penn_fudan.read_picture(picture, mask, number), (split,))
        for number, (split, picture, mask) in enumerate(pairs, start=1)
    ]


# ------------------------------------------------------------------------------ COCO and one's own
def _coco(
    *,
    source: Source,
    data_dir: Source,
    announce: Announce,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    masks: bool = False,
    keypoints: bool = False,
    download: str | None = None,
) -> Splits:
    """COCO 2017, train and val; `classes`, `limit`, `masks` and `keypoints` are `load_coco`'s."""
    kind = "person_keypoints" if keypoints else "instances"
    if (source is None) == (download is None):
        raise UserError(
            "coco: expected a folder with annotations/instances_val2017.json and val2017 (and train"
            "2017) as the source, or download='val2017' (1.1 GB), got "
            f"{'neither' if source is None else 'both'}: give one of them"
        )
    if download is not None:
        if download != "val2017":
            raise UserError(f"coco: expected download='val2017', got {download!r}")
        roots = _downloaded_coco(data_dir, announce)
    else:
        roots = (Path(source).expanduser(),)
    splits: Splits = {}
    for split in ("train", "val"):
        annotations = _first(roots, f"annotations/{kind}_{split}2017.json")
        pictures = _first(roots, f"{split}2017", f"images/{split}2017")
        if annotations is None or pictures is None:
            if split == "val" or download is None:
                what = "annotations" if annotations is None else "pictures"
                announce(f"coco: no split {split}, because there are no {what} of it")
            continue
        splits[split] = load_coco(
            annotations,
            pictures,
            classes=classes,
            limit=limit,
            masks=masks,
            keypoints=keypoints,
            check=False,
            leave_out_empty=True,
            name="coco",
            split=split,
            announce=announce,
        )
    if not splits:
        raise UserError(
            f"{roots[0]}: expected annotations/instances_val2017.json and the folder val2017 (and "
            "the same of train2017), got neither split: unpack COCO's archives there"
        )
    announce_splits(splits, announce)
    return splits


def _downloaded_coco(data_dir: Source, announce: Announce) -> tuple[Path, ...]:
    root = data_folder(data_dir)
    folders = []
    for archive in COCO_ARCHIVES.values():
        folder = root / "coco" / archive.file.removesuffix(".zip")
        if not folder.is_dir():
            announce(f"coco: downloading and unpacking {archive.file} (once)")
            path = fetch(
                archive.urls, root / "downloads" / "coco" / archive.file, sha256=archive.sha256
            )
            extract(path, folder)
        folders.append(folder)
    return tuple(folders)


def _first(roots: Sequence[Path], *names: str) -> Path | None:
    paths = [root / name for root in roots for name in names]
    return next((path for path in paths if path.exists()), None)


def _own(
    name: str,
    load: Callable[..., Splits],
    *,
    source: Source,
    data_dir: Source,
    announce: Announce,
    **options: Any,
) -> Splits:
    """A folder of the user's own, read where it is; `options` are those of its reader."""
    if source is None:
        raise UserError(f"{name} is a folder of your own: give it as the source")
    return load(source, name=name, announce=announce, **options)


# ---------------------------------------------------------------------------------------- for all
def _from_builder(
    builder: Any,
    lists: Mapping[str, str],
    name: str,
    class_names: tuple[str, ...],
    announce: Announce,
    *,
    masks: bool,
) -> Splits:
    from jaxvision.data.builders.annotated_pictures import read_annotated

    found = read_annotated(builder)
    missing = sorted(set(lists.values()) - set(found))
    if missing:
        raise damaged(builder.data_path, f"it has no pictures of {', '.join(missing)}")
    pictures = {split: found[listed] for split, listed in lists.items()}
    if not masks:
        pictures = {
            split: [dataclasses.replace(picture, instances=None) for picture in those]
            for split, those in pictures.items()
        }
    return _datasets(pictures, name, class_names, source_sentence(builder), announce)


def _datasets(
    pictures: Mapping[str, Sequence[AnnotatedPicture]],
    name: str,
    class_names: tuple[str, ...],
    source: str,
    announce: Announce,
) -> Splits:
    splits = {
        split: to_dataset(
            those,
            class_names=class_names,
            name=name,
            split=split,
            source=source,
            announce=announce,
        )
        for split, those in pictures.items()
    }
    announce_splits(splits, announce)
    return splits


DETECTION_RECIPES: dict[str, Callable[..., Splits]] = {
    "voc2007": partial(_voc, "2007"),
    "voc2012": partial(_voc, "2012"),
    "voc0712": _voc0712,
    "penn_fudan": _penn_fudan,
    "coco": _coco,
    "coco_json": partial(_own, "coco_json", load_coco_folder),
    "voc_xml": partial(_own, "voc_xml", voc.load_voc_folder),
    "yolo_txt": partial(_own, "yolo_txt", load_yolo_folder),
}
"""By name, each called with `source`, `data_dir`, `announce` and options of its own."""
