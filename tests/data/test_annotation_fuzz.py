"""Annotations with random damage: each gives a data set or one clear error, never anything else."""

import json
import random

import pytest

from jaxvision.data.formats.coco import load_coco
from jaxvision.data.formats.voc import load_voc_folder
from jaxvision.data.formats.yolo_txt import load_yolo_folder
from jaxvision.errors import UserError

from .detection_files import coco_content, make_coco, make_voc, make_yolo

INSERTED = (
    b"0",
    b"-",
    b"9" * 30,
    b"<",
    b">",
    b"\0",
    b"nan",
    b"1e400",
    b"null",
    b"[]",
    b"\xff",
    b'"',
)
VALUES = (None, -1, 0, 10**30, 1.5, float("nan"), "x", "", [], {}, [[]], True, [1, 2], 2**63, "a\0")
TRIALS = 60


def damaged_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[i] = rng.randrange(256)
            case 1:
                data[i:i] = rng.choice(INSERTED)
            case 2:
                del data[i : i + rng.randint(1, 9)]
            case 3:
                data[i:i] = data[: rng.randint(1, 60)]
    return bytes(data)


def damaged_json(content, rng):
    def visit(value, path):
        yield path
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from (
                visit(inner, [*path, key]) if isinstance(inner, dict | list) else [[*path, key]]
            )

    *path, last = rng.choice([path for path in visit(content, []) if path])
    place = content
    for key in path:
        place = place[key]
    if rng.random() < 0.2:
        del place[last]
    else:
        place[last] = rng.choice(VALUES)
    return json.dumps(content).encode()


def read_all(splits):
    for dataset in splits:
        for i in range(len(dataset)):
            dataset.example(i, masks=dataset.masks is not None)


def voc(root):
    return [load_voc_folder(root, announce=len)["val"]]


def coco(root):
    annotations = root / "annotations" / "instances_train.json"
    return [load_coco(annotations, root / "train", announce=len)]


def yolo(root):
    return load_yolo_folder(root, announce=len).values()


@pytest.mark.parametrize(
    ("make", "name", "load"),
    [
        (make_voc, "Annotations/000009.xml", voc),
        (make_voc, "ImageSets/Main/val.txt", voc),
        (lambda root: make_coco(root, ("train",)), "annotations/instances_train.json", coco),
        (make_yolo, "labels/train/a.txt", yolo),
        (make_yolo, "data.yaml", yolo),
    ],
)
def test_random_damage(tmp_path, make, name, load):
    root = make(tmp_path / "VOC2007")
    path = root / name
    whole, messages = path.read_bytes(), []
    read_all(load(root))
    for trial in range(TRIALS):
        rng = random.Random(f"{name} {trial}")
        inside = path.suffix == ".json" and trial % 4
        data = damaged_json(coco_content(), rng) if inside else damaged_bytes(whole, rng)
        path.write_bytes(data)
        try:
            read_all(load(root))
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > TRIALS // 4
    assert not any("\n" in message for message in messages)
