"""Detection batches: fixed shapes, each example once an epoch, a pure function of (seed, step)."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import compose, epoch_order, prefetch
from jaxvision.data.batch_shapes import MultiScale, picture_sizes, resize_batch
from jaxvision.data.color import color_jitter
from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.detection_batches import DetectionBatches
from jaxvision.data.detection_geometry import masks_to_boxes
from jaxvision.data.detection_transforms import (
    letterbox,
    random_flip,
    random_iou_crop,
    resize_shortest_side,
    scale_jitter,
)
from jaxvision.data.mosaic import mosaic
from jaxvision.data.object_slots import keep_largest
from jaxvision.data.transforms import ExampleTransform
from jaxvision.errors import UserError


def objects_of(i, height, width, count):
    rng = np.random.default_rng([i, count])
    corners = rng.random((count, 2, 2)) * (width - 4, height - 4)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 4], axis=1)
    return Objects.of(
        boxes.tolist(), rng.integers(0, 5, count).tolist(), (rng.random(count) < 0.3).tolist()
    )


def arrays(size=10, height=12, width=16, masks=False):
    """Picture i is all i and has i % 4 objects, so some have none; image ids are 100 + i."""
    images = np.zeros((size, height, width, 3), np.uint8) + np.arange(size, dtype=np.uint8).reshape(
        -1, 1, 1, 1
    )
    objects = tuple(objects_of(i, height, width, i % 4) for i in range(size))
    maps = None
    if masks:
        maps = np.zeros((size, height, width), np.uint8)
        for i, scene in enumerate(objects):
            for j, (x1, y1, x2, y2) in enumerate(np.rint(scene.boxes).astype(int)):
                maps[i, y1:y2, x1:x2] = j + 1
    return DetectionDataset(
        images=images,
        names=tuple(f"{i}.png" for i in range(size)),
        image_ids=np.arange(100, 100 + size),
        objects=objects,
        class_names=tuple("abcde"),
        name="squares",
        split="train",
        source="made",
        masks=maps,
    )


SIZES = [(20, 30), (30, 20), (24, 24), (30, 30), (10, 28), (31, 19), (20, 30)]


def files(sizes=SIZES):
    """PNG files of those sizes, all i."""
    encoded = []
    for i, (height, width) in enumerate(sizes):
        stream = io.BytesIO()
        Image.new("RGB", (width, height), (i, i, i)).save(stream, "PNG")
        encoded.append(stream.getvalue())
    return DetectionDataset(
        images=tuple(encoded),
        names=tuple(f"{i}.png" for i in range(len(sizes))),
        image_ids=np.arange(100, 100 + len(sizes)),
        objects=tuple(objects_of(i, h, w, i % 3) for i, (h, w) in enumerate(sizes)),
        class_names=tuple("abcde"),
        name="files",
        split="train",
        source="made",
    )


BUCKETS = ((24, 32), (32, 24), (32, 32))


def epoch_of(batches, epoch):
    steps = batches.steps_per_epoch
    return [batches(step) for step in range(epoch * steps, (epoch + 1) * steps)]


def equal(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def check_contract(batch, b, m, size, *, padded=False, masks=False):
    h, w = size
    shapes = {
        "image": (np.uint8, (b, h, w, 3)),
        "boxes": (np.float32, (b, m, 4)),
        "labels": (np.int32, (b, m)),
        "box_valid": (np.bool_, (b, m)),
        "difficult": (np.bool_, (b, m)),
        "size": (np.int32, (b, 2)),
        "image_id": (np.int32, (b,)),
    }
    if padded:
        shapes["valid"] = (np.bool_, (b,))
    if masks:
        shapes["masks"] = (np.bool_, (b, m, h, w))
    assert {name: (array.dtype.type, array.shape) for name, array in batch.items()} == shapes
    for name in ("boxes", "labels", "difficult", *(["masks"] if masks else [])):
        assert not batch[name][~batch["box_valid"]].any(), name
    x1, y1, x2, y2 = batch["boxes"][batch["box_valid"]].T
    heights, widths = batch["size"].T
    assert (x1 < x2).all()
    assert (y1 < y2).all()
    assert (batch["boxes"][..., 2] <= widths[:, None]).all()
    assert (batch["boxes"][..., 3] <= heights[:, None]).all()


# What is in memory


@pytest.mark.parametrize("transform", [None, lambda example, rng: example])
@pytest.mark.parametrize("masks", [False, True])
def test_batches_hold_the_examples_of_the_epochs_order(transform, masks):
    """With and without a transform that does nothing, which takes the other path."""
    data = arrays(masks=True)
    batches = DetectionBatches(data, 4, seed=3, transform=transform, masks=masks)
    assert (batches.steps_per_epoch, batches.has_padding, batches.object_slots) == (3, True, 3)
    for epoch in range(2):
        order = epoch_order(10, seed=3, epoch=epoch)
        got = epoch_of(batches, epoch)
        np.testing.assert_array_equal(batches.padded_order(epoch)[:10], order)
        for s, batch in enumerate(got):
            check_contract(batch, 4, 3, (12, 16), padded=True, masks=masks)
            assert batch["valid"].tolist() == [4 * s + i < 10 for i in range(4)]
            for row in range(4):
                index = order[(4 * s + row) % 10]
                scene, count = data.objects[index], len(data.objects[index])
                assert (batch["image"][row] == index).all()
                assert batch["image_id"][row] == 100 + index
                assert batch["size"][row].tolist() == [12, 16]
                assert batch["box_valid"][row].tolist() == [j < count for j in range(3)]
                np.testing.assert_array_equal(batch["boxes"][row, :count], scene.boxes)
                np.testing.assert_array_equal(batch["labels"][row, :count], scene.labels)
                np.testing.assert_array_equal(batch["difficult"][row, :count], scene.difficult)
                if masks:
                    expected = data.example(int(index), masks=True)["masks"]
                    np.testing.assert_array_equal(batch["masks"][row, :count], expected)
    ids = [np.concatenate([b["image_id"] for b in epoch_of(batches, e)]) for e in range(2)]
    assert ids[0].tolist() != ids[1].tolist()


def test_drop_last_and_no_shuffle():
    batches = DetectionBatches(arrays(), 4, shuffle=False, drop_last=True)
    assert (batches.steps_per_epoch, batches.has_padding) == (2, False)
    assert "valid" not in batches(0)
    assert batches(3)["image_id"].tolist() == [104, 105, 106, 107]


def test_the_data_set_cannot_be_changed_through_a_batch():
    def spoil(example, rng):
        for name in ("image", "boxes", "labels"):
            example[name][:] = 0
        return example

    data = arrays()
    DetectionBatches(data, 10, transform=spoil)(0)
    plain = DetectionBatches(data, 10, shuffle=False)
    plain(0)["image"][:] = 0
    assert plain(0)["image"][:, 0, 0, 0].tolist() == list(range(10))
    with pytest.raises(ValueError, match="read-only"):
        plain.padded_order(0)[0] = 3


def test_only_the_largest_objects_stay_where_there_are_too_many():
    batch = DetectionBatches(arrays(), 10, shuffle=False, max_objects=2)(0)
    check_contract(batch, 10, 2, (12, 16))
    assert batch["box_valid"].sum(axis=1).tolist() == [0, 1, 2, 2, 0, 1, 2, 2, 0, 1]
    sides = np.array([[3, 3], [1, 1], [3, 3], [4, 4], [3, 3]], np.float32)
    example = {"boxes": np.concatenate([np.zeros_like(sides), sides], axis=1)}
    example |= {"labels": np.arange(5, dtype=np.int32), "difficult": np.zeros(5, bool)}
    assert keep_largest(example, 3)["labels"].tolist() == [0, 2, 3]
    assert keep_largest(example, 5) is example
    with pytest.raises(ValueError, match=r"as many of each .* 5 boxes, 4 labels"):
        keep_largest(example | {"labels": example["labels"][:4]}, 9)


def test_a_data_set_without_any_object_has_room_for_one():
    data = arrays().subset(np.array([0, 4, 8]))
    batch = DetectionBatches(data, 3, transform=scale_jitter((8, 8)))(0)
    check_contract(batch, 3, 1, (8, 8))
    assert not batch["box_valid"].any()


def test_ids_beyond_32_bits_keep_theirs():
    data = arrays(2)
    data.image_ids[1] = 2**40
    batch = DetectionBatches(data, 2, shuffle=False)(0)
    assert batch["image_id"].tolist() == [100, 2**40]
    with pytest.raises(ValueError, match="within 32 bits"):
        DetectionBatches(data, 2).arrays()


# Augmentation

AUGMENT = compose(random_flip(), random_iou_crop(), scale_jitter((16, 20), (0.4, 2.0)))


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_depends_on_seed_and_step_only(masks):
    options = {
        "seed": 5,
        "transform": compose(AUGMENT, color_jitter(0.2)),
        "mix": mosaic((16, 20), p=0.7),
        "masks": masks,
        "multi_scale": MultiScale([(16, 20), (24, 30), (8, 10)], every=2),
    }
    one, other = (DetectionBatches(arrays(masks=True), 3, **options) for _ in range(2))
    expected = [one(step) for step in range(9)]
    for step in (8, 0, 4, 4):
        equal(other(step), expected[step])
    for step, batch in enumerate(prefetch(other, 0, 9, workers=3)):
        equal(batch, expected[step])
        check_contract(batch, 3, 12, batch["image"].shape[1:3], padded=True, masks=masks)
    changed = DetectionBatches(arrays(masks=True), 3, **{**options, "seed": 6})
    assert any(changed(s)["image"].tobytes() != expected[s]["image"].tobytes() for s in range(3))


def test_augmentation_belongs_to_the_example_not_to_the_batch():
    def by_example(batch_size, epoch):
        mix = mosaic((16, 20), p=0.5)
        batches = DetectionBatches(arrays(12), batch_size, transform=AUGMENT, mix=mix, seed=7)
        return {
            int(image_id): (image.tobytes(), boxes.tobytes())
            for batch in epoch_of(batches, epoch)
            for image_id, image, boxes in zip(
                batch["image_id"], batch["image"], batch["boxes"], strict=True
            )
        }

    assert by_example(3, 0) == by_example(4, 0) == by_example(5, 0)
    assert by_example(3, 0) != by_example(3, 1)


def test_a_mosaic_has_room_for_four_times_the_objects():
    batches = DetectionBatches(arrays(12), 12, mix=mosaic((32, 32), scale=(0.5, 0.5)))
    assert batches.object_slots == 12
    batch = batches(0)
    check_contract(batch, 12, 12, (32, 32))
    assert batch["box_valid"].sum(axis=1).max() > 3
    assert len({picture.tobytes() for picture in batch["image"]}) == 12


# Buckets


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_buckets(batch_size, shuffle):
    data = files()
    batches = DetectionBatches(data, batch_size, seed=1, shuffle=shuffle, buckets=BUCKETS, fill=77)
    expected = [0, 1, 0, 2, 0, 1, 0]
    numbers = [expected.count(k) for k in range(3)]
    assert batches.steps_per_epoch == sum(-(-n // batch_size) for n in numbers)
    shapes = set()
    for epoch in range(3):
        seen = []
        for batch in epoch_of(batches, epoch):
            h, w = batch["image"].shape[1:3]
            check_contract(batch, batch_size, 2, (h, w), padded=batches.has_padding)
            shapes.add((h, w))
            valid = batch.get("valid", np.ones(batch_size, bool))
            seen += batch["image_id"][valid].tolist()
            assert valid.any()
            for row, image in enumerate(batch["image"]):
                index = batch["image_id"][row] - 100
                height, width = SIZES[index]
                assert batch["size"][row].tolist() == [height, width]
                assert BUCKETS[expected[index]] == (h, w)
                assert (image[:height, :width] == index).all()
                assert (image[height:] == 77).all()
                assert (image[:, width:] == 77).all()
        assert sorted(seen) == list(range(100, 107))  # each once
    assert shapes == set(BUCKETS)
    slots = batches.valid_slots(0)
    assert (len(slots), slots.sum()) == (batches.steps_per_epoch * batch_size, 7)


def test_buckets_are_those_of_the_sizes_after_the_transform():
    transform = compose(random_flip(), resize_shortest_side(16, 26))
    batches = DetectionBatches(files(), 1, buckets=[(32, 32)], transform=transform)
    assert batches.sizes.tolist()[:5] == [[16, 24], [24, 16], [16, 16], [16, 16], [9, 26]]
    for step in range(7):
        batch = batches(step)
        assert batch["size"][0].tolist() == batches.sizes[batch["image_id"][0] - 100].tolist()


def test_a_transform_that_gives_another_size_than_it_says():
    wrong = ExampleTransform(letterbox((16, 20)), lambda size: (20, 16))
    batches = DetectionBatches(files(), 2, shuffle=False, buckets=[(32, 32)], transform=wrong)
    with pytest.raises(UserError, match=r"0\.png: expected 20 x 16 .* got 16 x 20"):
        batches(0)


def test_drop_last_with_buckets():
    batches = DetectionBatches(files(), 2, buckets=BUCKETS, drop_last=True)
    assert (batches.steps_per_epoch, batches.has_padding) == (3, False)  # four, two, and one left
    seen = [int(i) for batch in epoch_of(batches, 0) for i in batch["image_id"]]
    assert len(set(seen)) == 6
    with pytest.raises(UserError, match="at least 5 pictures, as drop_last asks for"):
        DetectionBatches(files(), 5, buckets=BUCKETS, drop_last=True)


def test_headers_give_the_upright_size_and_nothing_is_decoded(tmp_path):
    picture, exif = Image.new("RGB", (7, 5)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    data = files(SIZES[:2])
    truncated = data.images[0][:48]  # the header is there
    object.__setattr__(data, "images", (tmp_path / "turned.jpg", truncated))
    assert picture_sizes(data).tolist() == [[7, 5], [20, 30]]
    assert data.image(0).shape == (7, 5, 3)
    with pytest.raises(UserError, match=r"1\.png"):
        data.image(1)
    object.__setattr__(data, "images", (b"none", truncated))
    with pytest.raises(UserError, match=r"0\.png: expected a picture"):
        picture_sizes(data)


# Sizes that change


def test_multi_scale_changes_every_few_steps_and_scales_the_objects():
    sizes = [(12, 16), (24, 32), (6, 8)]
    plain = DetectionBatches(arrays(40), 2, masks=False, seed=4)
    scaled = DetectionBatches(arrays(40), 2, seed=4, multi_scale=MultiScale(sizes, every=5))
    seen = []
    for step in range(60):
        one, two = plain(step), scaled(step)
        size = two["image"].shape[1:3]
        check_contract(two, 2, 3, size)
        np.testing.assert_allclose(two["boxes"], one["boxes"] * (size[0] / 12), rtol=1e-6)
        assert two["size"].tolist() == [list(size)] * 2
        assert (two["image"][:, 0, 0] == one["image"][:, 0, 0]).all()
        seen.append(size)
    blocks = [set(seen[start : start + 5]) for start in range(0, 60, 5)]
    assert all(len(block) == 1 for block in blocks)
    assert set(seen) == set(sizes)


def test_a_resized_batch_resizes_its_masks():
    batch = DetectionBatches(arrays(masks=True), 5, masks=True, shuffle=False)(0)
    twice = resize_batch(batch, (24, 32))
    np.testing.assert_array_equal(twice["masks"][:, :, ::2, 1::2], batch["masks"])
    flat = masks_to_boxes(batch["masks"].reshape(-1, 12, 16))
    np.testing.assert_array_equal(masks_to_boxes(twice["masks"].reshape(-1, 24, 32)), 2 * flat)
    assert resize_batch(batch, (12, 16)) is batch


# What cannot be


@pytest.mark.parametrize(
    ("error", "data", "options", "message"),
    [
        (UserError, arrays, {"batch_size": 11}, "at most 10, the size of squares's train set"),
        (UserError, arrays, {"batch_size": 0}, "at least 1, got 0"),
        (UserError, arrays, {"masks": True}, "expected masks, but it has none"),
        (UserError, files, {"buckets": [(24, 32)]}, r"1\.png: .* got 30 x 20 .* as 2 others"),
        (ValueError, arrays, {"max_objects": 0}, "max_objects of at least 1"),
        (ValueError, arrays, {"buckets": []}, "at least one bucket"),
        (ValueError, arrays, {"buckets": [(9, 9)], "mix": mosaic((9, 9))}, "not both"),
        (ValueError, files, {"buckets": BUCKETS, "transform": AUGMENT.apply}, "its output size"),
    ],
)
def test_impossible_options(error, data, options, message):
    with pytest.raises(error, match=message):
        DetectionBatches(data(), **{"batch_size": 2, **options})


def test_pictures_of_many_sizes_need_buckets_or_a_transform():
    with pytest.raises(UserError, match=r"one size .* 0\.png of 20 x 30 and 1\.png of 30 x 20"):
        DetectionBatches(files(), 2, shuffle=False)(0)
    got = DetectionBatches(files(), 7, transform=letterbox((16, 16)))(0)
    check_contract(got, 7, 2, (16, 16))
    for impossible in ({"transform": letterbox((9, 9))}, {"multi_scale": MultiScale([(9, 9)])}):
        with pytest.raises(ValueError, match="cannot be resident"):
            DetectionBatches(arrays(), 2, **impossible).arrays()
    with pytest.raises(ValueError, match="at least 0, got -1"):
        DetectionBatches(arrays(), 2)(-1)
    with pytest.raises(ValueError, match="every of at least 1"):
        MultiScale([(9, 9)], every=0)
