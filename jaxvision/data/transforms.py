"""Random augmentation on the host, one example at a time: how it is built, and crops and flips.

A transform is a function `(example, rng) -> example`: `example` is a dict with `image`, uint8
[h, w, c], and `label`; `rng` is the example's own `np.random.Generator`, its only source of
randomness. The drawing of parameters and the deterministic part are functions of their own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from jaxvision.data.geometry import (
    Interpolation,
    Size,
    crop,
    fill_of,
    horizontal_flip,
    pad,
    resize,
    vertical_flip,
)
from jaxvision.data.images import Picture, to_array, to_picture

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]
SizeMap = Callable[[tuple[int, int]], tuple[int, int]]
Box = tuple[int, int, int, int]
"""(top, left, height, width), in pixels."""

IMAGENET_MEAN_COLOR = (124, 116, 104)
TRIES = 10


def same_size(size: tuple[int, int]) -> tuple[int, int]:
    """The `output_size` of a transform that keeps (height, width)."""
    return size


@dataclass(frozen=True)
class PictureTransform:
    """A transform that looks at the picture only, made of a function `(picture, rng) -> picture`.

    It works on Pillow's form, and `image` in an example may be that as well as an array: so neither
    a decoded file nor what goes from one such transform to the next is copied into an array.
    `on_array`, where there is one, does the same to an array at less cost. `moves` says whether
    pixels change their places: then boxes would be left behind, so an example with boxes is
    refused.
    """

    on_picture: Callable[[Picture, np.random.Generator], Picture]
    on_array: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    moves: bool = True

    @property
    def output_size(self) -> SizeMap | None:
        return None if self.moves else same_size

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if self.moves and "boxes" in example:
            raise ValueError(
                "this transform moves the picture and leaves its boxes where they are: use one of "
                "jaxvision.data.detection_transforms"
            )
        image = example["image"]
        if not isinstance(image, np.ndarray):
            image = self.on_picture(image, rng)
        elif self.on_array is not None:
            image = self.on_array(image, rng)
        else:
            image = to_array(self.on_picture(to_picture(image), rng))
        return {**example, "image": image}


@dataclass(frozen=True)
class ExampleTransform:
    """A transform of whole examples, and the size that it gives to a picture of each size.

    `output_size` is None where the size is random; else it says (height, width) from (height,
    width), so that pictures can be sorted by size before any of them is read.
    """

    apply: Transform
    output_size: SizeMap | None = None

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return self.apply(example, rng)


def compose(*transforms: Transform) -> Transform:
    """Applies `transforms` one after another, left to right."""
    if transforms and all(isinstance(transform, PictureTransform) for transform in transforms):
        on_arrays = [transform.on_array for transform in transforms]
        return PictureTransform(
            _chain([transform.on_picture for transform in transforms]),
            None if None in on_arrays else _chain(on_arrays),
            any(transform.moves for transform in transforms),
        )

    def composed(example: Example, rng: np.random.Generator) -> Example:
        for transform in transforms:
            # A transform of the user's own is promised an array.
            if not isinstance(transform, PictureTransform):
                example = as_array(example)
            example = transform(example, rng)
        return example

    sizes = [getattr(transform, "output_size", None) for transform in transforms]
    if None in sizes:
        return ExampleTransform(composed)
    return ExampleTransform(composed, lambda size: reduce(lambda now, of: of(now), sizes, size))


def as_array(example: Example) -> Example:
    """The example with its picture as an array, if it has one and it is not."""
    image = example.get("image")
    if image is None or isinstance(image, np.ndarray):
        return example
    return {**example, "image": to_array(image)}


def _chain(functions: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    def chained(picture: Any, rng: np.random.Generator) -> Any:
        for function in functions:
            picture = function(picture, rng)
        return picture

    return chained


def random_horizontal_flip(p: float = 0.5) -> PictureTransform:
    """Mirrors the picture left to right with probability `p`, as torchvision's does."""
    check_probability(p)
    return PictureTransform(
        lambda picture, rng: horizontal_flip(picture) if rng.random() < p else picture,
        lambda image, rng: image[:, ::-1] if rng.random() < p else image,
    )


def random_vertical_flip(p: float = 0.5) -> PictureTransform:
    """Mirrors the picture top to bottom with probability `p`."""
    check_probability(p)
    return PictureTransform(
        lambda picture, rng: vertical_flip(picture) if rng.random() < p else picture,
        lambda image, rng: image[::-1] if rng.random() < p else image,
    )


def random_crop(size: tuple[int, int], *, padding: int = 0, fill: int = 0) -> PictureTransform:
    """Cuts out `size` (height, width) at a random place, after `padding` pixels of `fill` on each
    side, as torchvision's RandomCrop does.

    A padded picture that is smaller than `size` raises `ValueError`.

    >>> rng = np.random.default_rng(0)
    >>> example = {"image": np.zeros((28, 28, 1), np.uint8), "label": 3}
    >>> random_crop((28, 28), padding=2)(example, rng)["image"].shape
    (28, 28, 1)
    """
    height, width = size

    def place(h: int, w: int, rng: np.random.Generator) -> Box:
        if h < height or w < width:
            raise ValueError(
                f"expected a picture of at least {height} x {width} with its padding, got {h} x {w}"
            )
        return int(rng.integers(h - height + 1)), int(rng.integers(w - width + 1)), height, width

    def on_picture(picture: Picture, rng: np.random.Generator) -> Picture:
        picture = pad(picture, padding, fill=fill)
        return crop(picture, *place(picture.height, picture.width, rng))

    def on_array(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pads = ((padding, padding), (padding, padding), (0, 0))
        image = np.pad(image, pads, constant_values=fill)
        top, left, _, _ = place(*image.shape[:2], rng)
        return image[top : top + height, left : left + width]

    return PictureTransform(on_picture, on_array)


def random_resized_crop(
    size: Size,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> PictureTransform:
    """Cuts out a random box (see `resized_crop_box`) and resizes it to `size`: Inception's crop.

    >>> rng = np.random.default_rng(0)
    >>> example = {"image": np.zeros((375, 500, 3), np.uint8), "label": 3}
    >>> random_resized_crop(224)(example, rng)["image"].shape
    (224, 224, 3)
    """
    target = (size, size) if isinstance(size, int) else size
    _check_ranges(scale, ratio)

    def resized_crop(picture: Picture, rng: np.random.Generator) -> Picture:
        box = resized_crop_box(picture.height, picture.width, rng, scale=scale, ratio=ratio)
        # Cut first: resizing from a box would let its border see the pixels outside.
        cut = crop(picture, *box)
        return resize(cut, target, interpolation=interpolation, antialias=antialias)

    return PictureTransform(resized_crop)


def resized_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draws a box of a share `scale` of the area and an aspect (width / height) within `ratio`.

    The logarithm of the aspect is uniform. After ten boxes that do not fit it is the largest
    central one whose aspect is within `ratio`. Draws: area, log aspect, then top and left.
    """
    area, (low, high) = height * width, (math.log(bound) for bound in ratio)
    for _ in range(TRIES):
        target = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            return top, int(rng.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def random_erasing(
    p: float = 0.5,
    *,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    fill: int | Sequence[int] | Literal["noise"] = IMAGENET_MEAN_COLOR,
) -> PictureTransform:
    """Overwrites a random box with `fill`, with probability `p` (arXiv:1708.04896).

    torchvision's RandomErasing writes 0 after normalisation. Here the picture is still in bytes, so
    the default is what normalisation takes to 0, ImageNet's mean colour, to half a grey level;
    "noise" is uniform over all colours.
    """
    check_probability(p)
    _check_ranges(scale, ratio)

    def erase(picture: Picture, rng: np.random.Generator) -> Picture:
        if rng.random() >= p:
            return picture
        box = erasing_box(picture.height, picture.width, rng, scale=scale, ratio=ratio)
        if box is None:
            return picture
        top, left, h, w = box
        picture = picture.copy()
        if fill == "noise":
            shape = (h, w, len(picture.getbands()))
            patch = to_picture(rng.integers(0, 256, shape, dtype=np.uint8))
            picture.paste(patch, (left, top))
            return picture
        levels = fill if isinstance(fill, int) or picture.mode != "L" else round(np.mean(fill))
        picture.paste(fill_of(picture, levels), (left, top, left + w, top + h))
        return picture

    return PictureTransform(erase, moves=False)


def erasing_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box | None:
    """Draws a box as `resized_crop_box` does, but of aspect height / width and smaller than the
    picture on both sides; None after ten that are not."""
    area, (low, high) = height * width, (math.log(bound) for bound in ratio)
    for _ in range(TRIES):
        target = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if h < height and w < width:
            top = int(rng.integers(height - h + 1))
            return top, int(rng.integers(width - w + 1)), h, w
    return None


def check_probability(p: float) -> None:
    """Raises `ValueError` unless `p` is from 0 to 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"expected a probability from 0 to 1, got {p}")


def _check_ranges(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if not (0 <= scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise ValueError(
            "expected a scale within 0 and 1 and a ratio above 0, lower bound first, got "
            f"{scale} and {ratio}"
        )
