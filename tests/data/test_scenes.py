"""How the scenes of garment_scenes look: drawn one by one, from the pictures in the package."""

import numpy as np
import pytest

from jaxvision.data import scene_drawing, scene_examples
from jaxvision.data.builders.fashion_mnist import EMBEDDED
from jaxvision.data.builders.idx_files import read_split
from jaxvision.data.embedded import embedded_folder
from jaxvision.data.scene_drawing import Draws, Garments, cut_out, draw_scene
from jaxvision.data.scene_examples import SceneEncoder, encode_scenes, numbers_of_split


@pytest.fixture(scope="module")
def garments():
    images, labels = read_split(embedded_folder("fashion_mnist"), EMBEDDED, "test")
    return Garments(images, labels.astype(np.int32))


@pytest.fixture(scope="module")
def scenes(garments):
    return [draw_scene(garments, "train", i) for i in range(100)]


@pytest.fixture(scope="module")
def crowded(garments):
    return [draw_scene(garments, "train", i, number=(8, 8)) for i in range(20)]


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


# Which scene it is


def test_a_scene_is_a_function_of_its_split_and_number(garments, scenes):
    assert same(draw_scene(garments, "train", 7), scenes[7])
    assert not same(draw_scene(garments, "train", 8), scenes[7])
    assert not same(draw_scene(garments, "val", 7), scenes[7])


def test_random_numbers_are_philoxs_words():
    draws, words = (
        Draws(2, 5),
        np.random.Philox(
            key=np.array([0, 2], np.uint64), counter=np.array([0, 0, 5, 0], np.uint64)
        ).random_raw(3),
    )
    assert draws.uniform(1.0, 3.0) == 1 + 2 * (int(words[0]) >> 11) / 2**53
    np.testing.assert_array_equal(draws.uniforms((2, 1)), ((words[1:] >> 11) / 2**53)[:, None])
    grain = Draws(0, 0).grain((100, 101, 3))
    assert grain.shape == (100, 101, 3)
    assert abs(grain.mean()) < 0.02
    assert abs(grain.std() - 1) < 0.02
    assert {Draws(0, i).integer(3) for i in range(50)} == {0, 1, 2}


@pytest.mark.parametrize("processes", [1, 2])
def test_neither_processes_nor_chunks_change_a_byte(garments, scenes, monkeypatch, processes):
    monkeypatch.setattr(scene_examples, "CHUNK", 4)
    monkeypatch.setattr(scene_examples, "CHUNKS_PER_PROCESS", 1)
    encoder = SceneEncoder(garments, np.arange(2000), "train", 128, (1, 8))
    examples = list(encode_scenes(encoder, 11, processes=processes))
    monkeypatch.undo()
    assert len(examples) == 11
    for i, example in enumerate(examples):
        again = encoder.example(i)
        assert example["image"] == again["image"]
        assert example["instances"] == again["instances"]
        np.testing.assert_array_equal(example["boxes"], scenes[i].boxes)
        assert example["labels"] == scenes[i].labels.tolist()


@pytest.mark.parametrize("count", [11_000, 60_000])
def test_splits_share_no_garment(count):
    train, val = (numbers_of_split(split, count).tolist() for split in ("train", "val"))
    assert sorted(train + val) == list(range(count))
    assert len(val) == count // 12
    assert numbers_of_split("test", 40).tolist() == list(range(40))


def test_a_split_is_drawn_from_its_own_pictures():
    """Pictures of three brightnesses stand for the three parts."""
    dress = np.zeros((28, 28, 1), np.uint8)
    dress[4:24, 8:20] = 1
    levels = np.array([100 if i % 12 == 11 else 50 for i in range(24)], np.uint8)

    class Part:
        def __init__(self, levels):
            self.images = dress[None] * levels[:, None, None, None]
            self.labels = (levels // 50).astype(np.int32)

    pictures = {"train": Part(levels), "test": Part(np.full(5, 200, np.uint8))}
    expected = {"train": (50, 22), "val": (100, 2), "test": (200, 5)}
    for split, (level, count) in expected.items():
        encoder = SceneEncoder.of(pictures, split, 128, (1, 8))
        assert (encoder.garments.images.max((1, 2)) == level).all()
        assert len(encoder.numbers) == count
        example = encoder.example(2)
        assert set(example["labels"]) == {level // 50}
        assert set(example["garments"]) <= set(encoder.numbers.tolist())


# What is in it


def test_how_many_garments(scenes):
    numbers = np.array([len(scene.labels) for scene in scenes])
    assert (numbers.min(), numbers.max()) == (0, 8)
    assert 3.5 < numbers.mean() < 4.9
    assert 1 <= (numbers == 0).sum() <= 8  # 3 %
    empty = scenes[int(np.argmin(numbers))]
    assert empty.boxes.shape == (0, 4)
    assert empty.labels.dtype == np.int32
    assert not empty.instances.any()


@pytest.mark.parametrize("number", [1, 3])
def test_exactly_as_many_garments(garments, number):
    for i in range(40):
        assert len(draw_scene(garments, "test", i, number=(number, number)).labels) == number


def test_labels_are_those_of_the_pictures(garments, scenes):
    for scene in scenes:
        np.testing.assert_array_equal(scene.labels, garments.labels[scene.garments])
    labels = np.concatenate([scene.labels for scene in scenes])
    assert np.bincount(labels, minlength=10).min() > 20


@pytest.mark.parametrize("group", ["scenes", "crowded"])
def test_enough_of_each_garment_is_seen(group, request):
    shares = []
    for scene in request.getfixturevalue(group):
        seen = np.bincount(scene.instances.ravel(), minlength=len(scene.labels) + 1)[1:]
        assert len(seen) == len(scene.labels)
        shares += (seen / scene.areas).tolist()
    assert min(shares) >= 0.6
    assert min(shares) < 0.7  # and they do overlap
    assert max(shares) == 1


def test_nothing_hides_more_than_it_may():
    instances = np.zeros((12, 12), np.uint8)
    instances[:, :10] = 1
    whole, part = np.ones((12, 5), bool), np.ones((12, 4), bool)
    find = scene_drawing._find_place
    places = [find(whole, instances, [120], Draws(0, i)) for i in range(30)]
    assert {place[1] for place in places if place} == {6, 7}  # hides 4 or 3 of its 10 columns
    places = [find(part, instances, [120], Draws(0, i)) for i in range(90)]
    assert {place[1] for place in places if place} == set(range(9))
    # 30 of its 150 pixels were hidden before, so 30 more may be: two columns.
    narrow = np.ones((12, 3), bool)
    places = [find(narrow, instances, [150], Draws(0, i)) for i in range(30)]
    assert {place[1] for place in places if place} == {8, 9}


@pytest.mark.parametrize("size", [128, 224])
def test_boxes_are_tight_around_what_is_seen(garments, scenes, size):
    drawn = (
        scenes[:40] if size == 128 else [draw_scene(garments, "val", i, size=224) for i in range(8)]
    )
    longest = []
    for scene in drawn:
        assert scene.image.shape == (size, size, 3)
        assert scene.instances.shape == (size, size)
        assert set(np.unique(scene.instances)) <= set(range(len(scene.labels) + 1))
        for j, box in enumerate(scene.boxes):
            ys, xs = np.nonzero(scene.instances == j + 1)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            if len(ys) == scene.areas[j]:
                longest.append(max(box[2] - box[0], box[3] - box[1]) * 128 / size)
    # The silhouette is 20 to 72 long; its mask has the pixels that it covers by half.
    assert 17 <= min(longest) <= 30
    assert 60 <= max(longest) <= 73


def test_garments_differ_from_the_canvas(garments, scenes):
    """A scene is a canvas that the number of garments doesn't change, and garments in the masks."""
    for i in range(5):
        one = draw_scene(garments, "train", i, number=(1, 1))
        canvas = np.median(one.image[one.instances == 0].astype(int), 0)
        again = np.median(scenes[i].image[scenes[i].instances == 0].astype(int), 0)
        assert np.abs(canvas - again).max() < 40


# Cutting a garment out of its picture


def test_a_silhouette_has_no_holes_and_no_specks():
    picture = np.zeros((28, 28), np.uint8)
    picture[5:25, 8:20] = 200
    picture[10:15, 11:16] = 0  # a white print on a dark shirt
    picture[1, 1] = 90
    grey, silhouette = cut_out(picture)
    assert grey.shape == silhouette.shape == (22, 14)
    assert (silhouette[2:-2, 2:-2] == 1).all()
    assert silhouette.max() <= 1
    assert (grey[7:10, 5:7] < 1).all()  # the print is still white
    assert (grey[:3] > 190).all()  # the margin goes on as the garment, without a dark rim


def test_a_pixel_that_is_covered_in_part_is_no_dark_rim():
    picture = np.zeros((28, 28), np.uint8)
    picture[5:25, 8:20] = 200
    picture[5:25, 20] = 80  # 40 % of it are garment
    grey, silhouette = cut_out(picture)
    assert grey.shape == (22, 15)
    middle = slice(6, 16)
    assert (grey[middle] > 190).all()
    assert (silhouette[middle, 12] > 0.85).all()
    assert (silhouette[middle, 13] > 0.3).all()
    assert (silhouette[middle, 13] < 0.6).all()


def test_thin_parts_stay():
    sandal = np.zeros((28, 28), np.uint8)
    sandal[20:22, 2:26] = 180
    sandal[12:20, 5] = 120  # a strap, one pixel wide
    _, silhouette = cut_out(sandal)
    assert (silhouette[1:9, 4] > 0.5).all()


def test_edges_are_smooth_and_masks_are_half_covered(garments):
    draws = Draws(0, 3)
    for _ in range(10):
        _, colors, alpha = scene_drawing._draw_garment(garments, draws, 1.0)
        assert colors.shape == (*alpha.shape, 3)
        assert alpha.min() == 0
        assert alpha.max() == 1
        between = (alpha > 0.1) & (alpha < 0.9)
        perimeter = 2 * sum(alpha.shape)
        assert between.sum() > 0.3 * perimeter
        assert 0 <= colors.min() <= colors.max() <= 255
