"""Augmentation of pictures with boxes and masks against torchvision's transforms v2."""

import numpy as np
import pytest
import torch

from jaxvision.data import color
from jaxvision.data import detection_transforms as ours
from jaxvision.data.detection_geometry import (
    Keep,
    Placement,
    centers_within,
    cut,
    flip,
    masks_to_boxes,
    place,
    shortest_side_placement,
)
from jaxvision.data.images import to_picture

from .torchvision_cpu import torchvision

v2 = torchvision.transforms.v2
F = v2.functional
SIZES = [(97, 143), (143, 97), (60, 60), (33, 200)]


def scene(height, width, count=6, seed=0):
    """Waves with noise; objects are ellipses, and boxes are drawn around them."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 30) + y / rng.uniform(3, 30)) for _ in range(3)]
    image = 128 + 90 * np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    centers = rng.random((count, 2)) * (height, width)
    radii = rng.uniform(3, min(height, width) / 3, (count, 2))
    masks = [
        ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 < 1
        for center, radius in zip(centers, radii, strict=True)
    ]
    masks = np.array(masks, bool).reshape(count, height, width)
    return {
        "image": np.clip(image, 0, 255).astype(np.uint8),
        "boxes": masks_to_boxes(masks),
        "labels": np.arange(count, dtype=np.int32),
        "difficult": np.zeros(count, bool),
        "masks": masks,
    }


def theirs_of(example):
    size = example["image"].shape[:2]
    return {
        "image": torchvision.tv_tensors.Image(
            torch.from_numpy(np.ascontiguousarray(example["image"])).permute(2, 0, 1)
        ),
        "boxes": torchvision.tv_tensors.BoundingBoxes(
            torch.from_numpy(example["boxes"]), format="XYXY", canvas_size=size
        ),
        "labels": torch.from_numpy(example["labels"].astype(np.int64)),
        "masks": torchvision.tv_tensors.Mask(torch.from_numpy(example["masks"])),
    }


def apply_all(function, example):
    """A functional of torchvision's, to picture, boxes and masks."""
    return {
        name: function(value) if name != "labels" else value
        for name, value in theirs_of(example).items()
    }


def check_equal(got, expected, *, levels=0, masks=True):
    image = expected["image"].permute(1, 2, 0).numpy()
    assert got["image"].shape == image.shape
    assert np.abs(got["image"].astype(int) - image).max(initial=0) <= levels
    np.testing.assert_allclose(got["boxes"], expected["boxes"].numpy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(got["labels"], expected["labels"].numpy())
    if masks:
        np.testing.assert_array_equal(got["masks"], expected["masks"].numpy())


def sanitized(expected, min_size=1.0):
    return v2.SanitizeBoundingBoxes(min_size=min_size)(expected)


# Without chance


@pytest.mark.parametrize("size", SIZES)
def test_flips(size):
    example = scene(*size)
    check_equal(flip(example, horizontal=True), apply_all(F.horizontal_flip, example))
    check_equal(flip(example, vertical=True), apply_all(F.vertical_flip, example))


@pytest.mark.parametrize("target", [(64, 64), (200, 150), (97, 143), (31, 300)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resizing(target, antialias):
    """Pillow and torchvision's tensors round differently: a grey level. Masks need whole ratios or
    the float32 scale of torch's "nearest" moves some edge by a pixel."""
    for size in SIZES:
        example = scene(*size)
        got = ours.resize_to(target, antialias=antialias)(example, np.random.default_rng(0))
        expected = apply_all(lambda x: F.resize(x, list(target), antialias=antialias), example)
        kept = got["labels"]
        assert len(kept) >= 5  # where a mask lost its last pixel the object is gone
        expected = {k: v[kept] if k != "image" else v for k, v in expected.items()}
        check_equal(got, expected, levels=1, masks=False)
        assert (got["masks"] != expected["masks"].numpy()).mean() < 0.002


def test_shortest_sides_are_those_of_the_detection_models():
    """Sizes, boxes and pictures of GeneralizedRCNNTransform; it works on floats, so to half a grey
    level and what OpenCV's fixed-point weights add."""
    resize = torchvision.models.detection.transform.GeneralizedRCNNTransform(
        80, 133, [0.0] * 3, [1.0] * 3
    )
    for size in SIZES:
        example = scene(*size)
        got = ours.resize_shortest_side(80, 133)(example, np.random.default_rng(0))
        values = torch.from_numpy(example["image"]).permute(2, 0, 1).float()
        target = {"boxes": torch.from_numpy(example["boxes"])}
        image, target = resize.resize(values, target)
        image = image.permute(1, 2, 0).numpy()
        assert got["image"].shape == image.shape
        assert np.abs(got["image"] - image).max() <= 1.0
        np.testing.assert_allclose(got["boxes"], target["boxes"].numpy(), rtol=1e-5, atol=1e-4)


def test_shortest_sides_are_rounded_as_the_detection_models_do():
    rng = np.random.default_rng(0)
    short = 0
    for _ in range(400):
        h, w = (int(n) for n in rng.integers(1, 900, 2))
        shortest = int(rng.integers(1, 300))
        longest = shortest + int(rng.integers(0, 300))
        scale = min(shortest / min(h, w), longest / max(h, w))
        if min(h, w) * scale < 1:
            continue  # torch refuses a side of 0; ours is at least 1
        expected = torch.nn.functional.interpolate(
            torch.empty(1, 0 + 1, h, w), scale_factor=scale, recompute_scale_factor=True
        )
        got = shortest_side_placement(h, w, shortest, longest).canvas
        assert got == tuple(expected.shape[2:])
        short += min(got) == shortest - 1
    assert short > 0  # the rounding of the scale shows


@pytest.mark.parametrize("seed", range(10))
def test_crops_and_padding(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(20, 90, 2))
    example = scene(height, width, seed=seed)
    top, left = (int(n) for n in rng.integers(0, 15, 2))
    h, w = int(rng.integers(3, height - top)), int(rng.integers(3, width - left))
    size = height, width
    got = place(example, Placement(size, size, (h, w), (-top, -left)), keep=Keep(min_size=1.0))
    expected = sanitized(apply_all(lambda x: F.crop(x, top, left, h, w), example))
    has_pixels = expected["masks"].any(dim=2).any(dim=1)
    expected = {k: v[has_pixels] if k != "image" else v for k, v in expected.items()}
    check_equal(got, expected)

    canvas = height + top + 3, width + left + 5
    got = place(example, Placement(size, size, canvas, (top, left)), fill=114)
    fills = {torchvision.tv_tensors.Image: 114, "others": 0}
    pads = v2.Pad([left, top, 5, 3], fill=fills)
    check_equal(got, pads(theirs_of(example)))


def test_what_is_too_small_goes():
    rng = np.random.default_rng(0)
    for min_size in (1.0, 4.0, 12.0):
        corners = rng.random((300, 2, 2)) * 60
        boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
        boxes[:20, 2] = boxes[:20, 0]  # no area
        example = scene(60, 60, count=300) | {"boxes": boxes}
        del example["masks"]
        expected = theirs_of(example | {"masks": np.zeros((300, 60, 60), bool)})
        got = cut(example, Keep(min_size=min_size))["labels"]
        np.testing.assert_array_equal(got, sanitized(expected, min_size)["labels"].numpy())


# With chance: the same draws give the same


class Replay(np.random.Generator):
    """A generator that hands out what torch drew."""

    def __init__(self, draws):
        super().__init__(np.random.Philox(0))
        self.draws = list(draws)

    def random(self, size=None):
        return self._next(size)

    def uniform(self, low, high, size=None):
        return low + (high - low) * self._next(size)

    def integers(self, high):
        return int(self.draws.pop(0))

    def _next(self, size):
        if size is None:
            return self.draws.pop(0)
        return np.array([self.draws.pop(0) for _ in range(size)])


@pytest.fixture
def drawn(monkeypatch):
    """Every number that torch draws from here on, in its order."""
    draws = []

    def recorded(draw):
        def record(*arguments, **options):
            result = draw(*arguments, **options)
            draws.extend(result.reshape(-1).tolist())
            return result

        return record

    monkeypatch.setattr(torch, "rand", recorded(torch.rand))
    monkeypatch.setattr(torch, "randint", recorded(torch.randint))
    return draws


def test_iou_crops(drawn):
    torch.manual_seed(0)
    theirs, cropped = v2.RandomIoUCrop(), 0
    for seed in range(150):
        example = scene(*SIZES[seed % 4], count=1 + seed % 5, seed=seed)
        sample = theirs_of(example)
        drawn.clear()
        params = theirs.make_params([sample["image"], sample["boxes"]])
        size = example["image"].shape[:2]
        box = ours.iou_crop_box(*size, example["boxes"], Replay(drawn))
        if not params:
            assert box is None
            continue
        cropped += 1
        assert box == (params["top"], params["left"], params["height"], params["width"])
        inside = params["is_within_crop_area"].numpy()
        np.testing.assert_array_equal(centers_within(example["boxes"], box), inside)
        expected = {
            name: theirs.transform(value, params) if name != "labels" else value
            for name, value in sample.items()
        }
        # Their boxes outside become degenerate, and the next transform leaves them out.
        check_equal(ours.crop(example, box, keep=Keep(min_size=1.0)), sanitized(expected))
    assert cropped > 80


def test_zooming_out(drawn):
    torch.manual_seed(0)
    theirs = v2.RandomZoomOut(fill={torchvision.tv_tensors.Image: 114, "others": 0}, p=1.0)
    for seed in range(30):
        example = scene(*SIZES[seed % 4], count=seed % 4, seed=seed)
        sample = theirs_of(example)
        drawn.clear()
        params = theirs.make_params([sample["image"]])
        placement = ours.zoomed_out(*example["image"].shape[:2], Replay(drawn), sides=(1.0, 4.0))
        left, top, *_ = params["padding"]
        assert placement.offset == (top, left)
        expected = {
            name: theirs.transform(value, params) if name != "labels" else value
            for name, value in sample.items()
        }
        check_equal(place(example, placement, fill=114), expected)


@pytest.mark.parametrize("antialias", [False, True])
def test_scale_jitter(drawn, antialias):
    """On a square, because theirs takes the height of `target_size` for the width in scaling."""
    torch.manual_seed(0)
    theirs = v2.ScaleJitter((75, 75), (0.3, 2.0), antialias=antialias)
    for seed in range(20):
        example = scene(*SIZES[seed % 4], seed=seed)
        sample = theirs_of(example)
        drawn.clear()
        params = theirs.make_params([sample["image"]])
        place_drawn = [0.3, 0.8]
        size = example["image"].shape[:2]
        got = ours.jittered(
            *size, (75, 75), Replay([*drawn, *place_drawn]), scale=(0.3, 2.0), spread=False
        )
        assert list(got.resized) == list(params["size"])
        resized = {
            name: theirs.transform(value, params) if name != "labels" else value
            for name, value in sample.items()
        }
        moved = place(example, got, antialias=antialias, keep=Keep(min_size=1.0))
        rest = [max(side - length, 0) for side, length in zip((75, 75), got.resized, strict=True)]
        fills = {torchvision.tv_tensors.Image: 114, "others": 0}
        padded = v2.Pad([0, 0, rest[1], rest[0]], fill=fills)(resized)
        top, left = (-offset for offset in got.offset)
        expected = {
            name: F.crop(value, top, left, 75, 75) if name != "labels" else value
            for name, value in padded.items()
        }
        expected = sanitized(expected)
        # Masks of a pixel or two may vanish by torch's rounding or by ours.
        kept = np.isin(expected["labels"].numpy(), moved["labels"])
        expected = {k: v[kept] if k != "image" else v for k, v in expected.items()}
        assert kept.mean() > 0.7
        check_equal(moved, expected, levels=1, masks=False)


def test_photometric_distortion():
    """The adjustments are compared elsewhere: here their order, and the channels' places."""
    theirs = v2.RandomPhotometricDistort()
    image = to_picture(scene(61, 83)["image"])
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        params = theirs.make_params([image])
        factors = {
            name: params[f"{name}_factor"]
            for name in color.JITTERS
            if params[f"{name}_factor"] is not None
        }
        order = color.JITTERS if params["contrast_before"] else color.CONTRAST_LAST
        got = color.apply_color_jitter(image, factors, order)
        if params["channel_permutation"] is not None:
            got = color.permute_channels(got, params["channel_permutation"].tolist())
        expected = np.asarray(theirs.transform(image, params)).astype(int)
        assert np.abs(np.asarray(got) - expected).max() == 0
        seen.add((*sorted(factors), params["contrast_before"]))
    assert len(seen) > 10


def test_ranges_of_photometric_distortion():
    """Found by trial: the draws themselves are ours, their ranges torchvision's."""
    theirs = v2.RandomPhotometricDistort()
    grey = np.full((1, 1, 3), 100, np.uint8)
    transform = color.photometric_distort(contrast=(1.0, 1.0), hue=(0.0, 0.0), p=1.0)
    levels = [
        transform({"image": grey}, np.random.default_rng(seed))["image"].max()
        for seed in range(300)
    ]
    low, high = (100 * bound for bound in theirs.brightness)
    assert low - 1 <= min(levels) < low + 2
    assert high - 2 < max(levels) <= high
