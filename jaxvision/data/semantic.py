"""Semantic maps, one class a pixel, from instance masks: 0 is the background, class k is k + 1."""

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.detection import DetectionDataset
from jaxvision.errors import UserError

MOST_CLASSES = 254
"""Beside the background and 255, which stands for pixels that do not count."""


def semantic_map(
    masks: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "m h w"], labels: Int[np.ndarray, "m"]
) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel plus 1, or 0 where no object is.

    `masks` are an instance map (j + 1 where object j is), or one mask an object, as in an example;
    where those overlap, the later object is on top.

    >>> semantic_map(np.array([[0, 1, 2]], np.uint8), np.array([4, 9])).tolist()
    [[0, 5, 10]]
    >>> semantic_map(np.array([[[True, True, False]]]), np.array([4])).tolist()
    [[5, 5, 0]]
    """
    if labels.max(initial=0) >= MOST_CLASSES or labels.min(initial=0) < 0:
        raise ValueError(f"expected labels from 0 to {MOST_CLASSES - 1}, got {labels.tolist()}")
    classes = np.concatenate([[0], labels + 1]).astype(np.uint8)
    if masks.ndim == 2:
        return classes[masks]
    if len(masks) == 0:
        return np.zeros(masks.shape[1:], np.uint8)
    on_top = len(masks) - masks[::-1].argmax(0)
    return classes[np.where(masks.any(0), on_top, 0)]


def semantic_dataset(dataset: DetectionDataset) -> ArrayDataset:
    """The pictures of a detection data set with a semantic map each, uint8 [n, h, w], as labels.

    `class_names` begin with "background". The pictures must have one size and be in an array,
    as garment_scenes' are; others raise `UserError`.

    >>> train = semantic_dataset(load_detection("garment_scenes")["train"])  # doctest: +SKIP
    >>> Batches(train, batch_size=8)(0)["label"].shape  # doctest: +SKIP
    (8, 128, 128)
    """
    if not isinstance(dataset.images, np.ndarray):
        raise UserError(
            f"{dataset.name}: expected pictures of one size in an array, got files: use the masks "
            "of its examples with semantic_map instead"
        )
    if dataset.masks is None:
        raise UserError(f"{dataset.name} has no masks: expected a data set with masks")
    maps = np.empty(dataset.images.shape[:3], np.uint8)
    for i, objects in enumerate(dataset.objects):
        masks = dataset.masks[i]
        if not isinstance(masks, np.ndarray):
            masks = dataset.example(i, masks=True)["masks"]
        maps[i] = semantic_map(masks, objects.labels)
    return ArrayDataset(
        images=dataset.images,
        labels=maps,
        class_names=("background", *dataset.class_names),
        name=dataset.name,
        split=dataset.split,
        source=dataset.source,
    )
