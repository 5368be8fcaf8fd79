"""COCO's JSON: ids, boxes, masks of all forms, subsets, downloads, and what can't be right."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jaxvision.data import detection_archives, load_detection
from jaxvision.data.detection_recipes import DETECTION_RECIPES
from jaxvision.data.export import write_coco_json
from jaxvision.data.formats.coco import CocoDataset, load_coco, load_coco_folder
from jaxvision.data.run_lengths import decode, run_length
from jaxvision.errors import UserError

from .detection_files import COCO_ANNOTATIONS, COCO_IMAGES, coco_content, make_coco, pack


def quiet(line):
    pass


def fails(call, *arguments, **options):
    with pytest.raises(UserError) as caught:
        call(*arguments, **{"announce": quiet, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def coco(**options):
    return DETECTION_RECIPES["coco"](
        **{"source": None, "data_dir": None, "announce": quiet, **options}
    )


@pytest.fixture
def root(tmp_path):
    return make_coco(tmp_path / "coco")


@pytest.fixture
def changed(tmp_path):
    """Writes one split whose JSON has other entries; returns the call that reads it."""
    root = make_coco(tmp_path / "one", splits=("train2017",))
    path = root / "annotations" / "instances_train2017.json"

    def change(text=None, **entries):
        path.write_text(json.dumps(coco_content(**entries)) if text is None else text)
        return path, path, root / "train2017"

    return change


def test_areas_are_the_files_and_survive_being_written(root, tmp_path):
    """COCO's scores take them, where a box's area is larger and would flatter keypoints."""
    train = load_coco_folder(root, announce=quiet)["train"]
    there = [
        [each["area"] for each in COCO_ANNOTATIONS if each["image_id"] == n] for n in (139, 42)
    ]
    assert [each.area.tolist() for each in train.objects[:2]] == there
    assert there[0] != [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in train.objects[0].boxes]
    write_coco_json(train, tmp_path / "out")
    back = load_coco_folder(tmp_path / "out", announce=quiet)["train"]
    assert [each.area.tolist() for each in back.objects[:2]] == there


def with_annotation(**fields):
    return [*COCO_ANNOTATIONS[:2], {**COCO_ANNOTATIONS[2], **fields}]


# Reading


def test_ids_boxes_and_flags(root):
    lines = []
    splits = load_coco_folder(root, announce=lines.append)
    assert list(splits) == ["train", "val"]
    train = splits["train"]
    assert isinstance(train, CocoDataset)
    # The order of the ids, not of the file; gaps close.
    assert train.class_names == ("person", "car", "dog")
    assert train.category_ids == (1, 3, 18)
    assert train.image_ids.tolist() == [139, 42, 7]
    first, crowd, empty = train.objects
    np.testing.assert_array_equal(first.boxes, [[2, 3, 25, 15], [0.5, 0.5, 9.5, 11.25]])
    assert first.labels.tolist() == [2, 1]
    assert first.difficult.tolist() == [False, False]
    np.testing.assert_array_equal(crowd.boxes, [[4, 0, 5, 25]])
    assert (crowd.labels.tolist(), crowd.difficult.tolist()) == ([0], [True])
    assert empty.boxes.shape == (0, 4)
    assert train.images[0] == root / "train2017" / "000000000139.jpg"
    assert train.example(1)["image"].shape == (25, 16, 3)
    assert lines == [
        "coco_json: 3 train, 3 val pictures with 6 objects of 3 classes: read where they are, "
        f"{root}/annotations/instances_train2017.json and {root}/train2017"
    ]
    assert train.subset(np.array([2, 0])).category_ids == (1, 3, 18)


def test_masks_from_polygons_and_run_lengths(root):
    train = load_coco_folder(root, announce=quiet)["train"]
    masks = train.example(0, masks=True)["masks"]
    assert masks.shape == (2, 20, 30)
    rectangle = np.zeros((20, 30), bool)
    rectangle[3:8, 2:10] = True
    np.testing.assert_array_equal(masks[0, :9], rectangle[:9])
    assert 8 <= masks[0, 10:].sum() <= 15  # the triangle of the second polygon: 12.5
    assert not masks[0, 10:, :20].any()
    crowd = train.example(1, masks=True)["masks"]
    expected = np.zeros((1, 25, 16), bool)
    expected[0, :, 4] = True  # 100 pixels are four columns of 25
    np.testing.assert_array_equal(crowd, expected)
    assert train.example(2, masks=True)["masks"].shape == (0, 12, 12)
    without = load_coco_folder(root, announce=quiet, masks=False)["train"]
    assert without.masks is None


@pytest.mark.parametrize("seed", range(3))
def test_packed_run_lengths_are_pycocotools(seed):
    """Its C code is the oracle, for masks of noise, of blobs, and of one colour."""
    from pycocotools import mask

    rng = np.random.default_rng(seed)
    for _ in range(60):
        h, w = rng.integers(1, 40, 2)
        noise = rng.random((h, w)) < rng.choice([0, 0.02, 0.5, 1])
        blob = np.kron(rng.random((3, 3)) < 0.5, np.ones((h, w), bool)).astype(bool)
        for wanted in (noise, blob):
            encoded = mask.encode(np.asfortranarray(wanted.astype(np.uint8)))
            np.testing.assert_array_equal(decode(encoded), wanted)
            segmentation = {"size": list(wanted.shape), "counts": encoded["counts"].decode()}
            assert run_length(segmentation, wanted.shape, "here") == encoded
            flat = np.diff(
                np.flatnonzero(np.diff(wanted.T.ravel(), prepend=0, append=2)), prepend=0
            )
            counts = {"size": list(wanted.shape), "counts": flat.tolist()}
            assert run_length(counts, wanted.shape, "here") == encoded


@pytest.mark.parametrize(
    ("json_name", "pictures"),
    [
        ("annotations/train.json", "train"),
        ("train.json", "images"),
        ("train.json", ""),
        ("train/_annotations.coco.json", "train"),
        ("annotations/instances_train2014.json", "images/train2014"),
    ],
)
def test_other_layouts(root, tmp_path, json_name, pictures):
    other = tmp_path / "other"
    (other / json_name).parent.mkdir(parents=True)
    shutil.copytree(root / "train2017", other / pictures, dirs_exist_ok=True)
    shutil.copy(root / "annotations" / "instances_train2017.json", other / json_name)
    splits = load_coco_folder(other, announce=quiet)
    assert list(splits) == ["train"]
    assert splits["train"].images[0] == other / pictures / "000000000139.jpg"


def test_a_subset_of_the_official_layout(root):
    everything = coco(source=root)
    assert list(everything) == ["train", "val"]
    assert everything["val"].masks is None
    assert len(everything["val"]) == 3
    people = coco(source=root, classes=("person", "dog"), masks=True)["train"]
    assert people.class_names == ("person", "dog")
    assert people.category_ids == (1, 18)
    assert people.image_ids.tolist() == [139, 42]  # the one without objects is left out
    assert [each.labels.tolist() for each in people.objects] == [[1], [0]]
    assert people.example(0, masks=True)["masks"].shape == (1, 20, 30)
    assert coco(source=root, limit=1)["val"].image_ids.tolist() == [139]
    assert coco(source=root, classes=["person"], limit=1)["val"].image_ids.tolist() == [42]
    message = fails(coco, source=root, classes=("cat",))
    assert "expected classes among car, dog, person, got 'cat'" in message


def test_options_reach_the_readers_by_name(root):
    options = {"classes": ("person",), "masks": False, "check": False, "limit": 1}
    for name, more in (("coco_json", {"leave_out_empty": True}), ("coco", {})):
        if name == "coco":
            del options["check"]
        splits = load_detection(name, source=root, announce=quiet, **options, **more)
        assert splits["val"].image_ids.tolist() == [42]
        assert splits["val"].name == name
    with pytest.raises(UserError, match="coco has no option check"):
        load_detection("coco", source=root, check=True)


def test_coco_is_not_downloaded_unless_asked_for(tmp_path, root):
    assert "download='val2017' (1.1 GB), got neither" in fails(coco, data_dir=tmp_path)
    assert "got both" in fails(coco, source=root, download="val2017")
    assert "got 'train2017'" in fails(coco, download="train2017", data_dir=tmp_path)
    shutil.rmtree(root / "train2017")
    lines = []
    assert list(coco(source=root, announce=lines.append)) == ["val"]
    assert "no split train, because there are no pictures" in lines[0]
    shutil.rmtree(root / "annotations")
    assert "got neither split: unpack COCO's archives" in fails(coco, source=root)


def test_val2017_is_downloaded_and_stays_files(tmp_path, root, serve, monkeypatch):
    files = {}
    for key, folder in (("val2017", "val2017"), ("annotations", "annotations")):
        official = detection_archives.COCO_ARCHIVES[key]
        assert official.urls[0].startswith("http://images.cocodataset.org/")
        path = tmp_path / "served" / official.file
        sha256 = pack(root / folder, path, folder)
        files[official.file] = path.read_bytes()
        monkeypatch.setitem(
            detection_archives.COCO_ARCHIVES, key, dataclasses.replace(official, sha256=sha256)
        )
    served = serve(files=files)
    for key, official in dict(detection_archives.COCO_ARCHIVES).items():
        moved = dataclasses.replace(official, urls=(served.url + official.file,))
        monkeypatch.setitem(detection_archives.COCO_ARCHIVES, key, moved)
    data_dir = tmp_path / "d"
    for _ in range(2):
        splits = coco(download="val2017", data_dir=data_dir)
        assert list(splits) == ["val"]
        assert splits["val"].images[0] == data_dir / "coco/val2017/val2017/000000000139.jpg"
        shutil.rmtree(data_dir / "downloads", ignore_errors=True)
    assert len(served.requests) == 2
    shutil.rmtree(data_dir / "coco" / "val2017")
    wrong = dataclasses.replace(detection_archives.COCO_ARCHIVES["val2017"], sha256="0" * 64)
    monkeypatch.setitem(detection_archives.COCO_ARCHIVES, "val2017", wrong)
    assert "expected sha256 000" in fails(coco, download="val2017", data_dir=data_dir)


# What can't be right


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"bbox": [2, 3, -1, 4]}, "without negative width or height, got [2, 3, -1, 4]"),
        ({"bbox": [2, 3, 5, -0.5]}, "without negative width or height"),
        ({"bbox": [2, 3, 0, 4]}, "a box of which at least some is in its picture"),
        (
            {"bbox": [30, 3, 5, 4]},
            "got the box (30, 3, 35, 7) as x1, y1, x2, y2 in a picture of 20",
        ),
        ({"bbox": [2, 3, float("nan"), 4]}, "a bbox of four finite numbers"),
        ({"bbox": [2, 3, float("inf"), 4]}, "a bbox of four finite numbers"),
        ({"bbox": [2, 3, 10**400, 4]}, "a bbox of four finite numbers"),
        ({"bbox": [2, 3, 4]}, "a bbox of four finite numbers"),
        ({"bbox": None}, "a bbox of four finite numbers"),
        ({"image_id": 140}, "expected the id of one of its images as image_id, got 140"),
        ({"image_id": [1]}, "one of its images as image_id, got [1]"),
        ({"category_id": 2}, "one of its categories as category_id, got 2"),
        ({"category_id": "1"}, "one of its categories as category_id, got '1'"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygons of at least three points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "polygons of at least three points"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "a polygon in or near its picture of 20 x 30"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "a polygon in or near its picture"),
        ({"segmentation": "rle"}, "expected polygons or run lengths, got rle"),
        (
            {"segmentation": {"size": [30, 20], "counts": [600]}},
            "expected a mask of 20 x 30 pixels (h x w), as its picture, got [30, 20]",
        ),
        ({"segmentation": {"size": True, "counts": [600]}}, "as its picture, got True"),
        ({"segmentation": {"size": [20, 30], "counts": [601]}}, "run lengths of 600 pixels in all"),
        ({"segmentation": {"size": [20, 30], "counts": [-1, 601]}}, "run lengths of 600 pixels"),
        ({"segmentation": {"size": [20, 30], "counts": []}}, "expected run lengths as 'counts'"),
        ({"segmentation": {"size": [20, 30], "counts": "~~"}}, "packed run lengths, got '~~'"),
        ({"segmentation": {"size": [20, 30], "counts": "hP"}}, "got one that breaks off"),
        ({"segmentation": {"size": [20, 30], "counts": "01"}}, "600 pixels in all"),
    ],
)
def test_an_annotation_that_cannot_be_right_is_named(changed, fields, expected):
    path, *arguments = changed(annotations=with_annotation(**fields))
    message = fails(load_coco, *arguments)
    assert message.startswith(f"{path}, annotation 5: ")
    assert expected in message


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"text": "{"}, "expected JSON, got a file that is malformed"),
        ({"text": "[" * 100_000}, "expected JSON, got a file that is malformed"),
        ({"text": "[]"}, "expected an object with images, annotations and categories"),
        ({"images": None}, "expected a list of objects as 'images', got none"),
        ({"annotations": [1]}, "expected a list of objects as 'annotations'"),
        ({"images": [COCO_IMAGES[0]] * 2}, "as ids of images, got 139 twice"),
        ({"categories": [{"id": "a", "name": "a"}]}, "as ids of categories, got 'a' as one"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "name once, got a"),
        ({"annotations": [{"id": 3}]}, "expected 'image_id' in each entry, got {'id': 3}"),
        ({"images": [{**COCO_IMAGES[0], "height": 0}], "annotations": []}, "image 139: expected a"),
        ({"images": [{**COCO_IMAGES[0], "height": 21}], "annotations": []}, "of 21 x 30 pixels"),
        (
            {"images": [{**COCO_IMAGES[0], "file_name": "../a.jpg"}], "annotations": []},
            "a file_name below the folder",
        ),
        (
            {"images": [{**COCO_IMAGES[0], "file_name": "/a.jpg"}], "annotations": []},
            "a file_name below the folder",
        ),
    ],
)
def test_a_file_that_cannot_be_right_is_named(changed, entries, expected):
    path, *arguments = changed(**entries)
    message = fails(load_coco, *arguments)
    assert message.startswith(str(path))
    assert expected in message


def test_missing_pictures_are_counted_and_named(changed, tmp_path):
    path, *arguments = changed()
    for image in COCO_IMAGES[1:]:
        (arguments[1] / image["file_name"]).unlink()
    message = fails(load_coco, *arguments)
    assert message.startswith(f"{path}: expected its 3 pictures in {arguments[1]}, but 2 are miss")
    assert "000000000042.jpg; 000000000007.jpg: put them there" in message
    assert "can't be read" in fails(load_coco, tmp_path / "no.json", tmp_path)
    (arguments[1] / COCO_IMAGES[1]["file_name"]).write_bytes(b"no picture")
    (arguments[1] / COCO_IMAGES[2]["file_name"]).write_bytes(b"")
    message = fails(load_coco, *arguments)
    assert "instances_train2017.json, image 42: " in message
    assert message.count("got a file of another kind") == 2


def test_splits_must_have_the_same_categories(root):
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(coco_content(categories=[{"id": 9, "name": "car"}], annotations=[])))
    assert "expected the categories of train in val, got car" in fails(load_coco_folder, root)
    (root / "annotations" / "instances_val2014.json").write_text("{}")
    assert "expected one file of val annotations" in fails(load_coco_folder, root)
    shutil.rmtree(root / "annotations")
    assert "or train/_annotations.coco.json" in fails(load_coco_folder, root)


def test_cocos_own_boxes_without_height_are_left_out_and_counted(changed):
    path, *arguments = changed(annotations=with_annotation(bbox=[296.65 / 20, 8.33, 1.03, 0.0]))
    lines = []
    train = load_coco(*arguments, leave_out_empty=True, announce=lines.append)
    assert [len(each) for each in train.objects] == [1, 1, 0]
    assert train.example(0, masks=True)["masks"].shape == (1, 20, 30)
    assert lines == [
        "coco_json, train: 1 of 3 boxes were left out, because they are empty or outside of their "
        f"pictures (first: {path}, annotation 5)"
    ]


def test_boxes_that_stick_out_are_clipped_rounding_is_not_announced(changed):
    lines = []
    _, *arguments = changed(annotations=with_annotation(bbox=[25, 3, 5.001, 4]))
    train = load_coco(*arguments, announce=lines.append)
    assert train.objects[0].boxes[1].tolist() == [25, 3, 30, 7]
    assert lines == []
    _, *arguments = changed(annotations=with_annotation(bbox=[-3, 3, 50, 4]))
    train = load_coco(*arguments, announce=lines.append)
    assert train.objects[0].boxes[1].tolist() == [0, 3, 30, 7]
    assert "1 of 3 boxes were clipped" in lines[0]


def test_a_data_set_of_which_some_have_no_masks_has_none_and_says_so(changed):
    lines = []
    _, *arguments = changed(annotations=with_annotation(segmentation=[]))
    assert load_coco(*arguments, announce=lines.append).masks is None
    assert lines == ["coco_json, train: no masks, because 1 of 3 objects have none"]
