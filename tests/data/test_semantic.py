"""Semantic maps from instance masks, and batches of them."""

import dataclasses

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.data import (
    Batches,
    DetectionDataset,
    Objects,
    semantic_dataset,
    semantic_map,
)
from jaxvision.data.builders.fashion_mnist import CLASS_NAMES, EMBEDDED
from jaxvision.data.builders.idx_files import read_split
from jaxvision.data.embedded import embedded_folder
from jaxvision.data.scene_drawing import Garments, draw_scene
from jaxvision.errors import UserError
from jaxvision.train.resident import ResidentData

MAP = np.array([[0, 1, 1], [2, 2, 3]], np.uint8)


def test_by_hand():
    labels = np.array([4, 0, 4])
    expected = [[0, 5, 5], [1, 1, 5]]
    assert semantic_map(MAP, labels).tolist() == expected
    masks = np.arange(1, 4)[:, None, None] == MAP
    assert semantic_map(masks, labels).tolist() == expected
    assert semantic_map(MAP, labels).dtype == semantic_map(masks, labels).dtype == np.uint8


def test_no_objects():
    nothing = np.zeros(0, np.int32)
    assert semantic_map(np.zeros((2, 3), np.uint8), nothing).tolist() == [[0, 0, 0]] * 2
    assert semantic_map(np.zeros((0, 2, 3), bool), nothing).tolist() == [[0, 0, 0]] * 2


def test_of_overlapping_masks_the_later_is_on_top():
    masks = np.array([[[1, 1, 0]], [[0, 1, 1]], [[0, 0, 1]]], bool)
    assert semantic_map(masks, np.array([7, 1, 3])).tolist() == [[8, 2, 4]]


@pytest.mark.parametrize("labels", [[254], [-1]])
def test_labels_that_have_no_number_left(labels):
    with pytest.raises(ValueError, match="expected labels from 0 to 253"):
        semantic_map(np.ones((1, 1), np.uint8), np.array(labels))


def dataset_of(images, masks, objects, class_names):
    return DetectionDataset(
        images=images,
        names=tuple(f"picture {i}" for i in range(len(images))),
        image_ids=np.arange(len(images)),
        objects=tuple(objects),
        class_names=tuple(class_names),
        name="mine",
        split="train",
        source="here",
        masks=masks,
    )


@pytest.fixture(scope="module")
def scenes():
    images, labels = read_split(embedded_folder("fashion_mnist"), EMBEDDED, "test")
    garments = Garments(images, labels.astype(np.int32))
    drawn = [draw_scene(garments, "train", i) for i in range(10)]
    return dataset_of(
        np.stack([scene.image for scene in drawn]),
        np.stack([scene.instances for scene in drawn]),
        [Objects(scene.boxes, scene.labels, np.zeros(len(scene.labels), bool)) for scene in drawn],
        CLASS_NAMES,
    )


def test_a_data_set_of_scenes(scenes):
    dataset = semantic_dataset(scenes)
    assert dataset.images is scenes.images
    assert (dataset.labels.shape, dataset.labels.dtype) == ((10, 128, 128), np.uint8)
    assert dataset.class_names == ("background", *scenes.class_names)
    for i in range(10):
        example = scenes.example(i, masks=True)
        expected = semantic_map(example["masks"], example["labels"])
        np.testing.assert_array_equal(dataset.labels[i], expected)
    assert len(np.unique(dataset.labels)) > 8


def test_batches_on_the_host_and_on_the_device_are_the_same(scenes):
    batches = Batches(semantic_dataset(scenes), batch_size=4, seed=3)
    resident = ResidentData(batches)
    for step in (0, 2, 4):
        batch = batches(step)
        assert batch["label"].shape == (4, 128, 128)
        on_device = resident.select(resident(step), jnp.int32(step))
        assert set(on_device) == set(batch) == {"image", "label", "valid"}
        for name, array in batch.items():
            np.testing.assert_array_equal(on_device[name], array)


def test_a_transform_cannot_write_into_the_data_set(scenes):
    def blank(example, rng):
        example["label"][:] = 255
        return example

    dataset = semantic_dataset(scenes)
    before = dataset.labels.copy()
    assert (Batches(dataset, batch_size=2, transform=blank)(0)["label"] == 255).all()
    np.testing.assert_array_equal(dataset.labels, before)


def test_masks_in_files_are_the_same(scenes):
    pngs = tuple(cv2.imencode(".png", instances)[1].tobytes() for instances in scenes.masks)
    dataset = semantic_dataset(dataclasses.replace(scenes, masks=pngs))
    np.testing.assert_array_equal(dataset.labels, semantic_dataset(scenes).labels)


def test_data_sets_that_have_no_maps(scenes):
    with pytest.raises(UserError, match="mine has no masks"):
        semantic_dataset(dataclasses.replace(scenes, masks=None))
    with pytest.raises(UserError, match="pictures of one size in an array, got files"):
        semantic_dataset(dataclasses.replace(scenes, images=(b"",) * len(scenes)))
