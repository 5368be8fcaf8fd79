"""CIFAR-10 (Krizhevsky 2009) as a TFDS builder that needs no TensorFlow.

32x32 RGB pictures in ten classes, 50,000 train and 10,000 test, in the order of the official files.
Read from the archive's binary version, which holds bytes: the other one holds pickles, and reading
those can run whatever is in them. A record is one byte of label and 3,072 of pixels, by channel.
"""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from jaxvision.data.prepared import QuietPreparation, png_examples
from jaxvision.errors import UserError

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER = "cifar-10-batches-bin"
SPLITS = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
RECORDS, RECORD_BYTES = 10_000, 1 + 32 * 32 * 3


def read_split(
    folder: Path, split: str
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, "n"]]:
    """Images and labels of one split from `folder`: it, or a folder in it with the archive's name,
    holds the unpacked files; or it holds the archive itself, which is read without unpacking."""
    files = read_files(folder, SPLITS[split])
    records = np.concatenate([_records(folder, name, data) for name, data in files.items()])
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].copy()


def read_files(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The bytes of the files of these names, in this order; a missing one raises `UserError`."""
    for place in (folder, folder / FOLDER):
        if (place / names[0]).is_file():
            return {name: _read(place / name) for name in names}
    if not (folder / ARCHIVE).is_file():
        raise UserError(
            f"{folder}: expected {ARCHIVE} or the folder {FOLDER} in this folder, found neither"
        )
    found = {}
    try:
        with tarfile.open(folder / ARCHIVE, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in names and member.isreg() and member.size <= RECORDS * RECORD_BYTES:
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{folder / ARCHIVE}: expected a complete archive, got: {error}: fetch it again"
        ) from error
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{folder / ARCHIVE}: expected {', '.join(missing)} in it, found none")
    return {name: found[name] for name in names}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: expected a file of CIFAR-10 here, got: {reason}") from error


def _records(folder: Path, name: str, data: bytes) -> UInt8[np.ndarray, "n bytes"]:
    if len(data) != RECORDS * RECORD_BYTES:
        raise UserError(
            f"{folder}: expected {RECORDS * RECORD_BYTES:,} bytes in {name}, got {len(data):,}: "
            "fetch it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(RECORDS, RECORD_BYTES)
    if records[:, 0].max() >= len(CLASS_NAMES):
        raise UserError(f"{folder}: expected labels below 10 in {name}, got {records[:, 0].max()}")
    return records


with tfds.core.registered.skip_registration():

    class CIFAR10(QuietPreparation, tfds.core.GeneratorBasedBuilder):
        """CIFAR-10 from its binary files. `provenance` says where they came from."""

        name = "cifar10"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {ARCHIVE} into manual_dir."
        BUILDER_CONFIGS = (
            tfds.core.BuilderConfig(name="full", description="All 50,000 + 10,000 pictures."),
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
                        "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                        "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
                metadata=tfds.core.MetadataDict(source=self._provenance or "unknown"),
                disable_shuffling=True,
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            folder = Path(dl_manager.manual_dir)
            return {split: self._generate_examples(folder, split) for split in SPLITS}

        def _generate_examples(
            self, folder: Path, split: str
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from png_examples(*read_split(folder, split), f"preparing {split}")
