"""Mixup, CutMix: each picture of a batch mixed with its neighbour, and labels with shares.

A batch transform is a function `(batch, rng) -> batch`; `Batches` gives it a generator from (seed,
step). These keep `label` int [b], the label of the first of the two pictures, for metrics, and add
`soft_label`, float32 [b, k], whose rows are shares of the classes and sum to 1: a loss uses it
where it is there. Pictures stay uint8. A batch is shuffled already, so the partner of picture i is
picture i - 1, and that of the first is the last, as in torchvision.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int, UInt8

Batch = dict[str, np.ndarray]
BatchTransform = Callable[[Batch, np.random.Generator], Batch]


def mixup(num_classes: int, *, alpha: float = 1.0) -> BatchTransform:
    """Mixes the colours of two pictures, by a share from Beta(alpha, alpha) (arXiv:1710.09412)."""
    _check(num_classes, alpha)

    def mix(batch: Batch, rng: np.random.Generator) -> Batch:
        share = rng.beta(alpha, alpha)
        return {
            **batch,
            "image": mix_images(batch["image"], share),
            "soft_label": mix_labels(batch, num_classes, share),
        }

    return mix


def cutmix(num_classes: int, *, alpha: float = 1.0) -> BatchTransform:
    """Pastes a box of the other picture, of about 1 - Beta(alpha, alpha) of the area
    (arXiv:1905.04899); the labels' shares are those of the pixels."""
    _check(num_classes, alpha)

    def mix(batch: Batch, rng: np.random.Generator) -> Batch:
        height, width = batch["image"].shape[1:3]
        box = cutmix_box(height, width, rng.beta(alpha, alpha), rng)
        images, share = paste_box(batch["image"], box)
        return {
            **batch,
            "image": images,
            "soft_label": mix_labels(batch, num_classes, share),
        }

    return mix


def random_choice(*transforms: BatchTransform) -> BatchTransform:
    """Applies one of the batch transforms, each with the same probability.

    >>> transform = random_choice(mixup(1000, alpha=0.2), cutmix(1000))
    """

    def choose(batch: Batch, rng: np.random.Generator) -> Batch:
        return transforms[rng.integers(len(transforms))](batch, rng)

    return choose


def mix_images(images: UInt8[np.ndarray, "b h w c"], share: float) -> UInt8[np.ndarray, "b h w c"]:
    """`share` of each picture and the rest of its neighbour, rounded to grey levels.

    >>> mix_images(np.array([0, 100], np.uint8).reshape(2, 1, 1, 1), 0.75).ravel().tolist()
    [25, 75]
    """
    # cv2 would be quicker, but float32 is what torchvision computes in.
    share32 = np.float32(share)
    mixed = np.roll(images, 1, axis=0) * (1 - share32) + images * share32
    return np.rint(mixed).astype(np.uint8)


def mix_labels(batch: Batch, num_classes: int, share: float) -> Float32[np.ndarray, "b k"]:
    """`share` of each label and the rest of its neighbour's, of `soft_label` where there is one."""
    soft = batch.get("soft_label")
    if soft is None:
        soft = one_hot(batch["label"], num_classes)
    share32 = np.float32(share)
    return np.roll(soft, 1, axis=0) * (1 - share32) + soft * share32


def one_hot(labels: Int[np.ndarray, "b"], num_classes: int) -> Float32[np.ndarray, "b k"]:
    """1 at each label, 0 elsewhere; a label outside of the classes raises `ValueError`."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"expected labels from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}"
        )
    return np.eye(num_classes, dtype=np.float32)[labels]


def cutmix_box(
    height: int, width: int, share: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of `1 - share` of the area around a random pixel.

    What sticks out of the picture is cut off, so it may be smaller. Draws: x, then y.
    """
    x, y = int(rng.integers(width)), int(rng.integers(height))
    half = 0.5 * math.sqrt(1.0 - share)
    half_w, half_h = int(half * width), int(half * height)
    return max(y - half_h, 0), min(y + half_h, height), max(x - half_w, 0), min(x + half_w, width)


def paste_box(
    images: UInt8[np.ndarray, "b h w c"], box: tuple[int, int, int, int]
) -> tuple[UInt8[np.ndarray, "b h w c"], float]:
    """Each picture with its neighbour's pixels in the box, and the share of it that is left."""
    top, bottom, left, right = box
    pasted = images.copy()
    pasted[:, top:bottom, left:right] = np.roll(images[:, top:bottom, left:right], 1, axis=0)
    height, width = images.shape[1:3]
    return pasted, 1.0 - (bottom - top) * (right - left) / (height * width)


def _check(num_classes: int, alpha: float) -> None:
    if num_classes < 1 or alpha <= 0:
        raise ValueError(f"expected classes and an alpha above 0, got {num_classes} and {alpha}")
