"""Makes small detection data sets, in files of exactly the official layouts."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

# (class, xmin, ymin, xmax, ymax, difficult), counted as VOC does: from 1, the last one included.
VOC_OBJECTS = {
    "000005": [("chair", 3, 5, 20, 18, 0), ("tvmonitor", 1, 1, 40, 30, 1)],
    "000007": [("car", 10, 2, 10, 30, 0)],
    "000009": [("horse", 2, 2, 30, 20, 0), ("person", 5, 5, 12, 28, 0), ("dog", 1, 9, 8, 30, 0)],
    "000012": [("car", 7, 7, 33, 25, 0)],
    "000001": [("dog", 4, 2, 19, 37, 0), ("person", 1, 1, 30, 40, 0)],
    "000002": [("train", 13, 7, 20, 21, 0)],
}
VOC_LISTS = {"train": ("000005", "000012"), "val": ("000007", "000009")}
VOC_LISTS |= {"trainval": ("000005", "000007", "000009", "000012"), "test": ("000001", "000002")}
SEGMENTED = {"train": ("000009",), "val": ("000007",), "trainval": ("000007", "000009")}
SEGMENTED |= {"test": ("000001",)}
PORTRAIT = ("000001",)


def noisy(height, width, seed):
    low = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)


def voc_xml(year, stem, size, objects):
    """One annotation, with everything that VOC's own files have, parts included."""
    height, width = size
    parts = [
        f"<annotation>\n\t<folder>VOC{year}</folder>\n\t<filename>{stem}.jpg</filename>\n\t<source>",
        f"\t\t<database>The VOC{year} Database</database>\n\t\t<image>flickr</image>\n\t</source>",
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>",
        "\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>",
    ]
    for name, xmin, ymin, xmax, ymax, difficult in objects:
        part = ""
        if name == "person":
            part = (
                "\t\t<part>\n\t\t\t<name>head</name>\n\t\t\t<bndbox>\n\t\t\t\t<xmin>1</xmin>"
                "<ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>\n\t\t\t</bndbox>\n\t\t</part>\n"
            )
        parts.append(
            f"\t<object>\n{part}\t\t<name>{name}</name>\n\t\t<pose>Rear</pose>\n"
            f"\t\t<truncated>0</truncated>\n\t\t<difficult>{difficult}</difficult>\n\t\t<bndbox>\n"
            f"\t\t\t<xmin>{xmin}</xmin>\n\t\t\t<ymin>{ymin}</ymin>\n\t\t\t<xmax>{xmax}</xmax>\n"
            f"\t\t\t<ymax>{ymax}</ymax>\n\t\t</bndbox>\n\t</object>"
        )
    return "\n".join([*parts, "</annotation>\n"])


def make_voc(folder, year="2007", splits=("train", "val", "trainval", "test")):
    """A folder such as VOCdevkit/VOC2007; in 2012 the names have the picture's year in front."""
    prefix = "" if year == "2007" else "2008_"
    for place in ("Annotations", "JPEGImages", "SegmentationClass", "SegmentationObject"):
        (folder / place).mkdir(parents=True)
    lists = {"Main": VOC_LISTS, "Segmentation": SEGMENTED}
    for kind, of_kind in lists.items():
        (folder / "ImageSets" / kind).mkdir(parents=True)
        for split in splits:
            text = "".join(f"{prefix}{stem}\n" for stem in of_kind[split])
            (folder / "ImageSets" / kind / f"{split}.txt").write_text(text)
            if kind == "Main":  # the lists of one class have a column that says if it is there
                text = "".join(f"{prefix}{stem} -1\n" for stem in of_kind[split])
                (folder / "ImageSets" / kind / f"car_{split}.txt").write_text(text)
    for stem in sorted({stem for split in splits for stem in VOC_LISTS[split]}):
        size = (40, 30) if stem in PORTRAIT else (30, 40)
        objects, name = VOC_OBJECTS[stem], prefix + stem
        noisy(*size, seed=int(stem)).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(year, name, size, objects))
        if any(stem in SEGMENTED[split] for split in splits):
            for kind in ("SegmentationClass", "SegmentationObject"):
                palette_png(voc_instances(stem, size), folder / kind / f"{name}.png")
    return folder


def voc_instances(stem, size):
    """The object's numbers, with a border of 255 round them, as VOC's own masks have it."""
    numbers = np.zeros(size, np.uint8)
    for number, (_, xmin, ymin, xmax, ymax, _) in enumerate(VOC_OBJECTS[stem], start=1):
        numbers[ymin - 1 : ymax, xmin - 1 : xmax] = 255
        numbers[ymin : ymax - 1, xmin - 1 : xmax] = number
    return numbers


def palette_png(numbers, path):
    picture = Image.fromarray(numbers)
    picture.putpalette(np.random.default_rng(9).integers(0, 256, 768).tolist())
    assert picture.mode == "P"
    picture.save(path)


def pack(folder, archive, within):
    """Packs a folder into a .tar or .zip in which it is called `within`; returns its sha256."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    names = [f"{within}/{path.relative_to(folder).as_posix()}" for path in files]
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".tar":
        with tarfile.open(archive, "w") as opened:
            for path, name in zip(files, names, strict=True):
                opened.add(path, name)
    else:
        with zipfile.ZipFile(archive, "w") as opened:
            for path, name in zip(files, names, strict=True):
                opened.write(path, name)
    return hashlib.sha256(archive.read_bytes()).hexdigest()


PEDESTRIANS = {  # picture -> (numbers in the mask, their boxes between pixels)
    "FudanPed00001": ((1, 2), ((4, 3, 10, 20), (15, 2, 22, 19))),
    "FudanPed00002": ((1,), ((0, 0, 25, 30),)),
    "FudanPed00003": ((2, 5), ((1, 1, 3, 9), (8, 2, 9, 3))),  # numbers may have gaps
    "PennPed00001": ((1, 2, 3), ((1, 5, 5, 9), (5, 5, 9, 9), (20, 12, 25, 30))),
    "PennPed00002": ((1,), ((3, 3, 9, 28),)),
}


def make_penn_fudan(folder):
    for place in ("PNGImages", "PedMasks", "Annotation"):
        (folder / place).mkdir(parents=True)
    (folder / "readme.txt").write_text("1. Directory structure:\n")
    for seed, (stem, (numbers, boxes)) in enumerate(PEDESTRIANS.items()):
        noisy(30, 25, seed).save(folder / "PNGImages" / f"{stem}.png")
        mask = np.zeros((30, 25), np.uint8)
        for number, (x1, y1, x2, y2) in zip(numbers, boxes, strict=True):
            mask[y1:y2, x1:x2] = number
        path = folder / "PedMasks" / f"{stem}_mask.png"
        if seed % 2:
            palette_png(mask, path)
        else:
            Image.fromarray(mask).save(path)
        (folder / "Annotation" / f"{stem}.txt").write_text("# Compatible with PASCAL 1.00\n")
    return folder


COCO_CATEGORIES = [
    {"supercategory": "vehicle", "id": 3, "name": "car"},
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "animal", "id": 18, "name": "dog"},
]
COCO_IMAGES = [
    {"id": 139, "file_name": "000000000139.jpg", "height": 20, "width": 30, "license": 2},
    {"id": 42, "file_name": "000000000042.jpg", "height": 25, "width": 16, "license": 3},
    {"id": 7, "file_name": "000000000007.jpg", "height": 12, "width": 12, "license": 3},
]
COCO_ANNOTATIONS = [
    {
        "segmentation": [[2, 3, 10, 3, 10, 8, 2, 8], [20, 10, 25, 10, 25, 15]],
        **{"area": 52.5, "iscrowd": 0, "image_id": 139, "bbox": [2, 3, 23, 12.0]},
        **{"category_id": 18, "id": 1768},
    },
    {
        "segmentation": {"counts": [100, 25, 275], "size": [25, 16]},
        **{"area": 25, "iscrowd": 1, "image_id": 42, "bbox": [4, 0, 1, 25]},
        **{"category_id": 1, "id": 900100000042},
    },
    {
        "segmentation": [[0.5, 0.5, 9.5, 0.5, 9.5, 11.25]],
        **{"area": 48.4, "iscrowd": 0, "image_id": 139, "bbox": [0.5, 0.5, 9.0, 10.75]},
        **{"category_id": 3, "id": 5},
    },
]


def coco_content(**changed):
    content = {"info": {"year": 2017}, "licenses": [], "images": COCO_IMAGES}
    content |= {"annotations": COCO_ANNOTATIONS, "categories": COCO_CATEGORIES, **changed}
    return json.loads(json.dumps(content))  # a copy that may be changed


def make_coco(root, splits=("train2017", "val2017"), content=None):
    for split in splits:
        (root / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        path = root / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content or coco_content()))
        for image in COCO_IMAGES:
            picture = noisy(image["height"], image["width"], image["id"])
            picture.save(root / split / image["file_name"])
    return root


YOLO_LABELS = {  # "cx cy w h" of pictures 20 high and 40 wide
    "a.jpg": "1 0.5 0.5 0.25 0.5\n0 0.1 0.25 0.05 0.1\n",
    "deep/b.png": "2 0.975 0.5 0.05 1\n",
    "c.jpg": None,
    "d.jpg": "",
}


def make_yolo(root, layout="images/{}", splits=("train", "val")):
    for split in splits:
        images = root / layout.format(split)
        labels = Path(str(images).replace("images", "labels"))
        for seed, (name, text) in enumerate(YOLO_LABELS.items()):
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            noisy(20, 40, seed).save(images / name)
            if text is not None:
                path = (labels / name).with_suffix(".txt")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    (root / "data.yaml").write_text(
        "path: ../pictures  # root\ntrain: images/train\nval: images/val\n\n"
        "nc: 3\nnames:\n  0: cat\n  1: 'no'\n  2: dog\n"
    )
    return root


def png_bytes(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()
