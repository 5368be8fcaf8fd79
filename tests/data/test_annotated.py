"""What every format's boxes go through, whatever its reader has let pass."""

from pathlib import Path

import numpy as np
import pytest

from jaxvision.data.formats.annotated import AnnotatedObject, AnnotatedPicture, to_dataset
from jaxvision.errors import UserError


def gather(*boxes, label=0, size=(20, 30), announce=lambda line: None, **options):
    objects = tuple(
        AnnotatedObject(tuple(map(float, box)), label, f"file, line {i}")
        for i, box in enumerate(boxes, start=1)
    )
    picture = AnnotatedPicture(Path("a.jpg"), "a.jpg", 5, size, objects)
    empty = AnnotatedPicture(Path("b.jpg"), "b.jpg", 6, (9, 9), ())
    last = AnnotatedPicture(Path("c.jpg"), "c.jpg", 7, size, objects[::-1])
    names = {"class_names": ("one", "two"), "name": "set", "split": "train", "source": "here"}
    return to_dataset([empty, picture, empty, last], **names, announce=announce, **options)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, np.nan, 4), "finite numbers, got the box (1, 2, nan, 4) as x1, y1, x2, y2 in a"),
        ((-np.inf, 2, 3, 4), "finite numbers"),
        ((5, 2, 4, 4), "x1 <= x2 and y1 <= y2, got the box (5, 2, 4, 4)"),
        ((5, 4, 8, 2), "x1 <= x2 and y1 <= y2"),
        ((30, 2, 40, 4), "at least some is in its picture, got the box (30, 2, 40, 4) as"),
        ((3, -9, 4, 0), "picture of 20 x 30 pixels (h x w): correct or remove it"),
        ((3, 3, 3, 9), "at least some"),
        ((29.9999999, 3, 30, 9), "at least some"),  # nothing is left of it in float32
    ],
)
def test_a_box_that_cannot_be_right_is_named(box, expected):
    with pytest.raises(UserError) as caught:
        gather((0, 0, 1, 1), box)
    assert str(caught.value).startswith("file, line 2: expected ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(UserError, match=f"file, line 1: expected a class from 0 to 1, got {label}"):
        gather((0, 0, 1, 1), label=label)


def test_boxes_stay_with_their_pictures_and_in_their_order():
    lines = []
    boxes = [(2, 3, 30, 20), (-5, 4, 40, 25), (7, 7, 7, 8), (29.5, 3, 30.005, 9), (50, 1, 60, 2)]
    dataset = gather(*boxes, leave_out_empty=True, announce=lines.append)
    assert [len(each) for each in dataset.objects] == [0, 3, 0, 3]
    expected = [[2, 3, 30, 20], [0, 4, 30, 20], [29.5, 3, 30, 9]]
    np.testing.assert_array_equal(dataset.objects[1].boxes, expected)
    np.testing.assert_array_equal(dataset.objects[3].boxes, expected[::-1])
    assert dataset.image_ids.tolist() == [6, 5, 6, 7]
    assert lines == [
        "set, train: 2 of 10 boxes were clipped to their pictures, from which they stuck out "
        "(first: file, line 2)",
        "set, train: 4 of 10 boxes were left out, because they are empty or outside of their "
        "pictures (first: file, line 3)",
    ]


def test_no_pictures_and_no_objects():
    assert gather().masks is None
    names = {"class_names": (), "name": "set", "split": "val", "source": "here"}
    assert len(to_dataset([], **names, announce=print)) == 0
