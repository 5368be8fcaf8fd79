"""The pictures as the R-CNN family sees them: of which size, how changed, with which proposals."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
from augmentation import Augmentation, augment, check_augmentation
from detection import Finder, Thresholds
from detection_data import DetectionData

from jaxvision.data import (
    DetectionBatches,
    DetectionDataset,
    Proposals,
    letterbox,
    load_proposals,
    resize_shortest_side,
)
from jaxvision.data.detection_geometry import GREY
from jaxvision.data.detection_transforms import PlacementTransform
from jaxvision.errors import UserError

STRIDE = 32
"""Arrays have sides that are multiples of it."""
AT_ONCE, AT_ONCE_LARGE = 32, 4
"""Pictures of a batch in evaluation, where they are fitted into a small square and otherwise."""


@dataclass(frozen=True)
class SizeFlags(Augmentation, DetectionData):
    size: int | None = None
    """The side of the square that pictures are fitted into, by default that of garment_scenes;
    other data sets keep their aspect, see --shortest."""
    shortest: int = 600
    """What the shorter side becomes where there is no --size, unless the longer one would exceed
    --longest. Such pictures are mirrored and recoloured, but not scaled."""
    longest: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class PictureFlags(SizeFlags):
    num_proposals: int = 1000
    """Of R-CNN and Fast R-CNN, the first so many boxes of Selective Search; the papers have
    2,000."""
    search: Literal["single", "fast", "quality"] = "fast"
    """The mode of Selective Search. What it finds is kept for each data set."""
    search_workers: int | None = None
    """Processes that search, by default two, or as many as there are processors if fewer."""


class Pictures:
    """Batches, and what finds objects in a data set, as the flags say; `with_proposals` has
    Selective Search's, computed as a data set is first asked for, as `PictureFlags` say, and
    `with_masks` the objects' masks, `with_keypoints` their keypoints."""

    def __init__(
        self,
        config: SizeFlags,
        thresholds: Thresholds,
        *,
        with_proposals: bool = False,
        with_masks: bool = False,
        with_keypoints: bool = False,
    ):
        self.config, self.thresholds = config, thresholds
        self.with_proposals, self.with_masks = with_proposals, with_masks
        self.with_keypoints = with_keypoints
        self._found: dict[int, tuple[DetectionDataset, Proposals]] = {}

    @property
    def side(self) -> int | None:
        """The side of the square; None where pictures keep their shape."""
        if self.config.size is None and self.config.data == "garment_scenes":
            return self.config.picture_size
        return self.config.size

    @property
    def buckets(self) -> list[tuple[int, int]] | None:
        """The shapes of batches where pictures keep theirs: a wide one and a high one."""
        if self.side is not None:
            return None
        short, long = (_padded(side) for side in (self.config.shortest, self.config.longest))
        return list(dict.fromkeys([(short, long), (long, short)]))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (*(self.buckets[0] if self.side is None else (self.side, self.side)), 3)

    @property
    def placement(self) -> PlacementTransform:
        """What brings a picture to the size that the network sees it in."""
        if self.side is None:
            return resize_shortest_side(self.config.shortest, self.config.longest)
        return letterbox((self.side, self.side), center=False)

    @property
    def meta(self) -> Mapping[str, Any]:
        """What a checkpoint says of how pictures are prepared, and their proposals found."""
        if self.side is None:
            prepared = {"kind": "shortest_side", "multiple": STRIDE}
            prepared |= {"shortest": self.config.shortest, "longest": self.config.longest}
        else:
            size = (self.side, self.side)
            prepared = {"kind": "letterbox", "size": size, "fill": GREY, "center": False}
        meta = {"preprocessing": prepared}
        if self.with_proposals:
            count = self.config.num_proposals
            meta["proposals"] = {"mode": self.config.search, "count": count}
        return meta

    def proposals_of(self, dataset: DetectionDataset) -> Proposals | None:
        if not self.with_proposals:
            return None
        if id(dataset) not in self._found:
            found = load_proposals(
                dataset,
                mode=self.config.search,
                max_boxes=self.config.num_proposals,
                data_dir=self.config.data_dir,
                workers=self.config.search_workers or min(2, os.cpu_count() or 1),
            )
            self._found[id(dataset)] = (dataset, found)  # which keeps the id its own
        return self._found[id(dataset)][1]

    def batches(
        self, dataset: DetectionDataset, batch_size: int, *, train: bool
    ) -> DetectionBatches:
        """Returns batches to train with, in random order and augmented, or each picture once."""
        config, transform = self.config, self.placement
        if train:
            # A bucket is chosen by a picture's size, which chance must not change.
            still = config if self.side else replace(config, scale=(1.0, 1.0))
            transform = augment(still, self.placement, self.input_shape[:2])
        return DetectionBatches(
            dataset,
            batch_size,
            seed=config.seed,
            shuffle=train,
            transform=transform,
            buckets=self.buckets,
            masks=self.with_masks,
            keypoints=self.with_keypoints,
            # Of few pictures of a bucket's shape there may be no whole batch.
            drop_last=train and self.buckets is None,
            proposals=self.proposals_of(dataset),
            num_proposals=config.num_proposals if self.with_proposals else None,
        )

    def finder(self, model: nn.Module, dataset: DetectionDataset, mean: Any, std: Any) -> Finder:
        return Finder(
            model,
            dataset,
            prepare=self.placement,
            mean=mean,
            std=std,
            thresholds=self.thresholds,
            batch_size=AT_ONCE if self.side else AT_ONCE_LARGE,
            buckets=self.buckets,
            masks=self.with_masks,
            keypoints=self.with_keypoints,
            proposals=self.proposals_of(dataset),
            num_proposals=self.config.num_proposals if self.with_proposals else None,
        )


def _padded(side: int) -> int:
    return -(-side // STRIDE) * STRIDE


def check_sizes(config: SizeFlags) -> None:
    """Refuses what cannot be, before any work."""
    check_augmentation(config)
    if config.size is not None and (config.size < STRIDE or config.size % STRIDE):
        raise UserError(f"expected a --size that is a multiple of {STRIDE}, got {config.size}")
    if not 1 <= config.shortest <= config.longest:
        raise UserError(
            f"expected 1 <= --shortest <= --longest, got {config.shortest} and {config.longest}"
        )


def check_pictures(config: PictureFlags) -> None:
    """Refuses the sizes and the proposals that cannot be, before any work."""
    check_sizes(config)
    if config.num_proposals < 1 or (
        config.search_workers is not None and config.search_workers < 1
    ):
        raise UserError("expected --num-proposals and --search-workers of at least 1")
