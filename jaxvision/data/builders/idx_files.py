"""What MNIST and the data sets made like it share: four IDX files and the TFDS builder of them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from jaxvision.data.embedded import embedded_folder
from jaxvision.data.idx import find_idx, read_idx
from jaxvision.data.prepared import QuietPreparation, png_examples


@dataclass(frozen=True)
class SplitFiles:
    """The two files of a split (names without .gz) and the sha256 of their decompressed bytes."""

    size: int
    images: str
    labels: str
    images_sha256: str
    labels_sha256: str


@dataclass(frozen=True)
class Edition:
    """One set of four files: a full data set, or the subset of one in the package."""

    name: str
    splits: Mapping[str, SplitFiles]


def read_split(
    folder: str | os.PathLike[str], edition: Edition, split: str
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, "n"]]:
    """Images and labels of one split from the IDX files in `folder`, checked against the sha256."""
    files = edition.splits[split]
    images = read_idx(
        find_idx(folder, files.images), shape=(files.size, 28, 28), sha256=files.images_sha256
    )
    labels = read_idx(
        find_idx(folder, files.labels), shape=(files.size,), sha256=files.labels_sha256
    )
    return images, labels


with tfds.core.registered.skip_registration():

    class IdxBuilder(QuietPreparation, tfds.core.GeneratorBasedBuilder):
        """The builder of such a data set; a class below it only says which.

        Examples are kept in the order of the original files. `provenance` is a sentence about where
        the files came from; it is kept in the metadata.
        """

        VERSION = tfds.core.Version("1.0.0")
        EDITIONS: Mapping[str, Edition] = {}
        CLASS_NAMES: tuple[str, ...] = ()
        DESCRIPTION = HOMEPAGE = LICENSE = ""

        def __init__(self, *, provenance: str | None = None, **kwargs: Any):
            self._provenance = provenance
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.DESCRIPTION,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=list(self.CLASS_NAMES)),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage=self.HOMEPAGE,
                license=self.LICENSE,
                metadata=tfds.core.MetadataDict(source=self._provenance or "unknown"),
                disable_shuffling=True,
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            edition = self.EDITIONS[self.builder_config.name]
            embedded = edition.name == "embedded"
            folder = embedded_folder(self.name) if embedded else Path(dl_manager.manual_dir)
            return {
                split: self._generate_examples(folder, edition, split) for split in edition.splits
            }

        def _generate_examples(
            self, folder: Path, edition: Edition, split: str
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            images, labels = read_split(folder, edition, split)
            yield from png_examples(images, labels, f"preparing {split}")
