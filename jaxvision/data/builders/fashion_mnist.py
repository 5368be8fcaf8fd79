"""Fashion-MNIST (arXiv:1708.07747) as a TFDS builder that needs no TensorFlow.

28x28 grey pictures of garments in ten classes. Two configs: `full` (60,000 train, 10,000 test),
read from the four official IDX files in `manual_dir`, and `embedded` (11,000 and 2,000 of them),
read from the package. Examples are kept in the order of the original files, which TFDS would
otherwise shuffle: unshuffled training must see what torchvision's data set gives.
"""

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
from jaxvision.data.prepared import QuietPreparation, track

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle Boot",
)


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
    """One set of four files: the full data set, or the subset in the package."""

    name: str
    splits: Mapping[str, SplitFiles]


FULL = Edition(
    "full",
    {
        "train": SplitFiles(
            60_000,
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "test": SplitFiles(
            10_000,
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)
EMBEDDED = Edition(
    "embedded",
    {
        "train": SplitFiles(
            11_000,
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "469f9cac911ef67b2fc9d1a2914431d128f591c2f7cdfaac36bc20bb41b97d5d",
            "f7d6461abdf45b7a9f122c56ddb0381d861f6a010631cf79ddf644643c02b29b",
        ),
        "test": SplitFiles(
            2_000,
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
            "15a92dd1e9b16ea361928086e77df4dfa890c255c00b5a8c8162c1040ce8eef1",
            "234596aeb6eb48133ec99a62541f90bc0728c9559a681f1e0638037462458f2c",
        ),
    },
)
EDITIONS = {edition.name: edition for edition in (FULL, EMBEDDED)}


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


# TFDS registers every builder under its name; ours must not take the place of TFDS's own.
with tfds.core.registered.skip_registration():

    class FashionMNIST(QuietPreparation, tfds.core.GeneratorBasedBuilder):
        """Fashion-MNIST from IDX files.

        `provenance` is a sentence about where the files came from; it is kept in the metadata.

        >>> builder = FashionMNIST(config="embedded", data_dir="datasets")  # doctest: +SKIP
        >>> builder.download_and_prepare()  # doctest: +SKIP
        >>> builder.as_data_source(split="train")[0]["image"].shape  # doctest: +SKIP
        (28, 28, 1)
        """

        name = "fashion_mnist"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the four .gz files of Fashion-MNIST into manual_dir."
        BUILDER_CONFIGS = (
            tfds.core.BuilderConfig(name="full", description="All 60,000 + 10,000 pictures."),
            tfds.core.BuilderConfig(name="embedded", description="11,000 + 2,000 of them."),
        )

        def __init__(self, *, provenance: str | None = None, **kwargs: Any):
            self._provenance = provenance
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://github.com/zalandoresearch/fashion-mnist",
                license="MIT, Copyright (c) 2017 Zalando SE",
                metadata=tfds.core.MetadataDict(source=self._provenance or "unknown"),
                disable_shuffling=True,
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            edition = EDITIONS[self.builder_config.name]
            embedded = edition is EMBEDDED
            folder = embedded_folder(self.name) if embedded else Path(dl_manager.manual_dir)
            return {
                split: self._generate_examples(folder, edition, split) for split in edition.splits
            }

        def _generate_examples(
            self, folder: Path, edition: Edition, split: str
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            import cv2

            examples = zip(*read_split(folder, edition, split), strict=True)
            size = edition.splits[split].size
            for key, (image, label) in enumerate(track(examples, f"preparing {split}", size)):
                # As PNG bytes, because TFDS encodes an array with TensorFlow.
                yield key, {"image": cv2.imencode(".png", image)[1].tobytes(), "label": int(label)}
