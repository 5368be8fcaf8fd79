"""What torchvision's references do to pictures for classification, up to the normalisation.

Mean and standard deviation are applied on the device, by `jaxvision.ops.normalize_images`.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from jaxvision.data.autoaugment import rand_augment, trivial_augment_wide
from jaxvision.data.geometry import Interpolation, Size, center_crop, resize
from jaxvision.data.images import Picture, to_array, to_picture
from jaxvision.data.transforms import (
    PictureTransform,
    Transform,
    compose,
    random_erasing,
    random_horizontal_flip,
    random_resized_crop,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classification_eval(
    resize_size: Size = 256,
    crop_size: Size = 224,
    *,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> Callable[[Picture], UInt8[np.ndarray, "crop_h crop_w c"]]:
    """Returns `picture -> uint8 [crop, crop, c]`: resize the shorter side, cut out the middle.

    >>> evaluate = classification_eval(256, 224)
    >>> evaluate(np.zeros((375, 500, 3), np.uint8)).shape
    (224, 224, 3)
    """

    def evaluate(picture: Picture) -> np.ndarray:
        if isinstance(picture, np.ndarray):
            picture = to_picture(picture)
        picture = resize(picture, resize_size, interpolation=interpolation, antialias=antialias)
        return to_array(center_crop(picture, crop_size))

    return evaluate


def classification_train(
    crop_size: Size = 224,
    *,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
    flip: float = 0.5,
    auto_augment: Literal["rand_augment", "trivial_augment_wide"] | None = None,
    magnitude: int = 9,
    erase: float = 0.0,
) -> Transform:
    """Returns a transform: random resized crop, flip, then what is asked for.

    `flip` and `erase` are probabilities, `magnitude` is RandAugment's.
    """
    steps: list[Transform] = [
        random_resized_crop(crop_size, interpolation=interpolation, antialias=antialias)
    ]
    if flip > 0:
        steps.append(random_horizontal_flip(flip))
    if auto_augment == "rand_augment":
        # Here and below with the crop's interpolation, as the references do.
        steps.append(rand_augment(magnitude=magnitude, interpolation=interpolation))
    elif auto_augment == "trivial_augment_wide":
        steps.append(trivial_augment_wide(interpolation=interpolation))
    elif auto_augment is not None:
        raise ValueError(
            "expected rand_augment, trivial_augment_wide or None as auto_augment, "
            f"got {auto_augment!r}"
        )
    if erase > 0:
        steps.append(random_erasing(erase))
    return compose(*steps)


def every_picture(evaluate: Callable[[Picture], np.ndarray]) -> Transform:
    """The transform that applies `evaluate` to every example, so that `Batches` can take it."""

    def apply(picture: Picture, rng: np.random.Generator) -> Picture:
        return to_picture(evaluate(picture))

    return PictureTransform(apply)
