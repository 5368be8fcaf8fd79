"""Brightness, contrast, saturation, hue and sharpness of one picture, as torchvision changes them.

Each function takes a uint8 [h, w, c] array or a Pillow picture and returns the same kind; a factor
of 1 changes nothing (of hue: 0). Grey pictures have no saturation and no hue to change.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxvision.data.images import Picture, arrays_too, to_picture
from jaxvision.data.transforms import PictureTransform

JITTERS = ("brightness", "contrast", "saturation", "hue")
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

    return PictureTransform(jitter)


def _range(name: str, value: Range) -> tuple[float, float]:
    center, lowest, highest = (0.0, -0.5, 0.5) if name == "hue" else (1.0, 0.0, np.inf)
    if isinstance(value, tuple):
        low, high = value
    else:
        low, high = max(lowest, center - value), center + value
    if not lowest <= low <= high <= highest or (name == "hue" and low < -0.5):
        raise ValueError(f"expected a range of {name} within {lowest} and {highest}, got {value}")
    return low, high
