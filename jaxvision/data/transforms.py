"""Random augmentation on the host, one uint8 [h, w, c] example at a time.

A transform is a function `(example, rng) -> example`: `example` is a dict with `image` and `label`,
`rng` is the example's own `np.random.Generator`, its only source of randomness.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]


def compose(*transforms: Transform) -> Transform:
    """Applies `transforms` one after another, left to right."""

    def composed(example: Example, rng: np.random.Generator) -> Example:
        for transform in transforms:
            example = transform(example, rng)
        return example

    return composed


def random_horizontal_flip(p: float = 0.5) -> Transform:
    """Mirrors the picture left to right with probability `p`, as torchvision's does."""
    if not 0 <= p <= 1:
        raise ValueError(f"expected a probability from 0 to 1, got {p}")

    def flip(example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= p:
            return example
        return {**example, "image": example["image"][:, ::-1]}

    return flip


def random_crop(size: tuple[int, int], *, padding: int = 0, fill: int = 0) -> Transform:
    """Cuts out `size` (height, width) at a random place, after `padding` pixels of `fill` on each
    side, as torchvision's RandomCrop does.

    A padded picture that is smaller than `size` raises `ValueError`.

    >>> rng = np.random.default_rng(0)
    >>> example = {"image": np.zeros((28, 28, 1), np.uint8), "label": 3}
    >>> random_crop((28, 28), padding=2)(example, rng)["image"].shape
    (28, 28, 1)
    """
    height, width = size

    def crop(example: Example, rng: np.random.Generator) -> Example:
        pads = ((padding, padding), (padding, padding), (0, 0))
        image = np.pad(example["image"], pads, constant_values=fill)
        h, w, _ = image.shape
        if h < height or w < width:
            raise ValueError(
                f"expected a picture of at least {height} x {width} with its padding, got {h} x {w}"
            )
        top = rng.integers(h - height + 1)
        left = rng.integers(w - width + 1)
        return {**example, "image": image[top : top + height, left : left + width]}

    return crop
