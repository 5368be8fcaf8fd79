"""Pictures move with their objects: by hand, and against masks that were moved pixel by pixel."""

import numpy as np
import pytest

from jaxvision.data import color_jitter, compose, random_erasing
from jaxvision.data.color import hsv_jitter, photometric_distort
from jaxvision.data.detection_geometry import (
    Keep,
    Placement,
    centers_within,
    flip,
    masks_to_boxes,
    place,
)
from jaxvision.data.detection_transforms import (
    crop,
    drop_difficult,
    iou_crop_box,
    jittered,
    letterbox,
    pad_to_multiple,
    random_flip,
    random_iou_crop,
    random_zoom_out,
    resize_shortest_side,
    resize_to,
    scale_jitter,
)
from jaxvision.data.mosaic import joined, mosaic


def scene(height=40, width=60, count=3, seed=0, masks=True):
    """Objects are rectangles of one colour each, on black, so that boxes, masks and picture agree:
    object j is painted 255 in channel j % 3, wholly visible."""
    rng = np.random.default_rng([seed, height, width, count])
    image = np.zeros((height, width, 3), np.uint8)
    boxes, all_masks = np.zeros((count, 4), np.float32), np.zeros((count, height, width), bool)
    for j in range(count):
        # Each in a column of its own, so that none hides another.
        left, right = j * width // count, (j + 1) * width // count
        x1, x2 = left + int(rng.integers(0, 3)), right - int(rng.integers(0, 3))
        y1 = int(rng.integers(0, height // 2))
        y2 = int(rng.integers(y1 + 4, height + 1))
        image[y1:y2, x1:x2, j % 3] = 255
        boxes[j], all_masks[j, y1:y2, x1:x2] = (x1, y1, x2, y2), True
    example = {
        "image": image,
        "boxes": boxes,
        "labels": np.arange(count, dtype=np.int32),
        "difficult": np.arange(count) % 2 == 1,
        "image_id": 7,
    }
    return {**example, "masks": all_masks} if masks else example


def contract(example, *, masks=True):
    """Whatever happens: types, lengths, and boxes with area within the picture."""
    image, boxes = example["image"], example["boxes"]
    height, width = image.shape[:2]
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    assert (boxes.dtype, boxes.shape[1:]) == (np.float32, (4,))
    assert example["labels"].dtype == np.int32
    assert example["difficult"].dtype == np.bool_
    assert len(boxes) == len(example["labels"]) == len(example["difficult"])
    assert np.isfinite(boxes).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert example["image_id"] == 7
    assert ("masks" in example) == masks
    if masks:
        assert example["masks"].dtype == np.bool_
        assert example["masks"].shape == (len(boxes), height, width)
        assert example["masks"].any(axis=(1, 2)).all()


# Placements


def test_a_letterbox_by_hand():
    example = scene(20, 40)
    got = letterbox((80, 80))(example, np.random.default_rng(0))
    contract(got)
    assert (got["image"][:20] == 114).all()
    assert (got["image"][60:] == 114).all()
    np.testing.assert_array_equal(got["boxes"], example["boxes"] * 2 + np.float32([0, 20, 0, 20]))
    assert not got["masks"][:, :20].any()
    np.testing.assert_array_equal(got["masks"][:, 20:60:2, ::2], example["masks"])
    corner = letterbox((80, 80), center=False, fill=(1, 2, 3))(example, np.random.default_rng(0))
    np.testing.assert_array_equal(corner["image"][:40], got["image"][20:60])
    assert (corner["image"][40:] == [1, 2, 3]).all()
    np.testing.assert_array_equal(corner["boxes"], example["boxes"] * 2)


def test_placing_moves_boxes_exactly_as_pixels():
    """Scales that are whole numbers, so that a box around the moved mask must be the moved box."""
    rng = np.random.default_rng(0)
    seen = 0
    for seed in range(200):
        example = scene(24, 30, count=int(rng.integers(0, 5)), seed=seed)
        grow = rng.integers(1, 4, 2)
        canvas = tuple(int(n) for n in rng.integers(10, 90, 2))
        offset = tuple(int(n) for n in rng.integers(-60, 40, 2))
        placement = Placement((24, 30), (24 * int(grow[0]), 30 * int(grow[1])), canvas, offset)
        got = place(example, placement)
        contract(got)
        assert got["image"].shape[:2] == canvas
        np.testing.assert_array_equal(got["boxes"], masks_to_boxes(got["masks"]))
        seen += len(got["boxes"])
        # Reference: every pixel of the canvas looked up in the picture.
        y = (np.arange(canvas[0]) - offset[0]) // grow[0]
        x = (np.arange(canvas[1]) - offset[1]) // grow[1]
        inside = ((y >= 0) & (y < 24))[:, None] & ((x >= 0) & (x < 30))
        for mask, label in zip(got["masks"], got["labels"], strict=True):
            looked_up = example["masks"][label][np.clip(y, 0, 23)][:, np.clip(x, 0, 29)]
            np.testing.assert_array_equal(mask, looked_up & inside)
        assert (got["image"][~inside] == 114).all()
    assert seen > 100


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True)])
def test_flips_move_boxes_as_pixels(horizontal, vertical):
    example = scene()
    got = flip(example, horizontal=horizontal, vertical=vertical)
    contract(got)
    step = slice(None, None, -1 if vertical else 1), slice(None, None, -1 if horizontal else 1)
    np.testing.assert_array_equal(got["image"], example["image"][step])
    np.testing.assert_array_equal(got["boxes"], masks_to_boxes(got["masks"]))
    again = flip(got, horizontal=horizontal, vertical=vertical)
    for name, value in example.items():
        np.testing.assert_array_equal(again[name], value)


def test_flips_happen_with_their_probability():
    example, counts = scene(), np.zeros(2)
    for seed in range(300):
        image = random_flip(0.3, 0.6)(example, np.random.default_rng(seed))["image"]
        counts += [
            not np.array_equal(image.any(axis=(0, 2)), example["image"].any(axis=(0, 2))),
            not np.array_equal(image.any(axis=(1, 2)), example["image"].any(axis=(1, 2))),
        ]
    assert np.abs(counts / 300 - (0.3, 0.6)).max() < 0.1


def test_boxes_drawn_anew_around_what_is_left_of_a_mask():
    """A triangle whose corner is cut off: its box shrinks further than the cut."""
    mask = np.tril(np.ones((10, 10), bool))
    example = scene(10, 10, count=1)
    example |= {"masks": mask[None], "boxes": np.array([[0, 0, 10, 10]], np.float32)}
    upper = Placement((10, 10), (10, 10), (4, 10))
    assert place(example, upper)["boxes"].tolist() == [[0, 0, 10, 4]]
    got = place(example, upper, keep=Keep(boxes_from_masks=True))
    assert got["boxes"].tolist() == [[0, 0, 4, 4]]
    right = Placement((10, 10), (10, 10), (4, 4), (0, -6))
    assert len(place(example, right)["boxes"]) == 0  # the box is there, but not a pixel of it


# Random transforms

RANDOM = {
    "flip": random_flip(0.5, 0.5),
    "scale jitter": scale_jitter((32, 48), (0.3, 2.5)),
    "scale jitter, spread": scale_jitter((50, 50), (0.1, 1.0), spread=True),
    "zoom out": random_zoom_out((1.0, 2.5)),
    "IoU crop": random_iou_crop(),
    "IoU crop, empty": random_iou_crop(allow_empty=True),
    "letterbox": letterbox((33, 57)),
    "shortest side": resize_shortest_side(30, 40),
    "resize": resize_to((17, 90), antialias=True),
    "pad": pad_to_multiple(32),
    "distort": photometric_distort(p=0.9),
    "hsv": hsv_jitter(),
    "jitter": color_jitter(0.3, 0.3, 0.3, 0.1),
    "erasing": random_erasing(),
    "easy": drop_difficult(),
    "all": compose(
        photometric_distort(),
        random_zoom_out((1.0, 2.0)),
        random_iou_crop(),
        random_flip(),
        scale_jitter((64, 64), (0.5, 1.5)),
        hsv_jitter(),
    ),
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("masks", [True, False])
def test_every_transform_keeps_the_contract(name, masks):
    """Of scenes with 0 to 4 objects; it draws from its generator alone, and changes no input."""
    transform, different = RANDOM[name], set()
    for seed in range(24):
        example = scene(37, 53, count=seed % 5, seed=seed, masks=masks)
        before = {key: np.copy(value) for key, value in example.items()}
        got = transform(example, np.random.default_rng(seed))
        contract(got, masks=masks)
        for key, value in before.items():
            np.testing.assert_array_equal(example[key], value)
        again = transform(example, np.random.default_rng(seed))
        for key, value in got.items():
            np.testing.assert_array_equal(again[key], value)
        if transform.output_size is not None:
            assert got["image"].shape[:2] == transform.output_size((37, 53))
        different.add(got["image"].tobytes())
    assert len(different) > 10


def test_output_sizes():
    assert letterbox((30, 50)).output_size((7, 9)) == (30, 50)
    assert resize_shortest_side(800, 1333).output_size((375, 500)) == (800, 1066)
    assert resize_shortest_side(800, 1333).output_size((500, 1500)) == (444, 1333)
    assert pad_to_multiple(32).output_size((33, 64)) == (64, 64)
    both = compose(random_flip(), color_jitter(0.1), resize_to((10, 20)), pad_to_multiple(16))
    assert both.output_size((5, 5)) == (16, 32)
    assert compose().output_size((5, 6)) == (5, 6)
    for random in (random_iou_crop(), random_zoom_out(), compose(random_flip(), random_iou_crop())):
        assert random.output_size is None


def test_scale_jitter_covers_scales_and_places():
    starts, scales = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        placement = jittered(10, 20, (40, 40), rng, scale=(0.5, 2.0), spread=True)
        assert placement.canvas == (40, 40)
        scales.append(placement.resized[1] / 40)
        if placement.resized[1] < 40:
            starts.append(placement.offset[1] / (40 - placement.resized[1]))
        elif placement.resized[1] > 40:
            assert -(placement.resized[1] - 40) <= placement.offset[1] <= 0
    assert min(scales) < 0.53
    assert max(scales) > 1.95
    assert min(starts) == 0  # both ends come up
    assert max(starts) == 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert jittered(9, 9, (9, 9), rng, scale=(0.2, 0.9), spread=False).offset == (0, 0)


def test_iou_crops_hold_what_they_promise():
    example = scene(60, 80, count=4, masks=False)
    kept, crops = 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        box = iou_crop_box(60, 80, example["boxes"], rng, options=(0.3,))
        if box is None:
            continue
        top, left, height, width = box
        assert 0 <= top <= top + height <= 60
        assert 0 <= left <= left + width <= 80
        assert 0.5 <= width / height <= 2
        inside = centers_within(example["boxes"], box)
        got = crop(example, box, keep=Keep())
        np.testing.assert_array_equal(got["labels"], example["labels"][inside])
        # The one with the best IoU has at least 0.3 with the crop.
        visible = got["boxes"][:, 2:] - got["boxes"][:, :2]
        sides = example["boxes"][inside][:, 2:] - example["boxes"][inside][:, :2]
        common = visible.prod(axis=1)
        ious = common / (sides.prod(axis=1) + width * height - common)
        assert ious.max() >= 0.3 - 1e-6
        kept, crops = kept + len(got["boxes"]), crops + 1
    assert crops > 100
    assert kept > crops  # more than one sometimes


def test_iou_crops_that_fit_nowhere_leave_the_picture_alone():
    nothing = iou_crop_box(
        40, 40, np.array([[0, 0, 2, 2]], np.float32), np.random.default_rng(0), options=(0.9,)
    )
    assert nothing is None
    empty = iou_crop_box(
        40, 40, np.zeros((0, 4), np.float32), np.random.default_rng(0), options=(0.9,)
    )
    assert empty is not None
    example = scene(40, 40, count=1)
    lost = [
        not len(
            random_iou_crop(options=(0.0,), allow_empty=allowed, scale=(0.3, 0.4))(
                example, np.random.default_rng(seed)
            )["boxes"]
        )
        for allowed in (True, False)
        for seed in range(60)
    ]
    assert any(lost[:60])
    assert not any(lost[60:])


# Mosaic


def test_a_mosaic_by_hand():
    """Four pictures as large as the canvas, at half its scale around its middle: they just fit."""
    examples = [scene(20, 40, count=i, seed=i) for i in range(4)]
    for example, level in zip(examples, (10, 20, 30, 40), strict=True):
        example["image"][:] = level
    got = joined(examples, (20, 40), (10, 20), [0.5] * 4)
    contract(got)
    assert got["image"][::10, ::20, 0].tolist() == [[10, 20], [30, 40]]
    assert got["labels"].tolist() == [0, 0, 1, 0, 1, 2]
    offsets = np.array([[20, 0, 20, 0]] + [[0, 10, 0, 10]] * 2 + [[20, 10, 20, 10]] * 3)
    boxes = np.concatenate([example["boxes"] for example in examples]) / 2 + offsets
    np.testing.assert_array_equal(got["boxes"], boxes)
    # Inner corners meet at the point, whatever the scale; what is missing is grey.
    small = joined(examples, (20, 40), (8, 30), [0.25, 0.1, 0.1, 0.25])
    assert small["image"][7, 29, 0] == 10
    assert small["image"][8, 30, 0] == 40
    assert small["image"][2, 0, 0] == small["image"][19, 39, 0] == 114


def test_a_mosaic_moves_boxes_as_pixels_and_draws_all_places():
    mix, points = mosaic((48, 64), keep=Keep()), []
    others = [scene(48, 64, count=3, seed=seed) for seed in range(5)]
    for seed in range(40):
        rng = np.random.default_rng(seed)
        got = mix(others[0], lambda rng=rng: others[rng.integers(5)], rng)
        contract(got)
        assert got["image"].shape == (48, 64, 3)
        # The scales are not whole numbers here, so masks are right to a pixel.
        assert abs(got["boxes"] - masks_to_boxes(got["masks"])).max(initial=0) <= 1
        points.append(len(got["boxes"]))
    assert max(points) > 6
    assert (
        mosaic((9, 9), p=0.0)(others[0], lambda: others[1], np.random.default_rng(0)) is others[0]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random_flip(1.5), "from 0 to 1, got 1.5"),
        (lambda: letterbox((0, 9)), "at least 1 pixel each"),
        (lambda: scale_jitter((9, 9), (0.0, 1.0)), "range of scale above 0"),
        (lambda: scale_jitter((9, 9), (2.0, 1.0)), "lower bound first"),
        (lambda: random_iou_crop(scale=(0.3, 1.2)), "up to 1, lower"),
        (lambda: random_zoom_out((0.5, 2.0)), "range of sides from 1,"),
        (lambda: resize_shortest_side(800, 700), "1 <= shortest <= longest"),
        (lambda: pad_to_multiple(0), "at least 1, got 0"),
        (lambda: Keep(min_visible=1.5), "min_visible from 0 to 1"),
        (lambda: mosaic((9, 9), center=(0.0, 0.5)), "center within 0 and 1"),
        (lambda: hsv_jitter(value=0.9), "factors of at least 1"),
        (lambda: photometric_distort((-1.0, 1.0)), "range of brightness"),
    ],
)
def test_impossible_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
