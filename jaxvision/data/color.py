"""Brightness, contrast, saturation, hue and sharpness of one picture, as torchvision changes them.

Each function takes a uint8 [h, w, c] array or a Pillow picture and returns the same kind; a factor
of 1 changes nothing (of hue: 0). Grey pictures have no saturation and no hue to change.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxvision.data.images import Picture, arrays_too, to_array, to_picture
from jaxvision.data.transforms import PictureTransform, check_probability

JITTERS = ("brightness", "contrast", "saturation", "hue")
CONTRAST_LAST = ("brightness", "saturation", "hue", "contrast")
Range = float | tuple[float, float]


@arrays_too
def adjust_brightness(picture: Picture, factor: float) -> Picture:
    """Mixes with black: 0 is black, 2 is twice as bright."""
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(picture).enhance(factor)


@arrays_too
def adjust_contrast(picture: Picture, factor: float) -> Picture:
    """Mixes with the picture's mean grey level."""
    from PIL import ImageEnhance

    return ImageEnhance.Contrast(picture).enhance(factor)


@arrays_too
def adjust_saturation(picture: Picture, factor: float) -> Picture:
    """Mixes with the grey version of the picture."""
    from PIL import ImageEnhance

    return ImageEnhance.Color(picture).enhance(factor)


@arrays_too
def adjust_sharpness(picture: Picture, factor: float) -> Picture:
    """Mixes with a smoothed version: 0 is smooth, above 1 sharpens."""
    from PIL import ImageEnhance

    return ImageEnhance.Sharpness(picture).enhance(factor)


@arrays_too
def adjust_hue(picture: Picture, shift: float) -> Picture:
    """Turns the hue by `shift` of the colour circle, from -0.5 to 0.5."""
    from PIL import Image

    if not -0.5 <= shift <= 0.5:
        raise ValueError(f"expected a shift of the hue from -0.5 to 0.5, got {shift}")
    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    # The circle has 256 steps, and uint8 goes around it by overflowing.
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)
    hue = to_picture(turned[..., None])
    return Image.merge("HSV", (hue, saturation, value)).convert(picture.mode)


ADJUSTMENTS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def apply_color_jitter(
    picture: Picture, factors: Mapping[str, float], order: Sequence[str] = JITTERS
) -> Picture:
    """Applies the adjustments that `factors` has, by name of `JITTERS`, in the given order.

    >>> grey = np.full((2, 2, 3), 100, np.uint8)
    >>> apply_color_jitter(grey, {"brightness": 1.5})[0, 0].tolist()
    [150, 150, 150]
    """
    for name in order:
        if name in factors:
            picture = ADJUSTMENTS[name](picture, factors[name])
    return picture


def color_jitter(
    brightness: Range = 0.0, contrast: Range = 0.0, saturation: Range = 0.0, hue: Range = 0.0
) -> PictureTransform:
    """Changes all four by random factors, in random order, as torchvision's ColorJitter does.

    A number x stands for factors from max(0, 1 - x) to 1 + x, for hue from -x to x; a pair is the
    range itself.

    >>> transform = color_jitter(brightness=0.4, hue=0.1)
    """
    given = dict(zip(JITTERS, (brightness, contrast, saturation, hue), strict=True))
    ranges = {name: _range(name, value) for name, value in given.items() if value != 0.0}

    def jitter(picture: Picture, rng: np.random.Generator) -> Picture:
        order = [JITTERS[i] for i in np.argsort(rng.random(len(JITTERS)), kind="stable")]
        factors = {name: rng.uniform(low, high) for name, (low, high) in ranges.items()}
        return apply_color_jitter(picture, factors, order)

    return PictureTransform(jitter, moves=False)


def photometric_distort(
    brightness: tuple[float, float] = (0.875, 1.125),
    contrast: tuple[float, float] = (0.5, 1.5),
    saturation: tuple[float, float] = (0.5, 1.5),
    hue: tuple[float, float] = (-0.05, 0.05),
    *,
    p: float = 0.5,
) -> PictureTransform:
    """SSD's changes of colour (arXiv:1512.02325), each with probability `p`, as torchvision's
    RandomPhotometricDistort.

    Contrast comes second or last, by a fair coin; then, with probability `p`, the channels change
    places. Ranges are those of the factors.
    """
    check_probability(p)
    given = dict(zip(JITTERS, (brightness, contrast, saturation, hue), strict=True))
    ranges = {name: _range(name, value) for name, value in given.items()}

    def distort(picture: Picture, rng: np.random.Generator) -> Picture:
        chosen = rng.random(len(ranges) + 2) < (*[p] * len(ranges), 0.5, p)
        factors = {name: rng.uniform(low, high) for name, (low, high) in ranges.items()}
        factors = {
            name: factors[name] for name, taken in zip(ranges, chosen, strict=False) if taken
        }
        order = JITTERS if chosen[-2] else CONTRAST_LAST
        picture = apply_color_jitter(picture, factors, order)
        channels = np.argsort(rng.random(3), kind="stable")
        return permute_channels(picture, channels.tolist()) if chosen[-1] else picture

    return PictureTransform(distort, moves=False)


def permute_channels(picture: Picture, channels: Sequence[int]) -> Picture:
    """Channel i of the result is channel `channels[i]`; a grey picture stays as it is."""
    image = to_array(picture)
    if image.shape[-1] != len(channels):
        return picture
    image = np.ascontiguousarray(image[..., list(channels)])
    return image if isinstance(picture, np.ndarray) else to_picture(image)


def apply_hsv(picture: Picture, hue: float, saturation: float, value: float) -> Picture:
    """Turns the hue by a share `hue` of the colour circle, multiplies saturation and value.

    Of a grey picture the value alone. In OpenCV's HSV of 256 steps, whose way there and back
    costs up to five grey levels; so factors that change nothing give the picture itself.

    >>> apply_hsv(np.array([[[200, 100, 50]]], np.uint8), 0.0, 0.0, 0.5).tolist()
    [[[100, 100, 100]]]
    """
    import cv2

    if (hue % 1.0, saturation, value) == (0.0, 1.0, 1.0):
        return picture
    image, levels = to_array(picture), np.arange(256)
    values = np.clip(np.rint(levels * value), 0, 255)
    if image.shape[-1] == 1:
        image = cv2.LUT(image, values.astype(np.uint8)).reshape(image.shape)
    else:
        hues = np.rint(levels + hue * 256) % 256
        saturations = np.clip(np.rint(levels * saturation), 0, 255)
        table = np.stack([hues, saturations, values], -1).astype(np.uint8)[None]
        image = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), table)
        image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB_FULL)
    return image if isinstance(picture, np.ndarray) else to_picture(image)


def hsv_jitter(hue: float = 0.1, saturation: float = 1.5, value: float = 1.5) -> PictureTransform:
    """Turns the hue by up to `hue` of the circle each way, and changes saturation and value by
    factors of up to 1.5 each way, as YOLO does (arXiv:1506.02640, section 2.2).

    The logarithm of a factor is uniform. See `apply_hsv`.
    """
    if not 0 <= hue <= 0.5 or min(saturation, value) < 1:
        raise ValueError(
            "expected hue from 0 to 0.5 and factors of at least 1 for saturation and value, got "
            f"{hue}, {saturation} and {value}"
        )

    def jitter(picture: Picture, rng: np.random.Generator) -> Picture:
        turn, *exponents = rng.uniform(-1.0, 1.0, 3)
        return apply_hsv(picture, turn * hue, saturation ** exponents[0], value ** exponents[1])

    return PictureTransform(jitter, jitter, moves=False)


def _range(name: str, value: Range) -> tuple[float, float]:
    center, lowest, highest = (0.0, -0.5, 0.5) if name == "hue" else (1.0, 0.0, np.inf)
    if isinstance(value, tuple):
        low, high = value
    else:
        low, high = max(lowest, center - value), center + value
    if not lowest <= low <= high <= highest or (name == "hue" and low < -0.5):
        raise ValueError(f"expected a range of {name} within {lowest} and {highest}, got {value}")
    return low, high
