"""Export to COCO, VOC and YOLO, read back by the readers and by pycocotools."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.export import write_coco_json, write_voc_xml, write_yolo_txt
from jaxvision.data.formats.coco import load_coco_folder
from jaxvision.data.formats.voc import load_voc_folder
from jaxvision.data.formats.yolo_txt import load_yolo_folder
from jaxvision.errors import UserError

from .detection_files import make_coco, noisy, png_bytes

NAMES = ("zebra", "12", "no", "a bird & <two>")  # not sorted, and hard for YAML and XML


def quiet(line):
    pass


def objects_of(boxes, *others):
    return Objects.of([tuple(map(float, box)) for box in boxes], *others)


@pytest.fixture
def files(tmp_path):
    """Pictures of three kinds: a JPEG with a turned camera, PNG bytes, and an empty scene."""
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    noisy(30, 50, 1).save(turned, exif=exif)  # 50 x 30 when upright
    pictures = (
        turned,
        png_bytes(np.asarray(noisy(20, 40, 2))),
        png_bytes(np.zeros((9, 8), np.uint8)),
    )
    first = np.zeros((50, 30), np.uint8)
    first[5:40, 3:9], first[10:20, 5:30] = 1, 2
    second = np.zeros((20, 40), np.uint8)
    second[0, 0], second[3:5, 3:5] = 2, 1
    objects = (
        objects_of([(3, 5, 9, 40), (5.25, 9.5, 30, 20.125)], [3, 0], [False, True]),
        objects_of([(3, 3, 5, 5), (0, 0, 40, 20)], [1, 2]),
        objects_of([], []),
    )
    return DetectionDataset(
        images=pictures,
        names=("turned.jpg", "second", "third"),
        image_ids=np.array([139, 2008000001, 7]),
        objects=objects,
        class_names=NAMES,
        name="mixed",
        split="train",
        source="the test",
        masks=(png_bytes(first), png_bytes(second), png_bytes(np.zeros((9, 8), np.uint8))),
    )


@pytest.fixture
def arrays():
    rng = np.random.default_rng(3)
    masks = np.zeros((4, 16, 24), np.uint8)
    masks[:, 2:9, 4:10] = 1
    return DetectionDataset(
        images=rng.integers(0, 256, (4, 16, 24, 3), dtype=np.uint8),
        names=tuple(f"scene {i}" for i in range(4)),
        image_ids=np.arange(4),
        objects=tuple(objects_of([(4, 2, 10, 9)], [i % 2]) for i in range(4)),
        class_names=("even", "odd"),
        name="scenes",
        split="val",
        source="the test",
        masks=masks,
    )


def check_same(got, wanted, *, masks=False, difficult=True, ids=True, atol=0.0):
    assert got.class_names == wanted.class_names
    assert got.split == wanted.split
    order = np.argsort(wanted.image_ids) if not ids else np.arange(len(wanted))
    if ids:
        assert got.image_ids.tolist() == wanted.image_ids.tolist()
    for i, j in enumerate(order):
        one, other = got.example(i, masks=masks), wanted.example(int(j), masks=masks)
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_allclose(one["boxes"], other["boxes"], rtol=0, atol=atol)
        np.testing.assert_array_equal(one["labels"], other["labels"])
        if difficult:
            np.testing.assert_array_equal(one["difficult"], other["difficult"])
        if masks:
            np.testing.assert_array_equal(one["masks"], other["masks"])


def test_coco_round_trip_is_equal(tmp_path, files):
    path = write_coco_json(files, tmp_path / "out")
    assert path == tmp_path / "out" / "annotations" / "instances_train.json"
    got = load_coco_folder(tmp_path / "out", announce=quiet)["train"]
    check_same(got, files, masks=True)
    assert got.category_ids == (1, 2, 3, 4)
    # The files themselves, not encoded once more.
    assert got.images[0].read_bytes() == files.images[0].read_bytes()
    assert [each.suffix for each in got.images] == [".jpg", ".png", ".png"]


def test_pycocotools_reads_what_is_written(tmp_path, files):
    from pycocotools.coco import COCO

    path = write_coco_json(files, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert sorted(coco.imgs) == [7, 139, 2008000001]
    example = files.example(0, masks=True)
    annotations = coco.loadAnns(coco.getAnnIds(139))
    for j, each in enumerate(annotations):
        assert coco.cats[each["category_id"]]["name"] == NAMES[example["labels"][j]]
        assert each["area"] == example["masks"][j].sum()
        assert each["iscrowd"] == example["difficult"][j]
        x, y, w, h = each["bbox"]
        assert [x, y, x + w, y + h] == example["boxes"][j].tolist()


def test_what_came_from_coco_keeps_its_numbers(tmp_path):
    before = load_coco_folder(make_coco(tmp_path / "in"), announce=quiet)
    for dataset in before.values():
        write_coco_json(dataset, tmp_path / "out")
    after = load_coco_folder(tmp_path / "out", announce=quiet)
    assert list(after) == ["train", "val"]
    for split, dataset in after.items():
        assert dataset.category_ids == (1, 3, 18)
        check_same(dataset, before[split], masks=True)
        assert dataset.masks == before[split].masks


def test_voc_round_trip_is_equal(tmp_path, files):
    path = write_voc_xml(files, tmp_path)
    assert path.read_text() == "000139\n2008000001\n000007\n"
    xml = (tmp_path / "Annotations" / "000139.xml").read_text()
    assert "<xmin>4</xmin>" in xml  # a whole number, from 1
    assert "<xmin>6.25</xmin>" in xml
    assert "<filename>000139.jpg</filename>" in xml
    splits = load_voc_folder(tmp_path, announce=quiet)
    assert list(splits) == ["train"]
    check_same(splits["train"], files)
    other = load_voc_folder(tmp_path, class_names=NAMES[::-1], announce=quiet)["train"]
    assert other.objects[0].labels.tolist() == [0, 3]


def test_yolo_round_trip_is_equal_but_for_what_it_cannot_say(tmp_path, files):
    write_yolo_txt(files, tmp_path)
    got = load_yolo_folder(tmp_path, announce=quiet)["train"]
    check_same(got, files, difficult=False, ids=False, atol=1e-5)


def test_pictures_in_memory_and_two_splits(tmp_path, arrays):
    train = dataclasses.replace(arrays.subset(np.array([2, 0])), split="train")
    train = dataclasses.replace(train, image_ids=np.array([10, 11]))
    for write, load, options in (
        (write_coco_json, load_coco_folder, {"masks": True}),
        (write_voc_xml, load_voc_folder, {}),
        (write_yolo_txt, load_yolo_folder, {"ids": False, "atol": 1e-5}),
    ):
        folder = tmp_path / write.__name__
        for dataset in (train, arrays):
            write(dataset, folder)
        splits = load(folder, announce=quiet)
        assert list(splits) == ["train", "val"]
        check_same(splits["train"], train, **options)
        check_same(splits["val"], arrays, **options)
        with pytest.raises(UserError, match="expected no such file yet"):
            write(train, folder)


@pytest.mark.parametrize("write", [write_coco_json, write_voc_xml, write_yolo_txt])
@pytest.mark.parametrize("box", [(4, 2, 25, 9), (-1, 2, 10, 9), (4, 2, 4, 9), (np.nan, 2, 10, 9)])
def test_a_box_that_no_reader_would_take_is_not_written(tmp_path, arrays, write, box):
    objects = (*arrays.objects[:3], objects_of([box], [0]))
    with pytest.raises(UserError, match="scene 3: expected boxes inside its picture of 16 x 24"):
        write(dataclasses.replace(arrays, objects=objects), tmp_path)


def test_faults(tmp_path, files, arrays):
    twice = dataclasses.replace(arrays, image_ids=np.array([1, 2, 2, 3]))
    with pytest.raises(UserError, match="ids of pictures that differ"):
        write_coco_json(twice, tmp_path)
    thin = dataclasses.replace(arrays, objects=(objects_of([(4, 2, 4.5, 9)], [0]),) * 4)
    with pytest.raises(UserError, match=r"scene 0, object 1: expected a box of at least one pixel"):
        write_voc_xml(thin, tmp_path / "thin")
    files.images[0].unlink()
    with pytest.raises(UserError, match=r"turned\.jpg: could not be read: No such file"):
        write_coco_json(files, tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_yolo_txt(arrays, tmp_path / "file" / "out")


def test_json_is_plain(tmp_path, arrays):
    content = json.loads(write_coco_json(arrays, tmp_path).read_text())
    assert set(content) == {"images", "annotations", "categories"}
    assert content["annotations"][1]["bbox"] == [4, 2, 6, 7]
    assert content["annotations"][1]["area"] == 42
    assert content["images"][1] == {
        **{"id": 1, "file_name": "000000000001.png"},
        **{"height": 16, "width": 24},
    }
