"""A detection data set's examples: pictures and masks in all the forms they come in."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from jaxvision.data import DetectionDataset, Objects
from jaxvision.errors import UserError

INSTANCES = np.array([[0, 1, 1, 0], [2, 2, 1, 0], [2, 2, 0, 0]], np.uint8)
MASKS = np.stack([INSTANCES == 1, INSTANCES == 2])
IMAGES = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(mask):
    return run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.fixture
def dataset():
    """Two pictures of 3 x 4 pixels, with two objects and none."""
    return DetectionDataset(
        images=IMAGES.copy(),
        names=("first", "second"),
        image_ids=np.array([10, 20]),
        objects=(
            Objects.of([(1.0, 0.0, 3.0, 2.0), (0.0, 1.0, 2.0, 3.0)], [5, 7], [False, True]),
            Objects.of([], []),
        ),
        class_names=tuple("abcdefgh"),
        name="mine",
        split="train",
        source="here",
        masks=np.stack([INSTANCES, np.zeros_like(INSTANCES)]),
    )


def files_of(dataset, folder, kind):
    files = tuple(png(image) for image in dataset.images)
    if kind == "bytes":
        return files
    paths = tuple(folder / f"{i}.png" for i in range(len(files)))
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file)
    return paths


@pytest.mark.parametrize("kind", ["array", "bytes", "paths"])
def test_pictures(dataset, tmp_path, kind):
    if kind != "array":
        dataset = dataclasses.replace(dataset, images=files_of(dataset, tmp_path, kind))
    for i in range(2):
        example = dataset.example(i)
        np.testing.assert_array_equal(example["image"], IMAGES[i])
        np.testing.assert_array_equal(dataset.image(i), IMAGES[i])
    assert len(dataset) == 2


@pytest.mark.parametrize("kind", ["array", "PNG", "run lengths"])
def test_masks(dataset, kind):
    forms = {
        "array": dataset.masks,
        "PNG": tuple(png(instances) for instances in dataset.masks),
        "run lengths": (tuple(encoded(mask) for mask in MASKS), ()),
    }
    dataset = dataclasses.replace(dataset, masks=forms[kind])
    first, second = (dataset.example(i, masks=True)["masks"] for i in range(2))
    assert (first.dtype, second.dtype) == (bool, bool)
    np.testing.assert_array_equal(first, MASKS)
    assert second.shape == (0, 3, 4)


def test_an_example_holds_everything_and_may_be_written_to(dataset):
    first = dataset.example(0, masks=True)
    assert list(first) == ["image", "boxes", "labels", "difficult", "image_id", "masks"]
    assert first["boxes"].tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]
    assert first["labels"].tolist() == [5, 7]
    assert first["difficult"].tolist() == [False, True]
    assert first["image_id"] == 10
    for name in ("image", "boxes", "labels", "difficult", "masks"):
        first[name][:] = 1
    again = dataset.example(0, masks=True)
    np.testing.assert_array_equal(again["image"], IMAGES[0])
    assert again["boxes"].tolist() == [[1, 0, 3, 2], [0, 1, 2, 3]]
    assert again["labels"].tolist() == [5, 7]
    assert again["difficult"].tolist() == [False, True]
    np.testing.assert_array_equal(again["masks"], MASKS)


def test_a_picture_without_objects_has_arrays_of_the_right_types(dataset):
    example = dataset.example(1)
    shapes = {name: (example[name].shape, example[name].dtype) for name in ("boxes", "labels")}
    assert shapes == {"boxes": ((0, 4), np.float32), "labels": ((0,), np.int32)}
    assert (example["difficult"].shape, example["difficult"].dtype) == ((0,), bool)


@pytest.mark.parametrize("kind", ["array", "bytes", "run lengths"])
def test_a_subset_keeps_what_belongs_together(dataset, tmp_path, kind):
    if kind != "array":
        dataset = dataclasses.replace(dataset, images=files_of(dataset, tmp_path, "bytes"))
    if kind == "run lengths":
        masks = (tuple(encoded(mask) for mask in MASKS), ())
        dataset = dataclasses.replace(dataset, masks=masks)
    subset = dataset.subset(np.array([1, 0, 0]))
    assert subset.names == ("second", "first", "first")
    assert subset.image_ids.tolist() == [20, 10, 10]
    assert [len(objects) for objects in subset.objects] == [0, 2, 2]
    np.testing.assert_array_equal(subset.image(2), IMAGES[0])
    np.testing.assert_array_equal(subset.example(1, masks=True)["masks"], MASKS)
    assert subset.class_names == dataset.class_names
    assert dataclasses.replace(dataset, masks=None).subset(np.array([0])).masks is None


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ((png(INSTANCES[:2]), b""), "first: expected 2 masks of 3 x 4 pixels .*got 2 of 2 x 4"),
        ((tuple(encoded(MASKS[0]) for _ in range(3)), ()), "expected 2 masks .*got 3 of 3 x 4"),
        ((b"nothing", b""), "the masks of first: expected a picture"),
        (None, "mine has no masks"),
    ],
)
def test_masks_that_do_not_fit(dataset, masks, message):
    dataset = dataclasses.replace(dataset, masks=masks)
    with pytest.raises(UserError, match=message):
        dataset.example(0, masks=True)
    dataset.example(0)


def test_a_broken_file_is_called_by_its_name(dataset, tmp_path):
    path = tmp_path / "cut.png"
    file = png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    path.write_bytes(file[: len(file) // 2])
    dataset = dataclasses.replace(dataset, images=(b"nothing", path))
    with pytest.raises(UserError, match="first: expected a picture"):
        dataset.image(0)
    with pytest.raises(UserError, match=r"cut\.png: expected a complete picture"):
        dataset.image(1)


def test_lengths_that_differ_are_a_mistake_of_ours(dataset):
    dataset = dataclasses.replace(dataset, images=(b"", b""), masks=(b"", b""))
    for field, value in {
        "names": ("a",),
        "image_ids": np.array([1]),
        "objects": dataset.objects[:1],
        "masks": dataset.masks[:1],
    }.items():
        with pytest.raises(ValueError, match="expected as many of each"):
            dataclasses.replace(dataset, **{field: value})
