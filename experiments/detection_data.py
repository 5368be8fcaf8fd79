"""The flags that say which pictures a detector is trained on, and the splits that they name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxvision.data import DetectionDataset, load_detection
from jaxvision.data.detection_recipes import WITH_MASKS
from jaxvision.data.keypoints import IN_FILES, with_extreme_points
from jaxvision.errors import UserError
from jaxvision.metrics.errors import SIMILAR_CLASSES, ClassGroups

Name = Literal[
    "garment_scenes",
    "voc2007",
    "voc2012",
    "voc0712",
    "penn_fudan",
    "coco",
    "coco_json",
    "voc_xml",
    "yolo_txt",
]


@dataclass(frozen=True)
class DetectionData:
    """Which pictures."""

    data: Name = "garment_scenes"
    """The data set; coco_json, voc_xml and yolo_txt are folders of your own, given by --source."""
    source: Path | None = None
    """The folder with the data set's files; for garment_scenes those of Fashion-MNIST."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    garments: Literal["auto", "full", "embedded"] = "auto"
    """Of garment_scenes: full, the 60,000 pictures; embedded, the 11,000 in the package."""
    picture_size: Literal[128, 224] = 128
    """Of garment_scenes, in pixels."""
    num_train: int | None = None
    """At most so many training pictures, by default all; val and test likewise."""
    num_val: int | None = None
    num_test: int | None = None
    train_split: str = "train"
    """What is trained on; trainval, for the figures of VOC's papers, has the pictures of val too,
    so that validation then says little."""
    overfit: bool = False
    """A check of everything: validate and test on the training pictures themselves, of which
    --num-train 8 leaves eight. Take --flip 0 --scale 1 1 --colors 0 with it."""


def load_splits(
    config: DetectionData, *, masks: bool = False, keypoints: bool = False
) -> dict[str, DetectionDataset]:
    """Loads "train", "val" and "test", no larger than asked for; to overfit, all three the same.

    A data set without a test set is tested on its validation set, and one without a validation set
    is validated on its test set, which is said; one that has neither is refused, and so is one
    without an object to measure by. With `masks` objects have them where the data set has, which of
    VOC's is true of those pictures that are annotated for segmentation. With `keypoints` they have
    those of the files, which are COCO's, or else their masks' extreme points.
    """
    extreme = keypoints and config.data not in IN_FILES
    splits = _splits(config, masks or extreme, keypoints and not extreme)
    if extreme:
        print(f"{config.data}: its keypoints are the extreme points of its masks")
        splits = {name: with_extreme_points(split) for name, split in splits.items()}
    if config.overfit:
        splits = dict.fromkeys(splits, splits["train"])
    for name in ("val", "test"):
        _check_measurable(splits[name], name, keypoints)
    return splits


def _check_measurable(dataset: DetectionDataset, split: str, keypoints: bool) -> None:
    """Refuses pictures in which no object counts: there every score is undefined."""
    counted = [~objects.difficult for objects in dataset.objects]
    if keypoints:
        points = zip(counted, dataset.keypoints, strict=True)
        counted = [each & (those[:, :, 2] > 0).any(axis=1) for each, those in points]
    if not any(each.any() for each in counted):
        kind = "object with a visible keypoint" if keypoints else "object that is not difficult"
        raise UserError(
            f"{dataset.name}: expected an {kind} to measure by in {split}, got none in its "
            f"{len(dataset):,} pictures: choose others, or more of them with --num-{split}"
        )


def _splits(config: DetectionData, masks: bool, keypoints: bool) -> dict[str, DetectionDataset]:
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    wrong = [f"--num-{name} {n}" for name, n in counts.items() if n is not None and n < 1]
    if wrong:
        raise UserError(f"expected at least one picture, got {', '.join(wrong)}")
    common = {"source": config.source, "data_dir": config.data_dir}
    if config.data == "garment_scenes" and config.train_split != "train":
        raise UserError(f"garment_scenes: expected --train-split train, got {config.train_split}")
    if config.data == "garment_scenes":
        given = {name: n for name, n in counts.items() if n is not None}
        return load_detection(
            config.data, size=config.picture_size, data=config.garments, counts=given, **common
        )
    options = WITH_MASKS.get(config.data, {}) if masks else {}
    if keypoints:
        options = {**options, "keypoints": True}
    splits = load_detection(config.data, **common, **options)
    trained = config.train_split
    if trained not in splits:
        raise UserError(f"{config.data}: expected a split {trained}, got {', '.join(splits)}")
    held_out = [name for name in ("val", "test") if name in splits]
    if not held_out:
        raise UserError(
            f"{config.data}: expected a split val or test beside {trained}, to measure by; got "
            f"{', '.join(splits)}"
        )
    if len(held_out) == 1:
        print(f"{config.data} has no other held-out pictures: {held_out[0]} is val and test")
    chosen = {"train": splits[trained], "val": splits[held_out[0]], "test": splits[held_out[-1]]}
    return {name: _first(split, counts[name]) for name, split in chosen.items()}


def similar_classes(config: DetectionData) -> ClassGroups:
    """Returns the groups of classes that count as similar in the breakdown of errors."""
    if config.data == "garment_scenes":
        return SIMILAR_CLASSES["garments"]
    return SIMILAR_CLASSES["voc"] if config.data in ("voc2007", "voc2012", "voc0712") else ()


def _first(dataset: DetectionDataset, count: int | None) -> DetectionDataset:
    return dataset if count is None else dataset.subset(np.arange(min(count, len(dataset))))
