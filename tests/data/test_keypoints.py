"""Keypoints: mirrored, moved and batched with their pictures, read from COCO's files, of masks."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import (
    DetectionBatches,
    DetectionDataset,
    MultiScale,
    Objects,
    load_coco,
    load_coco_folder,
    mosaic,
    write_coco_json,
)
from jaxvision.data.detection_geometry import Keep, Placement, cut, flip, mirrored_names, place
from jaxvision.data.keypoints import EXTREME_POINTS, extreme_points, with_extreme_points
from jaxvision.errors import UserError

NAMES = ("nose", "left_eye", "right_eye")
POINTS = np.array(
    [[[5, 6, 2], [4, 5, 1], [0, 0, 0]], [[15, 9, 2], [14, 8, 2], [16, 8, 2]]], np.float32
)


def example():
    return {
        "image": np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8),
        "boxes": np.array([[2, 2, 8, 10], [12, 3, 20, 11]], np.float32),
        "labels": np.array([0, 1], np.int32),
        "difficult": np.zeros(2, bool),
        "keypoints": POINTS.copy(),
        "keypoint_mirror": np.array(mirrored_names(NAMES), np.int32),
    }


def dataset(count=3):
    rng = np.random.default_rng(1)
    masks = np.zeros((count, 12, 20), np.uint8)
    masks[:, 2:9, 3:8], masks[:, 4:10, 12:18] = 1, 2
    return DetectionDataset(
        images=rng.integers(0, 256, (count, 12, 20, 3), dtype=np.uint8),
        names=tuple(f"picture {i}" for i in range(count)),
        image_ids=np.arange(count),
        objects=tuple(
            Objects.of([(3.0, 2.0, 8.0, 9.0), (12.0, 4.0, 18.0, 10.0)], [0, 1])
            for _ in range(count)
        ),
        class_names=("a", "b"),
        name="made up",
        split="train",
        source="here",
        masks=masks,
    )


def test_a_mirror_image_swaps_left_and_right():
    flipped = flip(example(), horizontal=True)
    assert flipped["keypoints"][0].tolist() == [[15, 6, 2], [0, 0, 0], [16, 5, 1]]
    assert flipped["keypoints"][1].tolist() == [[5, 9, 2], [4, 8, 2], [6, 8, 2]]
    again = flip(flipped, horizontal=True)
    np.testing.assert_array_equal(again["keypoints"], POINTS)
    with pytest.raises(ValueError, match="from left to right only"):
        flip(example(), vertical=True)


def test_they_move_with_their_pixels():
    # A picture of twice the size, of which the left half lies on the canvas, two pixels down.
    placement = Placement((12, 20), (24, 40), (30, 20), (2, 0))
    moved = place(example(), placement)
    assert moved["keypoints"].shape == (1, 3, 3)  # the second object is beyond the canvas
    assert moved["keypoints"][0].tolist() == [[10, 14, 2], [8, 12, 1], [0, 0, 0]]
    np.testing.assert_array_equal(
        placement.points_to_original(placement.points_to_canvas(POINTS[0, :, :2])),
        POINTS[0, :, :2],
    )
    cropped = place(example(), Placement((12, 20), (12, 20), (12, 15)))
    assert cropped["keypoints"][1].tolist() == [[15, 9, 2], [14, 8, 2], [0, 0, 0]]
    kept = cut(example(), Keep(min_size=7.0))
    assert kept["keypoints"].tolist() == [POINTS[1].tolist()]


def test_extreme_points_are_where_a_click_would_be():
    mask = np.zeros((2, 8, 10), bool)
    mask[0, 2:6, 3:7] = True
    mask[0, 3, 1:9] = True
    points = extreme_points(mask)
    assert points[0].tolist() == [[1.5, 3.5, 2], [5, 2.5, 2], [8.5, 3.5, 2], [5, 5.5, 2]]
    assert not points[1].any()
    assert extreme_points(mask[:0]).shape == (0, 4, 3)


def test_batches_have_them_padded_and_augmented():
    data = with_extreme_points(dataset())
    assert data.keypoint_names == EXTREME_POINTS
    plain = DetectionBatches(data, 2, keypoints=True, max_objects=3, shuffle=False)
    batch = plain(0)
    assert batch["keypoints"].shape == (2, 3, 4, 3)
    assert batch["keypoints"][0, 0].tolist() == [
        [3.5, 5.5, 2],
        [5.5, 2.5, 2],
        [7.5, 5.5, 2],
        [5.5, 8.5, 2],
    ]
    assert not batch["keypoints"][:, 2].any()
    np.testing.assert_array_equal(plain.arrays()["keypoints"][:2], batch["keypoints"])

    def mirrored(example, rng):
        return flip(example, horizontal=True)

    mirror = DetectionBatches(data, 2, keypoints=True, shuffle=False, transform=mirrored)(0)
    left, right = mirror["keypoints"][0, 0, [0, 2]]
    assert (left.tolist(), right.tolist()) == ([12.5, 5.5, 2], [16.5, 5.5, 2])

    larger = DetectionBatches(
        data, 2, keypoints=True, shuffle=False, multi_scale=MultiScale(((24, 40),), every=1)
    )(0)
    np.testing.assert_allclose(
        larger["keypoints"], batch["keypoints"][:, :2] * np.array([2, 2, 1]), rtol=1e-6
    )
    mixed = DetectionBatches(data, 2, masks=True, keypoints=True, mix=mosaic((24, 40)))(0)
    seen = mixed["keypoints"][mixed["box_valid"]]
    boxes = mixed["boxes"][mixed["box_valid"]]
    there = seen[..., 2] > 0
    assert there.sum() > 4
    inside = (seen[..., :2] >= boxes[:, None, :2] - 1) & (seen[..., :2] <= boxes[:, None, 2:] + 1)
    assert inside[there].all()
    assert data.subset(np.array([1])).keypoints[0].shape == (2, 4, 3)


def test_a_data_set_without_them_says_so():
    with pytest.raises(UserError, match="expected keypoints, but it has none"):
        DetectionBatches(dataset(), 2, keypoints=True)
    with pytest.raises(UserError, match="has no keypoints"):
        dataset().example(0, keypoints=True)
    without = dataset()
    object.__setattr__(without, "masks", None)
    with pytest.raises(UserError, match="no masks, whose extreme points"):
        with_extreme_points(without)


# ------------------------------------------------------------------------------------ COCO's files
def coco_folder(folder, **changes):
    (folder / "train").mkdir(parents=True)
    Image.new("RGB", (20, 12)).save(folder / "train" / "a.png")
    entry = {"id": 1, "image_id": 4, "category_id": 1, "iscrowd": 0, "bbox": [2, 2, 6, 8]}
    content = {
        "images": [{"id": 4, "file_name": "a.png", "height": 12, "width": 20}],
        "categories": [
            {"id": 1, "name": "person", "keypoints": list(NAMES)},
            {"id": 2, "name": "bag"},
        ],
        "annotations": [
            {**entry, "keypoints": [5, 6, 2, 4, 5, 1, 7, 7, 0], **changes},
            {**entry, "id": 2, "category_id": 2},
        ],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def test_cocos_keypoints_are_read(tmp_path):
    folder = coco_folder(tmp_path / "mine")
    train = load_coco_folder(folder, keypoints=True, announce=str)["train"]
    assert train.keypoint_names == NAMES
    person, bag = train.keypoints[0]
    assert person.tolist() == [[5, 6, 2], [4, 5, 1], [0, 0, 0]]
    assert not bag.any()
    assert load_coco_folder(folder, announce=str)["train"].keypoints is None
    (folder / "annotations").mkdir()
    (folder / "train.json").rename(folder / "annotations" / "person_keypoints_train.json")
    again = load_coco_folder(folder, keypoints=True, announce=str)["train"]
    np.testing.assert_array_equal(again.keypoints[0], train.keypoints[0])


def test_they_survive_being_written(tmp_path):
    data = with_extreme_points(dataset())
    file = write_coco_json(data, tmp_path / "out")
    back = load_coco(file, tmp_path / "out" / "train", keypoints=True, announce=str)
    by_name = load_coco_folder(tmp_path / "out", keypoints=True, announce=str)["train"]
    assert by_name.keypoint_names == back.keypoint_names
    assert back.keypoint_names == EXTREME_POINTS
    for ours, theirs in zip(back.keypoints, data.keypoints, strict=True):
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize(
    ("keypoints", "got"), [([1, 2, 2], "got 3"), ([float("nan"), *[1] * 8], "got 9")]
)
def test_wrong_keypoints_are_one_line(tmp_path, keypoints, got):
    folder = coco_folder(tmp_path / "mine", keypoints=keypoints)
    with pytest.raises(UserError, match=f"annotation 1: expected 3 keypoints as 9 .*{got}"):
        load_coco(folder / "train.json", folder / "train", keypoints=True, announce=str)


def test_categories_must_name_them_alike(tmp_path):
    folder = coco_folder(tmp_path / "mine")
    with pytest.raises(UserError, match="one list of keypoints in its categories, got none"):
        load_coco(
            folder / "train.json", folder / "train", keypoints=True, classes=["bag"], announce=str
        )
