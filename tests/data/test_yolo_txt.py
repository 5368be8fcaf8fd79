"""YOLO's text files: layouts, names, empty scenes, and lines that can't be right."""

import shutil

import numpy as np
import pytest

from jaxvision.data.detection_recipes import DETECTION_RECIPES
from jaxvision.data.formats.yolo_txt import load_yolo_folder, read_names
from jaxvision.data.image_folder import in_validation
from jaxvision.errors import UserError

from .detection_files import make_yolo, noisy


def quiet(line):
    pass


def fails(root, **options):
    with pytest.raises(UserError) as caught:
        load_yolo_folder(root, announce=quiet, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check(dataset, first=1):
    assert [path.name for path in dataset.images] == ["a.jpg", "c.jpg", "d.jpg", "b.png"]
    assert dataset.image_ids.tolist() == list(range(first, first + 4))
    assert dataset.class_names == ("cat", "no", "dog")
    a, c, d, b = dataset.objects
    # 0.5 of 40 and 20, less and more half of 10 x 10; 0.1 and 0.25, less and more half of 2 x 2.
    np.testing.assert_allclose(a.boxes, [[15, 5, 25, 15], [3, 4, 5, 6]], atol=1e-5)
    assert a.labels.tolist() == [1, 0]
    assert not a.difficult.any()
    assert len(c) == len(d) == 0  # no text file, and an empty one
    assert c.boxes.shape == (0, 4)
    np.testing.assert_allclose(b.boxes, [[38, 0, 40, 20]], atol=1e-5)
    assert dataset.example(3)["image"].shape == (20, 40, 3)


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
@pytest.mark.parametrize("held", ["val", "valid"])
def test_splits_of_its_own(tmp_path, layout, held):
    root = make_yolo(tmp_path, layout, ("train", held, "test"))
    lines = []
    splits = DETECTION_RECIPES["yolo_txt"](source=root, data_dir=None, announce=lines.append)
    assert list(splits) == ["train", "val", "test"]
    for number, dataset in enumerate(splits.values()):
        check(dataset, first=1 + 4 * number)
        assert dataset.name == "yolo_txt"
    assert lines == [
        "yolo_txt: 4 train, 4 val, 4 test pictures with 9 objects of 3 classes: read where they "
        f"are, in {root}"
    ]


def test_one_folder_is_split_by_a_hash_of_each_path(tmp_path):
    make_yolo(tmp_path, "images", ("",))
    for i in range(40):
        noisy(10, 10, i).save(tmp_path / "images" / f"{i:02d}.png")
    splits = load_yolo_folder(tmp_path, val_fraction=0.3, announce=quiet)
    assert sum(len(dataset) for dataset in splits.values()) == 44
    for split, dataset in splits.items():
        for path in dataset.images:
            name = path.relative_to(tmp_path).as_posix()
            assert in_validation(name, 0.3) == (split == "val")
    assert "between 0 and 1, got 0" in fails(tmp_path, val_fraction=0.0)
    assert "44 pictures to become val, got none" in fails(tmp_path, val_fraction=1e-9)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names: [cat, 'no', dog]\nnc: 3\n"),
        ("data.yml", "train: x\nnames:\n- cat\n- 'no'  # a comment\n- dog\n"),
        ("data.yaml", "names: {2: dog, 1: 'no', 0: cat}"),
        ("data.yaml", '{"names": ["cat", "no", "dog"]}'),
        ("classes.txt", "cat\nno\n\ndog\n"),
        ("labels/classes.txt", "cat\r\nno\r\ndog"),
        ("labels/train/classes.txt", "cat\nno\ndog\n"),
    ],
)
def test_names_of_classes(tmp_path, file, text):
    make_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert "data.yaml (names: [...]) or in classes.txt" in fails(tmp_path)
    (tmp_path / file).write_text(text)
    check(load_yolo_folder(tmp_path, announce=quiet)["train"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [a, b", "expected YAML, got a file that is malformed"),
        ("names: !!python/object/apply:os.system ['true']", "expected YAML, got a file"),
        ("train: images", "expected names: [first, second, ...]"),
        ("- a", "expected names: [first, second, ...]"),
        ("", "expected names: [first, second, ...]"),
        ("names: {0: a, 2: b}", "a map from 0, 1, ... to names, got {0: 'a', 2: 'b'}"),
        ("names: [a, a]", "a name for each class, once, got a, a"),
        ("names: []", "a name for each class, once"),
        ("names: [a]\nnc: 2", "expected nc (2) names, got 1"),
    ],
)
def test_names_that_cannot_be_right(tmp_path, text, expected):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_names(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'data.yaml'}: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 0.1", "expected five columns, class cx cy width height, got 4"),
        ("0 .1 .1 .9 .1 .9 .9", "got 7: correct it; polygons and rotated boxes are not read"),
        ("0 0.5 0.5 0.1 0.1 0.9", "expected five columns"),
        ("cat 0.5 0.5 0.1 0.1", "a whole number and four numbers, got 'cat 0.5 0.5 0.1 0.1'"),
        ("0.5 0.5 0.5 0.1 0.1", "a whole number and four numbers"),
        ("0 0.5 O.5 0.1 0.1", "a whole number and four numbers"),
        ("0 1.5 0.5 0.1 0.1", "fractions of the picture, from 0 to 1, got '0 1.5 0.5 0.1 0.1'"),
        ("0 0.5 -0.1 0.1 0.1", "divide pixels by the picture's width and height"),
        ("0 nan 0.5 0.1 0.1", "fractions of the picture"),
        ("0 0.5 0.5 inf 0.1", "fractions of the picture"),
        ("3 0.5 0.5 0.1 0.1", "expected a class from 0 to 2, got 3"),
        ("-1 0.5 0.5 0.1 0.1", "expected a class from 0 to 2, got -1"),
        ("0 0.5 0.5 0 0.1", "a box of which at least some is in its picture"),
    ],
)
def test_a_line_that_cannot_be_right_is_named(tmp_path, line, expected):
    make_yolo(tmp_path)
    path = tmp_path / "labels" / "val" / "a.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n\n  {line} \n")
    message = fails(tmp_path)
    assert message.startswith(f"{path}, line 3: ")
    assert expected in message


def test_a_box_that_sticks_out_is_clipped_with_its_line(tmp_path):
    make_yolo(tmp_path)
    path = tmp_path / "labels" / "train" / "a.txt"
    path.write_text("0 0.95 0.5 0.2 0.5\n1 0.9000001 0.5 0.2 0.5\n")
    lines = []
    train = load_yolo_folder(tmp_path, announce=lines.append)["train"]
    np.testing.assert_allclose(train.objects[0].boxes[0], [34, 5, 40, 15], atol=1e-5)
    assert "yolo_txt, train: 1 of 3 boxes were clipped" in lines[0]  # the second: rounding
    assert f"{path}, line 1" in lines[0]


def test_faults_of_the_folders(tmp_path):
    assert "no such folder" in fails(tmp_path / "missing")
    make_yolo(tmp_path)
    picture = tmp_path / "images" / "val" / "d.jpg"
    picture.write_text("no picture")
    assert f"{picture}: expected a picture" in fails(tmp_path)
    picture.unlink()
    message = fails(tmp_path)
    assert "1 have none" in message
    assert str(tmp_path / "labels" / "val" / "d.txt") in message
    shutil.rmtree(tmp_path / "labels" / "val")
    assert f"{tmp_path}/labels/val: expected a text file for at least one" in fails(tmp_path)
    shutil.rmtree(tmp_path / "images" / "val")
    (tmp_path / "images" / "val").mkdir()
    assert "images/val: expected pictures, got none" in fails(tmp_path)
    (tmp_path / "images" / "train").rename(tmp_path / "images" / "training")
    assert "expected a split train, got val" in fails(tmp_path)
    shutil.rmtree(tmp_path / "images")
    assert "got none of them: name the folders so" in fails(tmp_path)
    (tmp_path / "data.yaml").write_bytes(b"\xff\xfe")
    assert "data.yaml: expected a list of names in UTF-8" in fails(tmp_path)
