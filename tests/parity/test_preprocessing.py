"""Preprocessing and augmentation against torchvision's, picture by picture."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from jaxvision.data import autoaugment, color, geometry, mixing
from jaxvision.data.images import to_array, to_picture
from jaxvision.data.presets import classification_eval
from jaxvision.data.transforms import erasing_box, resized_crop_box

from .torchvision_cpu import torchvision

F = torchvision.transforms.functional
Mode = torchvision.transforms.InterpolationMode

SIZES = [(375, 500), (500, 375), (333, 333), (640, 201), (57, 300), (31, 29), (1, 1), (2, 70)]
PIL = {"bilinear": Mode.BILINEAR, "bicubic": Mode.BICUBIC, "nearest": Mode.NEAREST}


@functools.cache
def picture(height, width, channels=3, seed=0):
    """Smooth shapes with some noise on top, and black and white, as photographs have."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 40) + y / rng.uniform(3, 40)) for _ in range(channels)]
    image = 128 + 90 * np.stack(waves, -1) + rng.normal(0, 12, (height, width, channels))
    image[: height // 8] = 255
    image[:, : width // 9] = 0
    image = np.clip(image, 0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image


def levels_apart(ours, theirs):
    theirs = np.asarray(theirs)
    theirs = theirs[..., None] if theirs.ndim == 2 else theirs
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.uint8
    return np.abs(ours.astype(int) - theirs).max(initial=0)


def tensor(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def as_array(tensor):
    return tensor.permute(1, 2, 0).numpy()


# Evaluation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (235, 225), (64, 80)])
@pytest.mark.parametrize("channels", [3, 1])
def test_evaluation_presets(interpolation, resize, crop, channels):
    """Bicubic on tensors is left out: torchvision's own two backends differ by tens of levels,
    because Pillow clips between its two passes."""
    ours = classification_eval(resize, crop, interpolation=interpolation)
    for size in SIZES:
        image = picture(*size, channels)
        mode = PIL[interpolation]
        theirs = F.center_crop(F.resize(to_picture(image), [resize], mode), [crop])
        assert levels_apart(ours(image), theirs) == 0
        assert levels_apart(ours(to_picture(image)), theirs) == 0

        if interpolation == "bilinear":
            on_tensor = F.resize(tensor(image), [resize], mode, antialias=True)
            assert levels_apart(ours(image), as_array(F.center_crop(on_tensor, [crop]))) <= 1


def test_the_whole_preset_that_comes_with_the_weights():
    """torchvision's own pipeline, normalisation included: a grey level is 1/255/std there."""
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    ours = classification_eval(preset.resize_size[0], preset.crop_size[0])
    for size in SIZES:
        image = picture(*size)
        theirs = preset(to_picture(image)).permute(1, 2, 0).numpy()
        normalised = (ours(image) / 255 - np.array(preset.mean)) / np.array(preset.std)
        np.testing.assert_allclose(normalised, theirs, atol=1e-5)


def test_resizing_without_antialias():
    for size in [(375, 500), (200, 301), (31, 29)]:
        image = picture(*size)
        ours = geometry.resize(image, 128, antialias=False)
        theirs = F.resize(tensor(image), [128], Mode.BILINEAR, antialias=False)
        assert levels_apart(ours, as_array(theirs)) <= 1
        if min(size) > 128:  # or the two would be the same thing
            assert levels_apart(geometry.resize(image, 128), as_array(theirs)) > 20


def test_sizes_are_rounded_alike():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        h, w, size = (int(n) for n in rng.integers(1, 900, 3))
        expected = F._compute_resized_output_size((h, w), [size])
        assert geometry.resized_size(h, w, size) == tuple(expected)
        most = size + int(rng.integers(1, 300))
        expected = F._compute_resized_output_size((h, w), [size], max_size=most)
        assert geometry.resized_size(h, w, size, most) == tuple(expected)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_resize_to_a_given_size(interpolation):
    image = picture(77, 131)
    for size in [(20, 30), (200, 100), (77, 131)]:
        theirs = F.resize(to_picture(image), list(size), PIL[interpolation])
        assert levels_apart(geometry.resize(image, size, interpolation=interpolation), theirs) == 0


def test_center_crop_and_pad_at_odd_sizes():
    for h in range(1, 9):
        for w in range(1, 9):
            image = picture(h, w)
            for size in [(1, 1), (4, 5), (5, 4), (7, 7), (8, 3)]:
                theirs = F.center_crop(to_picture(image), list(size))
                assert levels_apart(geometry.center_crop(image, size), theirs) == 0
    image = picture(9, 7)
    for padding in [2, (1, 3), (1, 2, 3, 4)]:
        theirs = list(padding) if isinstance(padding, tuple) else padding
        for mode in ["constant", "edge", "reflect", "symmetric"]:
            expected = F.pad(to_picture(image), theirs, fill=7, padding_mode=mode)
            got = geometry.pad(image, padding, fill=7, mode=mode)
            assert levels_apart(got, expected) == 0


def test_flips():
    image = picture(5, 8)
    assert levels_apart(geometry.horizontal_flip(image), F.hflip(to_picture(image))) == 0
    assert levels_apart(geometry.vertical_flip(image), F.vflip(to_picture(image))) == 0


# Random boxes: the same draws give the same box


class Replay(np.random.Generator):
    """A generator that hands out what torch drew."""

    def __init__(self, draws):
        super().__init__(np.random.Philox(0))
        self.draws = list(draws)

    def uniform(self, low, high):
        drawn = self.draws.pop(0)
        assert low - 1e-6 <= drawn <= high + 1e-6
        return drawn

    def integers(self, high):
        drawn = self.draws.pop(0)
        assert 0 <= drawn < high
        return drawn


@pytest.fixture
def drawn(monkeypatch):
    """Everything that torch draws from here on, in its order."""
    draws = []

    def recorded(draw):
        def record(*arguments, **options):
            result = draw(*arguments, **options)
            draws.append(result.item())
            return result

        return record

    monkeypatch.setattr(torch.Tensor, "uniform_", recorded(torch.Tensor.uniform_))
    monkeypatch.setattr(torch, "randint", recorded(torch.randint))
    return draws


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (30, 900), (900, 30), (3, 2), (1, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_boxes_of_random_resized_crop(drawn, size, scale):
    ratio = (3 / 4, 4 / 3)
    torch.manual_seed(0)
    fallbacks = 0
    for _ in range(200):
        drawn.clear()
        image = torch.empty(3, *size)
        get_params = torchvision.transforms.RandomResizedCrop.get_params
        expected = get_params(image, list(scale), list(ratio))
        fallbacks += len(drawn) == 20
        assert resized_crop_box(*size, Replay(drawn), scale=scale, ratio=ratio) == expected
    if size in [(30, 900), (900, 30)]:
        assert fallbacks > 0


@pytest.mark.parametrize("size", [(224, 224), (40, 300)])
def test_boxes_of_random_erasing(drawn, size):
    scale, ratio = (0.02, 0.33), (0.3, 3.3)
    torch.manual_seed(0)
    for _ in range(200):
        drawn.clear()
        get_params = torchvision.transforms.RandomErasing.get_params
        *expected, _ = get_params(torch.empty(3, *size), scale, ratio, [0.0])
        assert erasing_box(*size, Replay(drawn), scale=scale, ratio=ratio) == tuple(expected)


# Colour


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_enhancements(name, channels):
    image = picture(61, 83, channels)
    for factor in (0.0, 0.37, 1.0, 1.9):
        theirs = getattr(F, f"adjust_{name}")(to_picture(image), factor)
        assert levels_apart(getattr(color, f"adjust_{name}")(image, factor), theirs) == 0


@pytest.mark.parametrize("channels", [3, 1])
def test_hue(channels):
    image = picture(61, 83, channels)
    for shift in (-0.5, -0.11, 0.0, 0.004, 0.3, 0.5):
        theirs = F.adjust_hue(to_picture(image), shift)
        assert levels_apart(color.adjust_hue(image, shift), theirs) == 0


def test_the_order_of_a_jitter_matters_and_is_theirs():
    image = picture(61, 83)
    factors = {"brightness": 1.7, "contrast": 0.5, "saturation": 1.6, "hue": 0.2}
    results = set()
    for order in [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]:
        names = [color.JITTERS[i] for i in order]
        theirs = to_picture(image)
        for name in names:
            theirs = getattr(F, f"adjust_{name}")(theirs, factors[name])
        ours = color.apply_color_jitter(image, factors, names)
        assert levels_apart(ours, theirs) == 0
        results.add(ours.tobytes())
    assert len(results) == 3


@pytest.mark.parametrize(
    "ranges",
    [
        {"brightness": 0.4, "contrast": 1.5, "saturation": 0.1, "hue": 0.3},
        {"brightness": (0.5, 0.7), "hue": (-0.1, 0.5)},
    ],
)
def test_ranges_of_a_jitter(ranges):
    theirs = torchvision.transforms.ColorJitter(**ranges)
    for name, value in ranges.items():
        assert color._range(name, value) == pytest.approx(getattr(theirs, name))


# RandAugment and TrivialAugment


@pytest.mark.parametrize("bins", [31, 10])
def test_the_tables_of_magnitudes(bins):
    for size in [(375, 500), (224, 224), (32, 37)]:
        theirs = torchvision.transforms.RandAugment()._augmentation_space(bins, size)
        check_table(autoaugment.rand_augment_space(bins, *size), theirs)
    theirs = torchvision.transforms.TrivialAugmentWide()._augmentation_space(bins)
    check_table(autoaugment.trivial_augment_space(bins), theirs)


def check_table(ours, theirs):
    assert list(ours) == list(theirs)
    for name, (magnitudes, signed) in theirs.items():
        assert ours[name][1] == signed
        if magnitudes.ndim == 0:
            assert ours[name][0] is None
        else:
            got, expected = ours[name][0], magnitudes.numpy()
            np.testing.assert_allclose(got, expected, rtol=2e-7, err_msg=name)
            if name.startswith("Translate"):  # whole pixels
                np.testing.assert_array_equal(got.astype(int), expected.astype(int), name)
            if name in ("Posterize", "Solarize"):  # what an integer level is compared with
                np.testing.assert_array_equal(np.ceil(got), np.ceil(expected), name)


@pytest.mark.parametrize("name", list(autoaugment.trivial_augment_space(2)))
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_every_operation(name, interpolation):
    image = picture(61, 83)
    apply_theirs = torchvision.transforms.autoaugment._apply_op
    space = autoaugment.rand_augment_space(31, 61, 83), autoaugment.trivial_augment_space(31)
    for magnitudes, signed in (table[name] for table in space):
        for value in [0.0] if magnitudes is None else magnitudes.tolist():
            for magnitude in {value, -value} if signed else {value}:
                for channels, fill in ((3, 0), (3, (9, 80, 200)), (1, 7)):
                    source = to_picture(image[..., :channels])
                    fills = list(fill) if isinstance(fill, tuple) else fill
                    theirs = apply_theirs(source, name, magnitude, PIL[interpolation], fills)
                    ours = autoaugment.apply_op(
                        source, name, magnitude, interpolation=interpolation, fill=fill
                    )
                    assert levels_apart(to_array(ours), theirs) <= 1


# Whole batches


def test_mixup_and_cutmix():
    images = np.stack([picture(16, 20, seed=seed) for seed in range(6)])
    labels = np.array([0, 3, 1, 1, 2, 0])
    batch = {"image": images, "label": labels}
    stacked = torch.from_numpy(images).permute(0, 3, 1, 2)
    v2 = torchvision.transforms.v2

    params = {"labels": torch.from_numpy(labels), "batch_size": 6}
    theirs = v2.MixUp(num_classes=4)
    for share in (0.0, 0.25, 0.61, 1.0):
        params["lam"] = share
        expected = theirs.transform(stacked.float(), params).permute(0, 2, 3, 1).numpy()
        assert np.abs(mixing.mix_images(images, share) - expected).max() <= 0.5001
        soft = theirs.transform(params["labels"], params).numpy()
        np.testing.assert_allclose(mixing.mix_labels(batch, 4, share), soft, atol=1e-7)

    cutmix = v2.CutMix(num_classes=4)
    torch.manual_seed(0)
    for _ in range(20):
        params.update(cutmix.make_params([stacked]))
        x1, y1, x2, y2 = params["box"]
        pasted, share = mixing.paste_box(images, (y1, y2, x1, x2))
        expected = cutmix.transform(stacked, params).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(pasted, expected)
        soft = cutmix.transform(params["labels"], params).numpy()
        np.testing.assert_allclose(mixing.mix_labels(batch, 4, share), soft, atol=1e-7)


def test_boxes_of_cutmix(drawn):
    theirs = torchvision.transforms.v2.CutMix(num_classes=4)
    torch.manual_seed(0)
    for share in np.linspace(0, 1, 60):
        drawn.clear()
        theirs._dist.sample = lambda _, share=share: float(share)
        x1, y1, x2, y2 = theirs.make_params([torch.empty(2, 3, 33, 47)])["box"]
        assert mixing.cutmix_box(33, 47, float(share), Replay(drawn)) == (y1, y2, x1, x2)


def test_pictures_are_decoded_as_theirs_are(tmp_path):
    """`ImageFolder` opens with Pillow and converts to RGB; it leaves EXIF's orientation alone."""
    from jaxvision.data import read_image

    for i, size in enumerate(SIZES):
        path = tmp_path / f"{i}.jpg"
        Image.fromarray(picture(*size)).save(path, quality=80)
        loader = torchvision.datasets.folder.default_loader
        assert levels_apart(read_image(path), loader(str(path))) == 0
