"""Writes any detection data set in the formats that other tools read: COCO, VOC and YOLO.

Each function writes one split into a folder, which may hold other splits already, in the layout
that `load_coco_folder`, `load_voc_folder` and `load_yolo_folder` read back. Picture files are
copied as they are; pictures in memory are written as PNG, so that no pixel changes.
"""

import io
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.formats.coco import CocoDataset
from jaxvision.data.images import picture_size, to_picture
from jaxvision.data.prepared import track
from jaxvision.errors import UserError, describe_os_error

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}


def write_coco_json(dataset: DetectionDataset, folder: str | os.PathLike[str]) -> Path:
    """Writes `folder`/annotations/instances_<split>.json and the pictures in `folder`/<split>.

    Ids of pictures stay; so do the categories' ids of a data set that came from COCO, and else they
    are label + 1. `difficult` becomes iscrowd, and masks become run lengths; keypoints are kept.
    Returns the JSON file.

    >>> write_coco_json(splits["train"], "exported")  # doctest: +SKIP
    """
    folder = _folder(folder)
    numbers = range(1, len(dataset.class_names) + 1)
    if isinstance(dataset, CocoDataset):
        numbers = dataset.category_ids
    images, annotations = [], []
    for index, name, (height, width) in _written(dataset, folder / dataset.split, digits=12):
        number = int(dataset.image_ids[index])
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        objects = dataset.objects[index]
        masks = _run_lengths(dataset, index)
        areas = _areas(objects, masks)
        for j, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[objects.labels[j]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": areas[j],
                    "iscrowd": int(objects.difficult[j]),
                    **({} if masks is None else {"segmentation": masks[j]["segmentation"]}),
                    **_keypoints(dataset, index, j),
                }
            )
    points = {} if dataset.keypoints is None else {"keypoints": list(dataset.keypoint_names)}
    categories = [
        {"id": number, "name": name, "supercategory": "", **points}
        for number, name in zip(numbers, dataset.class_names, strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{dataset.split}.json"
    _write(path, json.dumps(content))
    return path


def _areas(objects: Objects, masks: list[dict[str, Any]] | None) -> list[float | int]:
    """Each object's area: what the data set says, or else its mask's, or else its box's."""
    if objects.area is not None:
        return objects.area.tolist()
    if masks is not None:
        return [each["area"] for each in masks]
    return [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in objects.boxes.tolist()]


def _keypoints(dataset: DetectionDataset, index: int, j: int) -> dict[str, Any]:
    if dataset.keypoints is None:
        return {}
    points = dataset.keypoints[index][j]
    return {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}


def write_voc_xml(dataset: DetectionDataset, folder: str | os.PathLike[str]) -> Path:
    """Writes Annotations, JPEGImages and ImageSets/Main/<split>.txt below `folder`; no masks.

    Pictures are named by their ids, which so must be at least 0. Whole numbers are written as VOC
    does; boxes between pixels keep their fractions, which VOC's own tools don't all read. A
    classes.txt is written too, which keeps the classes' order. Returns the list of the split.

    >>> write_voc_xml(splits["train"], "VOCdevkit/VOC2007")  # doctest: +SKIP
    """
    folder = _folder(folder)
    names = []
    for index, name, (height, width) in _written(dataset, folder / "JPEGImages", digits=6):
        root = ET.Element("annotation")
        ET.SubElement(root, "folder").text = folder.name
        ET.SubElement(root, "filename").text = name
        size = ET.SubElement(root, "size")
        for tag, value in (("width", width), ("height", height), ("depth", 3)):
            ET.SubElement(size, tag).text = str(value)
        ET.SubElement(root, "segmented").text = "0"
        objects = dataset.objects[index]
        for j, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
            element = ET.SubElement(root, "object")
            ET.SubElement(element, "name").text = dataset.class_names[objects.labels[j]]
            ET.SubElement(element, "pose").text = "Unspecified"
            ET.SubElement(element, "truncated").text = "0"
            ET.SubElement(element, "difficult").text = str(int(objects.difficult[j]))
            bounds = ET.SubElement(element, "bndbox")
            # From 1, with the last pixel included; a box thinner than a pixel has no such form.
            sides = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            if sides["xmin"] > x2 or sides["ymin"] > y2:
                raise UserError(
                    f"{dataset.names[index]}, object {j + 1}: expected a box of at least one pixel "
                    f"each way, which VOC can say, got {x2 - x1:g} x {y2 - y1:g}: leave it out"
                )
            for tag, value in sides.items():
                ET.SubElement(bounds, tag).text = repr(int(value) if value % 1 == 0 else value)
        ET.indent(root, "\t")
        names.append(Path(name).stem)
        text = ET.tostring(root, encoding="unicode") + "\n"
        _write(folder / "Annotations" / f"{names[-1]}.xml", text)
    _write_names(folder / "classes.txt", dataset)
    path = folder / "ImageSets" / "Main" / f"{dataset.split}.txt"
    _write(path, "".join(f"{name}\n" for name in names))
    return path


def write_yolo_txt(dataset: DetectionDataset, folder: str | os.PathLike[str]) -> Path:
    """Writes images/<split>, labels/<split> and data.yaml below `folder`; no masks.

    The format can't say that an object is difficult: those are written like all others. Returns the
    folder of the labels.

    >>> write_yolo_txt(splits["train"], "exported")  # doctest: +SKIP
    """
    folder = _folder(folder)
    labels = folder / "labels" / dataset.split
    for index, name, (height, width) in _written(
        dataset, folder / "images" / dataset.split, digits=12
    ):
        objects = dataset.objects[index]
        lines = []
        for label, (x1, y1, x2, y2) in zip(objects.labels, objects.boxes.tolist(), strict=True):
            box = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width
            lines.append(" ".join([str(label), *(f"{v:.10g}" for v in (*box, (y2 - y1) / height))]))
        _write(labels / f"{Path(name).stem}.txt", "".join(f"{line}\n" for line in lines))
    splits = sorted(path.name for path in (folder / "images").iterdir() if path.is_dir())
    content = [f"{split}: images/{split}" for split in splits]
    # JSON is YAML too, and quotes names such as "no" and "12" that YAML would take for others.
    content += [f"nc: {len(dataset.class_names)}", f"names: {json.dumps(dataset.class_names)}"]
    _write(folder / "data.yaml", "".join(f"{line}\n" for line in content))
    return labels


def _folder(folder: str | os.PathLike[str]) -> Path:
    return Path(folder).expanduser().absolute()


def _written(
    dataset: DetectionDataset, folder: Path, *, digits: int
) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """Writes each picture, and yields its index, its file's name there, and its (height, width)."""
    ids = dataset.image_ids
    if len(ids) and (len(np.unique(ids)) < len(ids) or ids.min() < 0):
        raise UserError(
            f"{dataset.name}, {dataset.split}: expected ids of pictures that differ and are not "
            "negative, because they become the files' names"
        )
    for index in track(range(len(dataset)), f"exporting {dataset.split}", len(dataset)):
        data, size = _file(dataset, index)
        name = f"{int(ids[index]):0{digits}d}{_suffix(data, dataset.names[index])}"
        _check_boxes(dataset, index, size)
        if (folder / name).exists():
            raise UserError(
                f"{folder / name}: expected no such file yet: export into another folder, or each "
                "split into one of its own"
            )
        _write(folder / name, data)
        yield index, name, size


def _file(dataset: DetectionDataset, index: int) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a picture's file, and the upright picture's size."""
    entry = dataset.images[index]
    if isinstance(entry, np.ndarray):
        file = io.BytesIO()
        to_picture(entry).save(file, "PNG")
        return file.getvalue(), entry.shape[:2]
    name = dataset.names[index]
    if isinstance(entry, Path):
        try:
            entry = entry.read_bytes()
        except OSError as error:
            raise UserError(f"{name}: could not be read: {describe_os_error(error)}") from error
    return entry, picture_size(entry, name=name)


def _suffix(data: bytes, name: str) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        kind = picture.format or ""
    return SUFFIXES.get(kind, f".{kind.lower()}")


def _check_boxes(dataset: DetectionDataset, index: int, size: tuple[int, int]) -> None:
    boxes, limits = dataset.objects[index].boxes, np.array([size[1], size[0]] * 2, np.float32)
    inside = (boxes >= 0).all() and (boxes <= limits).all()
    if not (inside and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise UserError(
            f"{dataset.names[index]}: expected boxes inside its picture of {size[0]} x {size[1]} "
            f"pixels (h x w) with some area, got others: {boxes.tolist()}: clip or remove them"
        )


def _run_lengths(dataset: DetectionDataset, index: int) -> list[dict[str, Any]] | None:
    """The segmentation and area of each object of a picture."""
    from pycocotools import mask

    if dataset.masks is None:
        return None
    entry = dataset.masks[index]
    if not isinstance(entry, tuple):
        entry = _encoded(dataset.example(index, masks=True)["masks"])
    return [
        {
            "segmentation": {"size": list(map(int, each["size"])), "counts": _text(each["counts"])},
            "area": int(mask.area(dict(each))),
        }
        for each in entry
    ]


def _encoded(masks: Bool[np.ndarray, "m h w"]) -> list[dict[str, Any]]:
    from pycocotools import mask

    return [mask.encode(np.asfortranarray(each.astype(np.uint8))) for each in masks]


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _write_names(path: Path, dataset: DetectionDataset) -> None:
    _write(path, "".join(f"{name}\n" for name in dataset.class_names))


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: could not be written: {describe_os_error(error)}") from error
