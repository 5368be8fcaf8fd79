"""Where each prepared data set comes from: its builder, its local files, its download.

One `Recipe` a data set; `sources` tries what a recipe has, in one order for all of them.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.data.archives import extract
from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.download import download
from jaxvision.data.files import FileDataset
from jaxvision.data.idx import decompressed_sha256, idx_sha256
from jaxvision.data.images import check_header
from jaxvision.data.prepared import (
    damaged,
    read_decoded,
    read_files,
    read_images,
    write_decoded,
)
from jaxvision.errors import UserError

# Where Debian's package dataset-fashion-mnist puts the four files.
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_URLS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
MNIST_URLS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
CIFAR10_URLS = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
EMBEDDED_SENTENCE = "embedded subset, 11,000 + 2,000 pictures inside the package"


@dataclass(frozen=True)
class Recipe:
    """One data set. Every function takes what it needs when it is called, TFDS included."""

    splits: tuple[str, ...]
    files: str
    """What a source folder holds, in words."""
    builder: Callable[[], Any]
    """Imports and returns the TFDS builder class, whose config `full` is the whole set."""
    opened: Callable[[Path, Path], contextlib.AbstractContextManager[Path]]
    """(a source folder, a folder for scratch) -> the folder that the builder reads; checks it."""
    fetch: Callable[[Path], Path]
    """Downloads the official files into a folder, checks them, and returns it."""
    read: Callable[[Any, str], ArrayDataset | FileDataset]
    """(a builder that is prepared, a split) -> the data set."""
    system_folder: Callable[[], Path] | None = None
    """Where a package of the system puts the files."""
    embedded: str | None = None
    """The sentence of the subset inside this package, where there is one."""


# ------------------------------------------------------------------- MNIST and those made like it
def _idx_recipe(
    builder: Callable[[], Any],
    urls: Callable[[], Sequence[str]],
    *,
    system_folder: Callable[[], Path] | None = None,
    embedded: str | None = None,
) -> Recipe:
    @contextlib.contextmanager
    def opened(folder: Path, scratch: Path) -> Iterator[Path]:
        from jaxvision.data.builders.idx_files import read_split

        edition = builder().EDITIONS["full"]
        for split in edition.splits:
            read_split(folder, edition, split)
        yield folder

    def fetch(folder: Path) -> Path:
        for files in builder().EDITIONS["full"].splits.values():
            expected = {files.images: files.images_sha256, files.labels: files.labels_sha256}
            for stem, sha256 in expected.items():
                file = f"{stem}.gz"
                path = download([url + file for url in urls()], folder / file)
                # Of the unpacked bytes, because mirrors compress the same file differently.
                if (got := decompressed_sha256(path)) != sha256:
                    path.unlink()
                    raise UserError(
                        f"{file} as downloaded: expected sha256 {sha256} unpacked, got {got}: "
                        "deleted; try again, or give a folder with the files as the source"
                    )
        return folder

    def read(prepared: Any, split: str) -> ArrayDataset:
        files = prepared.EDITIONS[prepared.builder_config.name].splits[split]

        def is_genuine(images: np.ndarray, labels: np.ndarray) -> bool:
            return (
                images.shape[-1] == 1
                and idx_sha256(images[..., 0]) == files.images_sha256
                and idx_sha256(labels) == files.labels_sha256
            )

        # Decoding 70,000 PNGs takes seconds, reading what they gave last time a tenth of one. It is
        # as safe: either is checked against the official files' sha256.
        kept = [Path(prepared.data_path) / f"{split}-{part}.npy" for part in ("images", "labels")]
        images, labels = read_decoded(kept[0], np.uint8, 4), read_decoded(kept[1], np.uint8, 1)
        if images is None or labels is None or not is_genuine(images, labels):
            images, labels = read_images(prepared, split)
            labels = labels.astype(np.uint8)
            if not is_genuine(images, labels):
                raise damaged(prepared.data_path, f"{split} holds other pictures or labels")
            for path, array in zip(kept, (images, labels), strict=True):
                write_decoded(path, array)
        labels = labels.astype(np.int32)
        return _array_dataset(prepared, split, images, labels)

    return Recipe(
        splits=("train", "test"),
        files="its four files",
        builder=builder,
        opened=opened,
        fetch=fetch,
        read=read,
        system_folder=system_folder,
        embedded=embedded,
    )


def _fashion_mnist() -> Any:
    from jaxvision.data.builders.fashion_mnist import FashionMNIST

    return FashionMNIST


def _mnist() -> Any:
    from jaxvision.data.builders.mnist import MNIST

    return MNIST


# --------------------------------------------------------------------------------------- CIFAR-10
def _cifar10() -> Any:
    from jaxvision.data.builders.cifar10 import CIFAR10

    return CIFAR10


@contextlib.contextmanager
def _open_cifar10(folder: Path, scratch: Path) -> Iterator[Path]:
    from jaxvision.data.builders import cifar10

    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder with CIFAR-10, but there is no such folder")
    if (folder / cifar10.ARCHIVE).is_file():
        check_sha256(folder / cifar10.ARCHIVE, cifar10.ARCHIVE_SHA256)
    for split in cifar10.SPLITS:
        cifar10.read_split(folder, split)
    yield folder


def _fetch_cifar10(folder: Path) -> Path:
    from jaxvision.data.builders import cifar10

    download(CIFAR10_URLS, folder / cifar10.ARCHIVE, sha256=cifar10.ARCHIVE_SHA256)
    return folder


def _read_cifar10(prepared: Any, split: str) -> ArrayDataset:
    from jaxvision.data.builders import cifar10

    dataset = _array_dataset(prepared, split, *read_images(prepared, split))
    expected = len(cifar10.SPLITS[split]) * cifar10.RECORDS
    if len(dataset) != expected:
        raise damaged(
            prepared.data_path, f"{split} holds {len(dataset):,} of {expected:,} pictures"
        )
    return dataset


# ------------------------------------------------------------------------------------ ants and bees
def _hymenoptera() -> Any:
    from jaxvision.data.builders.hymenoptera import Hymenoptera

    return Hymenoptera


@contextlib.contextmanager
def _open_hymenoptera(folder: Path, scratch: Path) -> Iterator[Path]:
    from jaxvision.data.builders import hymenoptera

    with contextlib.ExitStack() as stack:
        place = hymenoptera.unpacked_folder(folder)
        archive = folder / hymenoptera.ARCHIVE
        if place is None and archive.is_file():
            check_sha256(archive, hymenoptera.ARCHIVE_SHA256)
            scratch.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(tempfile.TemporaryDirectory(dir=scratch))
            folder = extract(archive, Path(temporary) / "unpacked")
            place = hymenoptera.unpacked_folder(folder)
        if place is None:
            raise UserError(
                f"{folder}: expected {hymenoptera.ARCHIVE} or what is in it (train/ants/..., "
                "val/bees/...) in this folder, found neither"
            )
        for split in hymenoptera.SIZES:
            for path, _ in hymenoptera.list_split(place, split):
                check_header(path)
        yield place


def _fetch_hymenoptera(folder: Path) -> Path:
    from jaxvision.data.builders import hymenoptera

    archive = folder / hymenoptera.ARCHIVE
    download(hymenoptera.URL, archive, sha256=hymenoptera.ARCHIVE_SHA256)
    return folder


def _read_hymenoptera(prepared: Any, split: str) -> FileDataset:
    files, names, labels = read_files(prepared, split)
    expected = prepared.info.splits[split].num_examples
    if len(files) != expected:
        raise damaged(prepared.data_path, f"{split} holds {len(files)} of {expected} pictures")
    return FileDataset(
        files=files,
        names=tuple(f"{prepared.data_path}: {name}" for name in names),
        labels=labels,
        class_names=tuple(prepared.info.features["label"].names),
        name=prepared.name,
        split=split,
        source=source_sentence(prepared),
    )


# --------------------------------------------------------------------------------------- for all
def source_sentence(prepared: Any) -> str:
    """Where the files of a prepared data set came from."""
    return (prepared.info.metadata or {}).get("source", "unknown source")


def _array_dataset(
    prepared: Any, split: str, images: np.ndarray, labels: np.ndarray
) -> ArrayDataset:
    return ArrayDataset(
        images=images,
        labels=labels,
        class_names=tuple(prepared.info.features["label"].names),
        name=prepared.name,
        split=split,
        source=source_sentence(prepared),
    )


def check_sha256(path: Path, expected: str) -> None:
    """Raises `UserError` where the file is not the official one."""
    with open(path, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise UserError(
            f"{path}: expected sha256 {expected}, got {got}: the file is damaged or another "
            "version; fetch it again"
        )


RECIPES = {
    "fashion_mnist": _idx_recipe(
        _fashion_mnist,
        lambda: FASHION_MNIST_URLS,
        system_folder=lambda: FASHION_MNIST_FOLDER,
        embedded=EMBEDDED_SENTENCE,
    ),
    "mnist": _idx_recipe(_mnist, lambda: MNIST_URLS),
    "cifar10": Recipe(
        splits=("train", "test"),
        files="cifar-10-binary.tar.gz",
        builder=_cifar10,
        opened=_open_cifar10,
        fetch=_fetch_cifar10,
        read=_read_cifar10,
    ),
    "hymenoptera": Recipe(
        splits=("train", "val"),
        files="hymenoptera_data.zip",
        builder=_hymenoptera,
        opened=_open_hymenoptera,
        fetch=_fetch_hymenoptera,
        read=_read_hymenoptera,
    ),
}
