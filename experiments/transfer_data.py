"""The data of a transfer: pictures prepared as the pretrained network wants them."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxvision.data import (
    ArrayDataset,
    Batches,
    FileDataset,
    classification_eval,
    classification_train,
    compose,
    every_picture,
    random_crop,
    random_horizontal_flip,
    to_arrays,
)
from jaxvision.errors import UserError
from jaxvision.train.resident import RESIDENT_LIMIT
from jaxvision.weights import Preprocessing

Dataset = ArrayDataset | FileDataset


def preset_of(prepared: Preprocessing) -> dict[str, Any]:
    """Returns what is done to a picture on the host, as `classification_eval` takes it."""
    names = ("resize_size", "crop_size", "interpolation", "antialias")
    return {name: getattr(prepared, name) for name in names}


def select_classes(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """Returns the examples of these classes, which are numbered anew in the order of `names`."""
    unknown = [name for name in names if name not in dataset.class_names]
    if unknown or not names:
        raise UserError(
            f"{dataset.name} has no class {', '.join(unknown) or '(none given)'}; it has "
            f"{', '.join(dataset.class_names)}"
        )
    numbers = np.full(len(dataset.class_names), -1, np.int32)
    numbers[[dataset.class_names.index(name) for name in names]] = np.arange(len(names))
    labels = numbers[dataset.labels]
    rows = np.flatnonzero(labels >= 0)
    return replace(dataset.subset(rows), labels=labels[rows], class_names=tuple(names))


def draw_examples(dataset: Dataset, number: int, seed: int) -> Dataset:
    """Returns `number` examples, of each class as many as of the others, or one more."""
    if not 0 < number <= len(dataset):
        raise UserError(
            f"--num-pictures {number}: expected 1 to {len(dataset)}, the size of "
            f"{dataset.name}'s {dataset.split} set"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset))
    labels = dataset.labels[order]
    # The first of every class, then the second of every class, and so on.
    rank = np.zeros(len(order), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows] = np.arange(len(rows))
    chosen = order[np.argsort(rank, kind="stable")[:number]]
    return dataset.subset(np.sort(chosen))


def held_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Returns `dataset` in two parts, at random: the second has `fraction` of it."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    count = max(1, round(fraction * len(dataset)))
    return dataset.subset(np.sort(order[count:])), dataset.subset(np.sort(order[:count]))


def as_rgb(dataset: ArrayDataset) -> ArrayDataset:
    """Returns grey pictures with three equal channels, as networks pretrained in colour expect."""
    if dataset.images.shape[-1] == 3:
        return dataset
    return replace(dataset, images=np.repeat(dataset.images, 3, axis=-1))


def prepare_validation(dataset: Dataset, preset: dict[str, Any], workers: int) -> ArrayDataset:
    """Decodes, resizes and crops every picture once."""
    side = preset["crop_size"]
    size = len(dataset) * side * side * 3
    if size > 2 * RESIDENT_LIMIT:
        raise UserError(
            f"{len(dataset):,} pictures of {side} x {side} would take {size / 1e9:.1f} GB of "
            f"memory; choose a smaller --crop, or fewer pictures"
        )
    if isinstance(dataset, FileDataset):
        return to_arrays(dataset, classification_eval(**preset), workers=max(1, workers))
    dataset = as_rgb(dataset)
    if dataset.images.shape[1:3] == (side, side):
        return dataset
    evaluate = classification_eval(**preset)
    return replace(dataset, images=np.stack([evaluate(image) for image in dataset.images]))


def training_batches(
    dataset: Dataset,
    preset: dict[str, Any],
    *,
    batch_size: int,
    seed: int,
    augment: bool,
    workers: int,
) -> Batches:
    """Returns the batches to train with: prepared once, or augmented anew each time.

    Photographs are cropped and resized at random and mirrored, as in torchvision's tutorial; small
    pictures in memory are moved by up to an eighth of their side and mirrored.
    """
    side = preset["crop_size"]
    if not augment:
        if len(dataset) * side * side * 3 <= RESIDENT_LIMIT:
            prepared = prepare_validation(dataset, preset, workers)
            return Batches(prepared, batch_size=batch_size, seed=seed)
        transform = every_picture(classification_eval(**preset))
        if not isinstance(dataset, FileDataset):
            dataset = as_rgb(dataset)
        return Batches(dataset, batch_size=batch_size, seed=seed, transform=transform)
    if isinstance(dataset, FileDataset):
        options = {k: preset[k] for k in ("interpolation", "antialias")}
        transform = classification_train(side, **options)
        return Batches(dataset, batch_size=batch_size, seed=seed, transform=transform)
    prepared = prepare_validation(dataset, preset, workers)
    crop = random_crop((side, side), padding=side // 8)
    transform = compose(crop, random_horizontal_flip())
    return Batches(prepared, batch_size=batch_size, seed=seed, transform=transform)
