"""Scenes with garments of Fashion-MNIST as a TFDS builder that needs no TensorFlow.

Each example is a picture with labelled garments: PNG bytes of the picture and of its instance map,
whose pixels hold j + 1 where garment j is seen and 0 elsewhere; boxes around what is seen, in
pixels; labels; and the numbers of the garments' pictures in the split of Fashion-MNIST that they
are from. train and val are drawn from two parts of its train split, test from its test split.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxvision.data.builders.fashion_mnist import CLASS_NAMES
from jaxvision.data.prepared import QuietPreparation, track
from jaxvision.data.scene_drawing import SPLITS, VERSION
from jaxvision.data.scene_examples import SceneEncoder, encode_scenes

COUNTS = {"train": 20_000, "val": 1_000, "test": 2_000}
GARMENTS = (1, 8)
SIZES = (128, 224)


@dataclasses.dataclass(eq=False, kw_only=True)
class SceneConfig(tfds.core.BuilderConfig):
    """What the scenes of a config have in common; its name says all of it."""

    size: int = 128
    garments: tuple[int, int] = GARMENTS
    counts: Mapping[str, int] = dataclasses.field(default_factory=lambda: COUNTS)
    pictures: str = "full"
    """Which Fashion-MNIST they are drawn from: `full` or `embedded`. They give other scenes."""


def scene_config(
    size: int = 128,
    *,
    pictures: str = "full",
    garments: tuple[int, int] = GARMENTS,
    counts: Mapping[str, int] = COUNTS,
) -> SceneConfig:
    """The config of these options, named so that no two of them share a folder.

    >>> scene_config(224, pictures="embedded", garments=(1, 1)).name
    '224_embedded_garments1to1'
    """
    name = str(size)
    if pictures != "full":
        name += f"_{pictures}"
    if tuple(garments) != GARMENTS:
        name += "_garments{}to{}".format(*garments)
    if dict(counts) != COUNTS:
        name += "".join(f"_{split}{counts[split]}" for split in SPLITS)
    description = f"Scenes of {size} x {size} pixels with {garments[0]} to {garments[1]} garments."
    return SceneConfig(
        name=name,
        description=description,
        size=size,
        garments=garments,
        counts=dict(counts),
        pictures=pictures,
    )


with tfds.core.registered.skip_registration():

    class GarmentScenes(QuietPreparation, tfds.core.GeneratorBasedBuilder):
        """Scenes drawn from Fashion-MNIST, in the order of their numbers.

        `pictures` has its train and test split, of `images` uint8 [n, 28, 28, 1] and `labels`;
        `provenance` is a sentence about where they came from. Both are for preparing only.
        """

        name = "garment_scenes"
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = tuple(scene_config(size) for size in SIZES)

        def __init__(
            self,
            *,
            pictures: Mapping[str, Any] | None = None,
            processes: int = 1,
            provenance: str | None = None,
            **kwargs: Any,
        ):
            self._pictures, self._processes = pictures, processes
            self._provenance = provenance
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            size = self.builder_config.size
            png = {"encoding_format": "png"}
            return tfds.core.DatasetInfo(
                builder=self,
                description=__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(size, size, 3), **png),
                        "instances": tfds.features.Image(shape=(size, size, 1), **png),
                        "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
                        "labels": tfds.features.Sequence(
                            tfds.features.ClassLabel(names=list(CLASS_NAMES))
                        ),
                        "garments": tfds.features.Sequence(np.int64),
                    }
                ),
                homepage="https://github.com/zalandoresearch/fashion-mnist",
                license="MIT, Copyright (c) 2017 Zalando SE (the garments)",
                metadata=tfds.core.MetadataDict(source=self._provenance or "unknown"),
                disable_shuffling=True,
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            config = self.builder_config
            assert self._pictures is not None, "given where it is to be prepared"
            drawer = SceneEncoder.of(self._pictures, split, config.size, config.garments)
            count = config.counts[split]
            examples = encode_scenes(drawer, count, processes=self._processes)
            yield from enumerate(track(examples, f"drawing {split}", count))


def builder_of(config: SceneConfig, **options: Any) -> GarmentScenes:
    """The builder of a config: TFDS logs a warning about one that its class doesn't list."""
    with tfds.core.registered.skip_registration():
        listing_it = type("GarmentScenes", (GarmentScenes,), {"BUILDER_CONFIGS": (config,)})
    return listing_it(config=config, **options)
