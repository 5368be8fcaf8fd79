"""Selective Search: the similarities by hand, grouping against a slow reference, the boxes."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxvision.data.grouping import Hierarchy, bin_pixels, describe_regions, group_regions
from jaxvision.data.selective_search import (
    MODES,
    Strategy,
    in_color_space,
    rank_boxes,
    region_hierarchies,
    selective_search,
)


def grouped(labels, values, kinds):
    """The hierarchy of regions in a picture of one channel."""
    labels, image = np.array(labels, np.int32), np.array(values, np.uint8)[..., None]
    return group_regions([described(labels, image)], [kinds])[0]


def described(labels, image):
    return describe_regions(labels, bin_pixels(image))


def random_regions(seed, *, channels=3, tiles=(4, 5)):
    """A picture of noisy tiles of several sizes, and its tiles as regions."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(tiles[0]), rng.integers(1, 5, tiles[0]))
    columns = np.repeat(np.arange(tiles[1]), rng.integers(1, 5, tiles[1]))
    labels = (rows[:, None] * tiles[1] + columns).astype(np.int32)
    means = rng.integers(0, 256, (labels.max() + 1, channels))
    noise = rng.normal(0, 25, (*labels.shape, channels))
    return labels, np.clip(means[labels] + noise, 0, 255).astype(np.uint8)


def picture_with_squares(side=64):
    picture = np.full((side, side, 3), 40, np.uint8)
    picture[10:34, 6:30] = (200, 60, 50)
    picture[30:54, 38:60] = (60, 180, 70)
    return picture


# The four similarities, worked by hand


def test_color_is_the_intersection_of_histograms():
    # Bins of 25: 0 is in bin 0, 100 in 9, 255 in 24. Half of each region is in bin 0.
    hierarchy = grouped([[0, 0, 1, 1]], [[0, 100, 0, 255]], "C")
    assert hierarchy.similarities.tolist() == [0.5]


def test_size_and_fill_are_shares_of_the_picture():
    labels = [[0, 1, 2], [1, 1, 1]]
    black = np.zeros((2, 3))
    # 0 and 1 have 5 of 6 pixels, and their box has all 6; 2 then fills it.
    np.testing.assert_allclose(grouped(labels, black, "S").similarities, [1 - 5 / 6, 0], atol=1e-7)
    np.testing.assert_allclose(grouped(labels, black, "F").similarities, [1 - 1 / 6, 1], atol=1e-7)
    both = grouped(labels, black, "CSF").similarities
    np.testing.assert_allclose(both, [1 + 1 / 6 + 5 / 6, 1 + 0 + 1], atol=1e-6)


def test_a_unions_histogram_is_weighted_by_sizes():
    # Region 0 is all of bin a, region 1 two thirds a and one b, region 2 half b and half c.
    hierarchy = grouped([[0, 1, 1, 1, 2, 2]], [[0, 0, 0, 100, 100, 255]], "C")
    assert hierarchy.merges.tolist() == [[0, 1], [3, 2]]
    np.testing.assert_allclose(hierarchy.similarities, [2 / 3, 1 / 4], atol=1e-7)


def texture_bins(image):
    """Each pixel's bin of texture, from 0 to 9, for each direction, of a picture of one channel."""
    bins = bin_pixels(image).bins[1:].reshape(8, *image.shape[:2])
    return bins - 25 - 10 * np.arange(8)[:, None, None]


def test_texture_is_by_direction_as_a_share_of_the_steepest_slope():
    step = np.zeros((9, 20, 1), np.uint8)
    step[:, 10:] = 200  # brighter to the right: the direction of 0 degrees
    bins = texture_bins(step)
    assert bins[:, 4, 10].tolist() == [9, 7, 0, 0, 0, 0, 0, 7]  # cos 45 degrees is 0.707
    assert not bins[:, :, :5].any()
    assert texture_bins(step[:, ::-1])[:, 4, 9].tolist() == [0, 0, 0, 7, 9, 7, 0, 0]
    turned = texture_bins(step.transpose(1, 0, 2))  # brighter downwards: 90 degrees
    assert turned[:, 10, 4].tolist() == [0, 7, 9, 7, 0, 0, 0, 0]


def test_texture_is_the_intersection_of_histograms():
    # Each of the 8 directions' parts sums to 1/8 of the histogram. A step between the regions:
    # region 0 (left, steepest in its last column) and 1 see the same slopes, mirrored.
    image = np.zeros((1, 20, 1), np.uint8)
    image[:, 10:] = 200
    labels = np.repeat(np.array([[0, 1]], np.int32), 10, axis=1)
    texture = described(labels, image).texture
    assert texture.shape == (2, 80)
    np.testing.assert_allclose(texture.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(texture[0], texture[1], atol=1e-6)
    assert grouped(labels, image[..., 0], "T").similarities[0] == pytest.approx(1)
    image[:, 15:] = 0  # a second slope, downwards, in region 1 alone
    texture = described(labels, image).texture
    expected = np.minimum(*texture).sum()
    assert expected < 0.99
    assert grouped(labels, image[..., 0], "T").similarities[0] == pytest.approx(expected)


# Grouping


class SlowGrouping:
    """The paper's algorithm 1 in the plainest words, in float64, that merges what it is told."""

    def __init__(self, labels, image, kinds):
        start = described(labels, image)
        self.kinds, self.area = kinds, labels.size
        self.regions = [
            SimpleNamespace(
                alive=True,
                size=float(start.sizes[i]),
                box=start.boxes[i].tolist(),
                color=start.color[i].astype(np.float64),
                texture=start.texture[i].astype(np.float64),
                pixels=labels == i,
            )
            for i in range(len(start))
        ]

    def touch(self, a, b):
        grown = np.pad(a.pixels, 1)
        grown = grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]
        return bool((grown & b.pixels).any())

    def union_box(self, a, b):
        return [*map(min, a.box[:2], b.box[:2]), *map(max, a.box[2:], b.box[2:])]

    def similarity(self, a, b):
        x1, y1, x2, y2 = self.union_box(a, b)
        values = {
            "C": np.minimum(a.color, b.color).sum(),
            "T": np.minimum(a.texture, b.texture).sum(),
            "S": 1 - (a.size + b.size) / self.area,
            "F": 1 - ((x2 - x1) * (y2 - y1) - a.size - b.size) / self.area,
        }
        return sum(values[kind] for kind in self.kinds)

    def pairs(self):
        """The similarity of each two neighbours."""
        alive = [i for i, region in enumerate(self.regions) if region.alive]
        return {
            (i, j): self.similarity(self.regions[i], self.regions[j])
            for i in alive
            for j in alive
            if i < j and self.touch(self.regions[i], self.regions[j])
        }

    def merge(self, i, j):
        a, b = self.regions[i], self.regions[j]
        a.alive = b.alive = False
        union = {"alive": True, "size": a.size + b.size, "pixels": a.pixels | b.pixels}
        for name in ("color", "texture"):
            mean = (a.size * getattr(a, name) + b.size * getattr(b, name)) / (a.size + b.size)
            union[name] = mean
        self.regions.append(SimpleNamespace(box=self.union_box(a, b), **union))


def test_grouping_is_that_of_a_slow_reference():
    kinds = ["CTSF", "TSF", "C", "T", "F", "S", "CT", "SF"]
    shapes = [(3, (4, 5)), (1, (3, 4)), (3, (1, 9)), (1, (1, 1)), (3, (5, 4))]
    cases = [
        (*random_regions(7 * i + j, channels=channels, tiles=tiles), kind)
        for i, (channels, tiles) in enumerate(shapes)
        for j, kind in enumerate(kinds)
    ]
    # All together: groupings of different sizes and channels share a lockstep.
    hierarchies = group_regions(
        [described(labels, image) for labels, image, _ in cases],
        [kind for *_, kind in cases],
    )
    for (labels, image, kind), hierarchy in zip(cases, hierarchies, strict=True):
        slow = SlowGrouping(labels, image, kind)
        for (a, b), value in zip(hierarchy.merges, hierarchy.similarities, strict=True):
            pairs = slow.pairs()
            # Of the most similar pairs: which of them, where there are several, rounding says.
            assert max(pairs.values()) == pytest.approx(value, abs=1e-5)
            assert pairs[min(a, b), max(a, b)] == pytest.approx(value, abs=1e-5)
            slow.merge(a, b)
        assert hierarchy.boxes.tolist() == [region.box for region in slow.regions]
        assert sum(region.alive for region in slow.regions) == 1


def test_of_equally_similar_pairs_the_first_in_the_picture_goes_first():
    hierarchy = grouped([[0, 1, 2, 3]], np.zeros((1, 4)), "C")
    assert hierarchy.merges.tolist() == [[0, 1], [4, 2], [5, 3]]
    assert hierarchy.similarities.tolist() == [1, 1, 1]


def test_a_hierarchy_halves_nothing_and_loses_nothing():
    labels, image = random_regions(0, tiles=(5, 6))
    (hierarchy,) = group_regions([described(labels, image)], ["CTSF"])
    n = labels.max() + 1
    assert (len(hierarchy.boxes), len(hierarchy.merges)) == (2 * n - 1, n - 1)
    for step, (a, b) in enumerate(hierarchy.merges):
        assert max(a, b) < n + step  # made before
        union = hierarchy.boxes[n + step]
        np.testing.assert_array_equal(union[:2], np.minimum(*hierarchy.boxes[[a, b], :2]))
        np.testing.assert_array_equal(union[2:], np.maximum(*hierarchy.boxes[[a, b], 2:]))
    parts = hierarchy.merges.ravel()
    assert sorted(parts) == list(range(2 * n - 2))  # each is part of one union, but for the last
    assert hierarchy.boxes[-1].tolist() == [0, 0, labels.shape[1], labels.shape[0]]


def test_a_level_has_as_many_regions_as_asked_for_with_their_boxes():
    labels, image = random_regions(1, tiles=(4, 4))
    (hierarchy,) = group_regions([described(labels, image)], ["CTSF"])
    np.testing.assert_array_equal(hierarchy.level(16), labels)
    assert (hierarchy.level(1) == 30).all()
    for count in range(1, 17):
        level = hierarchy.level(count)
        numbers = np.unique(level)
        assert len(numbers) == count
        assert numbers.max() == (31 - count if count < 16 else 15)
        for number in numbers:
            ys, xs = np.nonzero(level == number)
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert hierarchy.boxes[number].tolist() == box
    for count in (0, 17):
        with pytest.raises(ValueError, match="from 1 to 16"):
            hierarchy.level(count)


# The search


def test_modes_are_those_of_the_paper():
    assert {mode: len(strategies) for mode, strategies in MODES.items()} == {
        "single": 1,
        "fast": 8,
        "quality": 80,
    }
    assert MODES["single"] == [Strategy("HSV", 100, "CTSF")]
    assert set(MODES["fast"]) < set(MODES["quality"])


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("rgI", [182, 36, 88]),  # 255 * 200 / 280, 255 * 40 / 280; 0.299 * 200 + 0.701 * 40
        ("I", [88]),
        ("HSV", [0, 204, 200]),  # red; 255 * (200 - 40) / 200
        ("H", [0]),
    ],
)
def test_color_spaces_by_hand(space, expected):
    image = np.array([[[200, 40, 40]]], np.uint8)
    assert in_color_space(image, space)[0, 0].tolist() == expected
    black = in_color_space(np.zeros((2, 3, 3), np.uint8), space)
    assert (black.shape[:2], black.any()) == ((2, 3), False)


def test_hue_uses_all_bins_and_lab_keeps_grey_grey():
    blue = np.array([[[0, 0, 255]]], np.uint8)
    assert in_color_space(blue, "H").item() == pytest.approx(255 * 240 / 360, abs=1)
    grey = np.full((1, 1, 3), 119, np.uint8)
    assert in_color_space(grey, "Lab")[0, 0].tolist() == [128, 128, 128]
    with pytest.raises(ValueError, match="got 'XYZ'"):
        in_color_space(grey, "XYZ")


@pytest.mark.parametrize("mode", ["single", "fast"])
def test_it_finds_what_stands_out(mode):
    boxes = selective_search(picture_with_squares(), mode=mode)
    assert boxes.dtype == np.float32
    found = {tuple(box) for box in boxes.tolist()}
    assert len(found) == len(boxes), "no box comes twice"
    for box in ((0, 0, 64, 64), (6, 10, 30, 34), (38, 30, 60, 54)):
        assert any(np.abs(np.subtract(box, other)).max() <= 1 for other in found), box


def test_the_same_picture_gives_the_same_boxes_and_a_seed_another_order():
    _, picture = random_regions(3, tiles=(12, 12))
    boxes = selective_search(picture)
    np.testing.assert_array_equal(selective_search(picture.copy()), boxes)
    np.testing.assert_array_equal(selective_search(picture, max_boxes=7), boxes[:7])
    other = selective_search(picture, seed=1)
    assert not np.array_equal(other, boxes)
    assert {tuple(box) for box in other.tolist()} == {tuple(box) for box in boxes.tolist()}


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5), (32, 48)])
def test_a_picture_of_one_color_is_one_box(shape, mode):
    for color in (0, 255, (10, 200, 30)):
        picture = np.empty((*shape, 3), np.uint8)
        picture[:] = color
        assert selective_search(picture, mode=mode).tolist() == [[0, 0, shape[1], shape[0]]]


def test_boxes_are_inside_the_picture_and_hold_something():
    for seed in range(3):
        _, image = random_regions(seed, channels=1, tiles=(9, 14))
        picture = np.repeat(image, 3, axis=-1)  # grey: hue and saturation are 0
        h, w = picture.shape[:2]
        boxes = selective_search(picture, mode="quality")
        assert len(boxes) > 10
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (w, h)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_strategies_that_share_a_segmentation_group_it_differently():
    _, picture = random_regions(5, tiles=(14, 14))
    hierarchies = region_hierarchies(picture, MODES["fast"])
    assert len(hierarchies) == 8
    np.testing.assert_array_equal(hierarchies[0].labels, hierarchies[1].labels)
    assert not np.array_equal(hierarchies[0].merges, hierarchies[1].merges)
    # One at a time gives the same as all in lockstep.
    for strategy, hierarchy in zip(MODES["fast"], hierarchies, strict=True):
        (alone,) = region_hierarchies(picture, [strategy])
        np.testing.assert_array_equal(alone.merges, hierarchy.merges)


def test_the_rank_is_the_position_from_the_top_times_chance():
    labels, no_merges = np.zeros((9, 9), np.int32), np.zeros((0, 2), np.int32)
    rng = np.random.default_rng(0)
    numbers = [rng.integers(0, 9, (5, 4)), rng.integers(0, 9, (3, 4))]
    numbers[1][0] = numbers[0][2]  # a box of both
    parts = [
        Hierarchy(labels, n.astype(np.int32), no_merges, np.zeros(0, np.float32)) for n in numbers
    ]
    chance = np.random.Philox(7).random_raw(8) / 2**64
    values = chance * [5, 4, 3, 2, 1, 3, 2, 1]
    order = np.argsort(values)
    expected = list(dict.fromkeys(tuple(np.concatenate(numbers)[i]) for i in order))
    assert rank_boxes(parts, seed=7).tolist() == [list(box) for box in expected]
    assert len(expected) == 7


def test_large_regions_come_early_but_not_all_of_them():
    _, picture = random_regions(8, tiles=(16, 16))
    boxes = selective_search(picture)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    half = len(boxes) // 2
    assert areas[:half].mean() > 1.3 * areas[half:].mean()
    assert areas[: half // 4].min() < np.median(areas)
