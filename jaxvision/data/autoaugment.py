"""RandAugment (arXiv:1909.13719) and TrivialAugment Wide (arXiv:2103.10158), as in torchvision.

Both draw from fourteen operations. An operation's magnitude is taken from a table of `bins` values;
where it has a direction, its sign is drawn as well. Translations of RandAugment grow with the
picture: 150 pixels at a side of 331.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from jaxvision.data.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_sharpness,
)
from jaxvision.data.geometry import Interpolation, fill_of
from jaxvision.data.images import Picture, arrays_too
from jaxvision.data.transforms import PictureTransform

Magnitudes = dict[str, tuple[Float32[np.ndarray, "bins"] | None, bool]]
"""By operation: its magnitudes, None for one that has none, and whether a sign is drawn."""

RAND_AUGMENT_BINS, TRIVIAL_AUGMENT_BINS = 31, 31


def rand_augment_space(bins: int, height: int, width: int) -> Magnitudes:
    """RandAugment's operations and magnitudes for a picture of this size."""
    enhance = _steps(0.0, 0.9, bins)
    return {
        "Identity": (None, False),
        "ShearX": (_steps(0.0, 0.3, bins), True),
        "ShearY": (_steps(0.0, 0.3, bins), True),
        "TranslateX": (_steps(0.0, 150.0 / 331.0 * width, bins), True),
        "TranslateY": (_steps(0.0, 150.0 / 331.0 * height, bins), True),
        "Rotate": (_steps(0.0, 30.0, bins), True),
        "Brightness": (enhance, True),
        "Color": (enhance, True),
        "Contrast": (enhance, True),
        "Sharpness": (enhance, True),
        "Posterize": (_bits(4, bins), False),
        "Solarize": (_steps(255.0, 0.0, bins), False),
        "AutoContrast": (None, False),
        "Equalize": (None, False),
    }


def trivial_augment_space(bins: int) -> Magnitudes:
    """TrivialAugment Wide's operations and magnitudes; translations are up to 32 pixels."""
    enhance = _steps(0.0, 0.99, bins)
    return {
        **rand_augment_space(bins, 1, 1),
        "ShearX": (enhance, True),
        "ShearY": (enhance, True),
        "TranslateX": (_steps(0.0, 32.0, bins), True),
        "TranslateY": (_steps(0.0, 32.0, bins), True),
        "Rotate": (_steps(0.0, 135.0, bins), True),
        "Brightness": (enhance, True),
        "Color": (enhance, True),
        "Contrast": (enhance, True),
        "Sharpness": (enhance, True),
        "Posterize": (_bits(6, bins), False),
    }


def rand_augment(
    num_ops: int = 2,
    magnitude: int = 9,
    *,
    bins: int = RAND_AUGMENT_BINS,
    interpolation: Interpolation = "nearest",
    fill: int | tuple[int, ...] = 0,
) -> PictureTransform:
    """Applies `num_ops` random operations, all at the magnitude numbered `magnitude`.

    >>> transform = rand_augment(num_ops=2, magnitude=9)
    """
    if not 0 <= magnitude < bins:
        raise ValueError(f"expected a magnitude from 0 to {bins - 1}, got {magnitude}")

    def augment(picture: Picture, rng: np.random.Generator) -> Picture:
        space = rand_augment_space(bins, picture.height, picture.width)
        for _ in range(num_ops):
            name = tuple(space)[rng.integers(len(space))]
            magnitudes, signed = space[name]
            value = 0.0 if magnitudes is None else float(magnitudes[magnitude])
            if signed and rng.integers(2):
                value = -value
            picture = apply_op(picture, name, value, interpolation=interpolation, fill=fill)
        return picture

    return PictureTransform(augment)


def trivial_augment_wide(
    *,
    bins: int = TRIVIAL_AUGMENT_BINS,
    interpolation: Interpolation = "nearest",
    fill: int | tuple[int, ...] = 0,
) -> PictureTransform:
    """Applies one random operation at a random magnitude: nothing to tune."""
    space = trivial_augment_space(bins)
    names = tuple(space)

    def augment(picture: Picture, rng: np.random.Generator) -> Picture:
        name = names[rng.integers(len(names))]
        magnitudes, signed = space[name]
        value = 0.0 if magnitudes is None else float(magnitudes[rng.integers(bins)])
        if signed and rng.integers(2):
            value = -value
        return apply_op(picture, name, value, interpolation=interpolation, fill=fill)

    return PictureTransform(augment)


@arrays_too
def apply_op(
    picture: Picture,
    name: str,
    magnitude: float,
    *,
    interpolation: Interpolation = "nearest",
    fill: int | tuple[int, ...] = 0,
) -> Picture:
    """Applies one operation, by its name in the tables above.

    Shears are the slope, translations whole pixels (rounded towards 0), rotations degrees counter-
    clockwise, the four enhancements the difference of the factor from 1, Posterize the bits kept,
    Solarize the level from which on pixels are inverted.

    >>> apply_op(np.full((1, 1, 3), 200, np.uint8), "Solarize", 128.0).tolist()
    [[[55, 55, 55]]]
    """
    from PIL import Image

    if name in _MATRICES:
        color = fill_of(picture, fill)
        matrix = _MATRICES[name](magnitude)
        resample = Image.Resampling[interpolation.upper()]
        affine = Image.Transform.AFFINE
        return picture.transform(picture.size, affine, matrix, resample, fillcolor=color)
    if name == "Rotate":
        resample = Image.Resampling[interpolation.upper()]
        return picture.rotate(magnitude, resample, fillcolor=fill_of(picture, fill))
    if name in _ENHANCEMENTS:
        return _ENHANCEMENTS[name](picture, 1.0 + magnitude)
    return _pixel_ops()[name](picture, magnitude)


# From a pixel of the result to one of the picture: x' = a x + b y + c, y' = d x + e y + f.
_MATRICES: dict[str, Callable[[float], tuple[float, ...]]] = {
    "ShearX": lambda slope: (1.0, slope, 0.0, 0.0, 1.0, 0.0),
    "ShearY": lambda slope: (1.0, 0.0, 0.0, slope, 1.0, 0.0),
    "TranslateX": lambda pixels: (1.0, 0.0, -float(int(pixels)), 0.0, 1.0, 0.0),
    "TranslateY": lambda pixels: (1.0, 0.0, 0.0, 0.0, 1.0, -float(int(pixels))),
}

_ENHANCEMENTS = {
    "Brightness": adjust_brightness,
    "Color": adjust_saturation,
    "Contrast": adjust_contrast,
    "Sharpness": adjust_sharpness,
}


@functools.cache
def _pixel_ops() -> dict[str, Callable[[Picture, float], Picture]]:
    from PIL import ImageOps

    return {
        "Identity": lambda picture, _: picture,
        "Posterize": lambda picture, bits: ImageOps.posterize(picture, int(bits)),
        "Solarize": lambda picture, threshold: ImageOps.solarize(picture, threshold),
        "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
        "Equalize": lambda picture, _: ImageOps.equalize(picture),
    }


def _steps(start: float, stop: float, bins: int) -> Float32[np.ndarray, "bins"]:
    """`bins` values from start to stop as torch.linspace gives them: steps in float32, from both
    ends, multiplied and added in one rounding. It matters: int() of a translation by 15.999999."""
    start64, stop64 = np.float64(np.float32(start)), np.float64(np.float32(stop))
    step = np.float64(np.float32((stop64 - start64) / (bins - 1)))
    i = np.arange(bins)
    values = np.where(i < bins // 2, start64 + step * i, stop64 - step * (bins - 1 - i))
    return values.astype(np.float32)


def _bits(most: int, bins: int) -> Float32[np.ndarray, "bins"]:
    """Bits that Posterize keeps: 8 down to 8 - most."""
    return (8 - np.round(np.arange(bins) / ((bins - 1) / most))).astype(np.float32)
