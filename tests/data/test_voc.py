"""Pascal VOC: folders of the devkit, official archives, and files that can't be right."""

import dataclasses
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import detection_archives
from jaxvision.data.detection_recipes import DETECTION_RECIPES
from jaxvision.data.formats.voc import CLASS_NAMES, image_ids, load_voc_folder
from jaxvision.errors import UserError

from .detection_files import (
    SEGMENTED,
    VOC_LISTS,
    VOC_OBJECTS,
    make_voc,
    pack,
    voc_instances,
    voc_xml,
)

ONE_BASED_TO_BETWEEN = np.array([-1, -1, 0, 0])


def quiet(line):
    pass


def load(name, **options):
    return DETECTION_RECIPES[name](
        **{"source": None, "data_dir": None, "announce": quiet, **options}
    )


def fails(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **{"announce": quiet, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_splits(splits, lists, prefix=""):
    assert list(splits) == list(lists)
    for split, stems in lists.items():
        dataset = splits[split]
        assert len(dataset) == len(stems)
        assert (dataset.split, dataset.class_names) == (split, CLASS_NAMES)
        ids = [int(prefix.replace("_", "") + stem) for stem in stems]
        assert dataset.image_ids.tolist() == ids
        for stem, objects in zip(stems, dataset.objects, strict=True):
            expected = VOC_OBJECTS[stem]
            boxes = np.array([each[1:5] for each in expected]) + ONE_BASED_TO_BETWEEN
            np.testing.assert_array_equal(objects.boxes, boxes)
            assert [CLASS_NAMES[label] for label in objects.labels] == [e[0] for e in expected]
            assert objects.difficult.tolist() == [bool(each[5]) for each in expected]


@pytest.fixture
def devkit(tmp_path):
    """A folder with VOCdevkit/VOC2007 in it."""
    return make_voc(tmp_path / "VOCdevkit" / "VOC2007")


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A folder with the official archives of both years, small, which count as genuine."""
    made = {
        "2007": [("train", "val", "trainval"), ("test",)],
        "2012": [("train", "val", "trainval")],
    }
    folder = tmp_path / "archives"
    for year, parts in made.items():
        official = detection_archives.VOC_ARCHIVES[year]
        genuine = []
        for archive, splits in zip(official, parts, strict=True):
            unpacked = tmp_path / "made" / archive.file
            make_voc(unpacked / f"VOC{year}", year, splits)
            sha256 = pack(unpacked, folder / archive.file, "VOCdevkit")
            genuine.append(dataclasses.replace(archive, sha256=sha256))
        monkeypatch.setitem(detection_archives.VOC_ARCHIVES, year, tuple(genuine))
    return folder


# A folder, read where it is


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_voc2007_from_an_unpacked_devkit(tmp_path, devkit, place):
    lines = []
    splits = load("voc2007", source=tmp_path / place, announce=lines.append)
    check_splits(splits, VOC_LISTS)
    assert splits["test"].images[1] == devkit / "JPEGImages" / "000002.jpg"
    assert splits["test"].name == "voc2007"
    assert splits["test"].example(0)["image"].shape == (40, 30, 3)
    assert len(lines) == 1
    assert "2 train, 2 val, 4 trainval, 2 test pictures with 17 objects of 20 classes" in lines[0]
    with pytest.raises(UserError, match="has no masks"):
        splits["test"].example(0, masks=True)


def test_the_class_names_are_voc_s_in_its_order():
    assert len(CLASS_NAMES) == 20
    assert list(CLASS_NAMES) == sorted(CLASS_NAMES)
    assert (CLASS_NAMES[0], CLASS_NAMES[14], CLASS_NAMES[19]) == (
        "aeroplane",
        "person",
        "tvmonitor",
    )


def test_the_devkits_iou_is_the_plain_iou_of_the_boxes(devkit):
    """The devkit's overlap of counted pixels, (xmax - xmin + 1) and so on, of the files' boxes."""
    (_, *a, _), (_, *b, _), _ = VOC_OBJECTS["000009"]
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    devkit_iou = width * height / (sum(areas) - width * height)

    boxes = load_voc_folder(devkit, announce=quiet)["val"].objects[1].boxes[:2].astype(np.float64)
    sides = np.minimum(boxes[0, 2:], boxes[1, 2:]) - np.maximum(boxes[0, :2], boxes[1, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert sides.prod() / (area.sum() - sides.prod()) == pytest.approx(devkit_iou, abs=1e-12)


def test_segmentation_has_its_own_lists_and_masks_by_object(tmp_path, devkit):
    splits = load("voc2007", source=tmp_path, segmentation=True)
    check_splits(splits, SEGMENTED)
    example = splits["trainval"].example(1, masks=True)
    numbers = voc_instances("000009", (30, 40))
    assert example["masks"].shape == (3, 30, 40)
    for j, mask in enumerate(example["masks"]):
        assert mask.any()
        np.testing.assert_array_equal(mask, numbers == j + 1)
    assert not example["masks"][:, numbers == 255].any()
    path = devkit / "SegmentationObject" / "000009.png"
    Image.open(path).resize((40, 29)).save(path)
    message = fails(load, "voc2007", source=tmp_path, segmentation=True)
    assert "000009.png: expected a mask of 30 x 40 pixels" in message


def test_07_and_12_together(tmp_path, devkit):
    make_voc(tmp_path / "VOCdevkit" / "VOC2012", "2012", ("train", "val", "trainval"))
    (tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "test.txt").write_text("2011_1\n")
    twelve = load("voc2012", source=tmp_path)
    without_test = {split: VOC_LISTS[split] for split in ("train", "val", "trainval")}
    check_splits(twelve, without_test, prefix="2008_")
    splits = load("voc0712", source=tmp_path / "VOCdevkit")
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 8, "test": 2}
    train = splits["train"]
    assert (train.name, train.split) == ("voc0712", "train")
    assert train.image_ids.tolist()[3:5] == [12, 2008000005]
    np.testing.assert_array_equal(train.objects[4].boxes, train.objects[0].boxes)
    assert len(splits["test"].example(0)["labels"]) == 2
    segmented = load("voc0712", source=tmp_path, segmentation=True)["train"]
    assert segmented.image_ids.tolist() == [7, 9, 2008000007, 2008000009]
    assert segmented.example(3, masks=True)["masks"].any(axis=(1, 2)).all()
    (devkit / "ImageSets" / "Main" / "test.txt").unlink()
    assert "test split of VOC2007" in fails(load, "voc0712", source=tmp_path / "VOCdevkit")
    message = fails(load, "voc2012", source=devkit)
    assert "VOCtrainval_11-May-2012.tar" in message


def test_a_folder_of_ones_own_has_classes_of_its_own(devkit):
    splits = load("voc_xml", source=devkit)
    names = {each[0] for objects in VOC_OBJECTS.values() for each in objects}
    assert splits["train"].class_names == tuple(sorted(names))
    assert splits["val"].image_ids.tolist() == [7, 9]
    with pytest.raises(UserError, match="give it as the source"):
        load("voc_xml")


def test_ids_of_pictures():
    assert image_ids(["000005", "2007_000027"]) == {"000005": 5, "2007_000027": 2007000027}
    assert image_ids(["b", "a"]) == {"a": 1, "b": 2}
    assert image_ids(["01", "1"]) == {"01": 1, "1": 2}  # would be one number
    assert image_ids(["9" * 30]) == {"9" * 30: 1}  # would not fit


# Official archives


def check_both_years(**options):
    check_splits(load("voc2007", **options), VOC_LISTS)
    twelve = load("voc2012", **options)
    check_splits(twelve, {s: VOC_LISTS[s] for s in ("train", "val", "trainval")}, prefix="2008_")
    return twelve


def test_archives_are_downloaded_unpacked_and_prepared_once(tmp_path, archives, serve, monkeypatch):
    served = serve(files={path.name: path.read_bytes() for path in archives.iterdir()})
    for year, official in detection_archives.VOC_ARCHIVES.items():
        for each in official:
            assert each.urls[0] == f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{each.file}"
        # The first mirror has nothing.
        moved = [
            dataclasses.replace(e, urls=(f"{served.url}no/{e.file}", served.url + e.file))
            for e in official
        ]
        monkeypatch.setitem(detection_archives.VOC_ARCHIVES, year, tuple(moved))
    data_dir, lines = tmp_path / "d", []
    twelve = check_both_years(data_dir=data_dir, announce=lines.append)
    assert twelve["train"].source == "full set, the official files downloaded"
    assert "preparing the full set, the official files downloaded" in lines[0]
    assert len(served.requests) == 6
    left = sorted(path.name for path in (data_dir / "downloads" / "voc2007").iterdir())
    assert left == ["VOCtest_06-Nov-2007.tar", "VOCtrainval_06-Nov-2007.tar"]
    shutil.rmtree(data_dir / "downloads")
    splits = load("voc0712", data_dir=data_dir, announce=lines.append)
    assert len(splits["train"]) == 8
    assert len(served.requests) == 6
    assert ["prepared earlier" in line for line in lines[-5:]] == [True, False, True, False, False]


def test_prepared_pictures_are_the_files_and_their_masks(tmp_path, archives, devkit):
    data_dir = tmp_path / "d"
    prepared = load("voc2007", source=archives, data_dir=data_dir)
    in_place = load("voc2007", source=devkit)
    for split, dataset in prepared.items():
        files = tuple(path.read_bytes() for path in in_place[split].images)
        assert dataset.images == files
        assert dataset.masks is None
    assert prepared["trainval"].images[0] is prepared["train"].images[0]  # in memory once
    segmented = load("voc2007", data_dir=data_dir, segmentation=True)
    also = load("voc2007", source=devkit, segmentation=True)
    check_splits(segmented, SEGMENTED)
    for split, dataset in segmented.items():
        for i in range(len(dataset)):
            masks = [each.example(i, masks=True)["masks"] for each in (dataset, also[split])]
            np.testing.assert_array_equal(*masks)


def test_tfds_reads_the_same_examples(tmp_path, archives):
    """The reader here is ours; TFDS's own is the oracle."""
    from jaxvision.data.builders.voc import VOC

    ours = load("voc2007", source=archives, data_dir=tmp_path / "d")["trainval"]
    builder = VOC(config="2007", data_dir=tmp_path / "d")
    assert builder.info.file_format.value == "array_record"
    examples = [e for e in builder.as_data_source("pictures") if b"Main/trainval" in e["lists"]]
    assert len(examples) == len(ours)
    for i, example in enumerate(examples):
        np.testing.assert_array_equal(example["image"], ours.image(i))
        np.testing.assert_array_equal(example["boxes"], ours.objects[i].boxes)
        np.testing.assert_array_equal(example["labels"], ours.objects[i].labels)
        assert example["image_id"] == ours.image_ids[i]


@pytest.mark.parametrize("fault", ["short", "other", "missing", "no folder"])
def test_faults_of_archives(tmp_path, archives, fault, monkeypatch):
    path = archives / "VOCtest_06-Nov-2007.tar"
    if fault == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif fault == "missing":
        path.unlink()
    elif fault == "other":
        with zipfile.ZipFile(path, "w") as other:
            other.writestr("VOCdevkit/VOC2008/Annotations/1.xml", "")
    source = tmp_path / "nowhere" if fault == "no folder" else archives
    message = fails(load, "voc2007", source=source, data_dir=tmp_path / "d")
    assert str(source) in message
    wanted = {"short": "expected sha256", "other": "expected sha256"}
    assert wanted.get(fault, "or the unpacked VOCdevkit/VOC2007 in this folder") in message
    assert not (tmp_path / "d" / "voc").exists()
    if fault == "other":
        first, second = detection_archives.VOC_ARCHIVES["2007"]
        sha256 = detection_archives.VOC_ARCHIVES["2007"][1].sha256
        monkeypatch.setattr(detection_archives, "check_sha256", lambda path, sha256: None)
        message = fails(load, "voc2007", source=source, data_dir=tmp_path / "d")
        assert "expected VOCdevkit/VOC2007 in the archive" in message
        assert sha256 == second.sha256 != first.sha256
    assert not (tmp_path / "d" / "voc").exists()


def test_nothing_to_be_had_offline_says_what_to_give(tmp_path):
    message = fails(load, "voc2012", data_dir=tmp_path)
    assert "JAXVISION_OFFLINE=1" in message
    assert "give a folder with VOCtrainval_11-May-2012.tar or" in message


def test_a_damaged_prepared_folder_says_which_to_delete(tmp_path, archives):
    options = {"source": archives, "data_dir": tmp_path / "d"}
    load("voc2007", **options)
    prepared = tmp_path / "d" / "voc" / "2007" / "1.0.0"
    (shard,) = prepared.glob("*-pictures.array_record-*")
    whole = shard.read_bytes()
    start = whole.index(b"JFIF")  # a byte of a picture is turned round
    flipped = whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :]
    for damage in (whole[: len(whole) // 2], b"junk", flipped):
        shard.write_bytes(damage)
        message = fails(load, "voc2007", **options)
        assert message.startswith(f"{prepared}: expected a prepared data set, but it is damaged")
        assert "delete this folder" in message
    shard.write_bytes(whole)
    (prepared / "dataset_info.json").write_text("{")
    assert "it is damaged" in fails(load, "voc2007", **options)


# XML that can't be right

CAR = [("car", 3, 4, 20, 18, 0)]
GOOD = voc_xml("2007", "000005", (30, 40), CAR)
BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>\n'


@pytest.mark.parametrize(
    ("xml", "expected"),
    [
        (GOOD.replace("size", "shape"), "expected <size> with <width> and <height>, got none"),
        (GOOD.replace("<width>40", "<width>0"), "of whole pixels, got width 0 and height 30"),
        (GOOD.replace("<width>40", "<width>many"), "number in <size><width>, got 'many'"),
        (GOOD.replace("<width>40</width>", ""), "number in <size><width>, got none"),
        (GOOD.replace("<xmin>3", "<xmin>21"), "object 1: expected xmin <= xmax and ymin <= ymax"),
        (GOOD.replace("<ymax>18", "<ymax>3"), "got x from 3 to 20, y from 4 to 3"),
        (GOOD.replace("<xmin>3", "<xmin>nan"), "number in <bndbox><xmin>, got 'nan'"),
        (GOOD.replace("<xmin>3", "<xmin>inf"), "number in <bndbox><xmin>, got 'inf'"),
        (GOOD.replace("<xmin>3", "<xmin>"), "number in <bndbox><xmin>, got ''"),
        (GOOD.replace("<xmin>3</xmin>", ""), "number in <bndbox><xmin>, got none"),
        (GOOD.replace("bndbox", "box"), "object 1: expected <name> and <bndbox>"),
        (
            GOOD.replace("<name>car", "<name>cart"),
            "object 1: expected one of the classes aeroplane",
        ),
        (GOOD.replace("<xmax>20", "<xmax>99").replace("<xmin>3", "<xmin>60"), "(59, 3, 99, 18)"),
        (GOOD[: len(GOOD) // 2], "expected XML, got a file that is malformed"),
        ("", "expected XML, got a file that is malformed"),
        (BOMB + GOOD.replace("Rear", "&c;"), "refused: expected XML without a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd">' + GOOD, "refused: expected XML without a"),
        (GOOD.replace("<height>30", "<height>31"), "a picture of 31 x 40 pixels (h x w), but"),
    ],
)
def test_an_annotation_that_cannot_be_right_is_named(devkit, xml, expected):
    path = devkit / "Annotations" / "000005.xml"
    path.write_text(xml)
    message = fails(load_voc_folder, devkit, class_names=CLASS_NAMES)
    assert message.startswith(str(path))
    assert expected in message


def test_xml_in_another_encoding_cannot_hide_a_doctype(devkit):
    path = devkit / "Annotations" / "000005.xml"
    path.write_bytes(('<?xml version="1.0" encoding="utf-16"?>' + BOMB + GOOD).encode("utf-16"))
    assert "in UTF-8" in fails(load_voc_folder, devkit)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())  # a byte order mark is fine
    load_voc_folder(devkit, announce=quiet)


def test_fractions_of_pixels_are_read_and_boxes_that_stick_out_are_clipped(devkit):
    objects = [("car", 0, 4.5, 20.25, 31, 0), ("dog", 1, 1, 40, 30, 0)]
    path = devkit / "Annotations" / "000005.xml"
    path.write_text(voc_xml("2007", "000005", (30, 40), objects))
    lines = []
    train = load_voc_folder(devkit, splits=("train",), announce=lines.append)["train"]
    np.testing.assert_array_equal(train.objects[0].boxes, [[0, 3.5, 20.25, 30], [0, 0, 40, 30]])
    assert lines[0] == (
        "voc_xml, train: 1 of 3 boxes were clipped to their pictures, from which they stuck out "
        f"(first: {path}, object 1 (car))"
    )
    assert len(lines) == 2


def test_faults_of_the_folders(tmp_path, devkit):
    (devkit / "JPEGImages" / "000009.jpg").unlink()
    message = fails(load_voc_folder, devkit)
    assert message.startswith(f"{devkit}/Annotations/000009.xml: expected its picture")
    (devkit / "Annotations" / "000009.xml").unlink()
    assert "000009.xml: expected a VOC annotation, but it can't" in fails(load_voc_folder, devkit)
    lists = devkit / "ImageSets" / "Main"
    for text in ("000005\n000005\n", "../x\n", "a\0b\n"):
        (lists / "val.txt").write_text(text)
        assert "val.txt: expected names of pictures, once each" in fails(load_voc_folder, devkit)
    shutil.rmtree(lists)
    assert "Main: expected at least one of train.txt, val.txt" in fails(load_voc_folder, devkit)
    (devkit / "JPEGImages" / "000005.jpg").write_text("no picture")
    make_voc(tmp_path / "again")
    (tmp_path / "again" / "JPEGImages" / "000005.jpg").write_text("no picture")
    assert "got a file of another kind" in fails(load_voc_folder, tmp_path / "again")


def test_what_a_killed_preparation_left_is_removed_when_it_is_old(tmp_path, archives):
    scratch = tmp_path / "d" / "downloads" / "voc2007"
    old, under_way = scratch / "unpacked-old", scratch / "unpacked-now"
    for folder in (old, under_way):
        (folder / "VOCdevkit").mkdir(parents=True)
    os.utime(old, (0, 0))
    load("voc2007", source=archives, data_dir=tmp_path / "d")
    assert [path.name for path in scratch.iterdir()] == ["unpacked-now"]
