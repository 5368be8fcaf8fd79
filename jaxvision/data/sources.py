"""Finds a data set, prepares it once, and loads it: the place that knows where data comes from."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.download import download
from jaxvision.data.idx import decompressed_sha256, idx_sha256
from jaxvision.data.prepared import damaged, default_data_dir, prepare, read_images
from jaxvision.errors import UserError

Announce = Callable[[str], Any]
DataChoice = Literal["auto", "full", "embedded"]

DATASETS = ("fashion_mnist",)

# Where Debian's package dataset-fashion-mnist puts the four files.
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_URLS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
EMBEDDED_SENTENCE = "embedded subset, 11,000 + 2,000 pictures inside the package"


def load_dataset(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    data: DataChoice = "auto",
    source: str | os.PathLike[str] | None = None,
    announce: Announce = print,
) -> ArrayDataset:
    """Loads one split of a data set into memory: see `load_splits`, which loads all of them.

    >>> train = load_dataset("fashion_mnist", split="train")  # doctest: +SKIP
    """
    _check_name(name, data, source)
    if split not in (known := _splits(name)):
        raise UserError(f"expected a split of {name} ({', '.join(known)}), got {split!r}")
    builder = _find(name, data_dir, data, source, announce)
    return _read(builder, split)


def load_splits(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    data: DataChoice = "auto",
    source: str | os.PathLike[str] | None = None,
    announce: Announce = print,
) -> dict[str, ArrayDataset]:
    """Loads every split of a data set into memory, by name; prepares it on disk the first time.

    `data="auto"` takes the first of: the full set prepared earlier under `data_dir`; the full set
    in local files (`source`, a folder, or else where the system's package puts them); the full set
    downloaded; the subset inside this package. "full" leaves the last one out, "embedded" takes
    only it. Prepared data goes under `data_dir`, by default `$JAXVISION_DATA` or
    `~/.cache/jaxvision/datasets`. `announce` gets one line that names the source that was used, and
    one for each that could not be.

    Raises `UserError` if the name is unknown, no source has the data, `source` is missing or
    damaged, prepared data is damaged, or `data_dir` can't be written.

    >>> splits = load_splits("fashion_mnist", data="embedded")  # doctest: +SKIP
    >>> splits["train"].images.shape  # doctest: +SKIP
    (11000, 28, 28, 1)
    """
    _check_name(name, data, source)
    builder = _find(name, data_dir, data, source, announce)
    return {split: _read(builder, split) for split in _splits(name)}


def _check_name(name: str, data: str, source: str | os.PathLike[str] | None) -> None:
    if name not in DATASETS:
        raise UserError(f"expected one of the data sets {', '.join(DATASETS)}, got {name!r}")
    if data not in ("auto", "full", "embedded"):
        raise UserError(f"expected data to be auto, full or embedded, got {data!r}")
    if data == "embedded" and source is not None:
        raise UserError(
            f"a source folder ({os.fspath(source)}) holds the full set, but data is 'embedded': "
            "leave one of the two out"
        )


def _splits(name: str) -> tuple[str, ...]:
    from jaxvision.data.builders.fashion_mnist import FULL

    return tuple(FULL.splits)


def _find(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    data: str,
    source: str | os.PathLike[str] | None,
    announce: Announce,
) -> Any:
    """The builder of the data set, prepared under `data_dir` from the first source that has it."""
    root = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    if source is not None:
        # Before anything else: a folder that the user named is never passed over in silence.
        _check_full(Path(source))
    if data == "embedded":
        return _prepared(name, "embedded", EMBEDDED_SENTENCE, None, root, announce)
    if _builder("full", root).data_path.exists():
        return _prepared(name, "full", "", None, root, announce)

    if source is not None:
        sentence = f"full set, local files in {os.fspath(source)}"
        return _prepared(name, "full", sentence, Path(source), root, announce)
    failures = []
    if FASHION_MNIST_FOLDER.is_dir():
        try:
            _check_full(FASHION_MNIST_FOLDER)
        except UserError as error:
            failures.append(str(error))
        else:
            sentence = f"full set, local files in {FASHION_MNIST_FOLDER}"
            return _prepared(name, "full", sentence, FASHION_MNIST_FOLDER, root, announce)
    else:
        failures.append(f"no folder {FASHION_MNIST_FOLDER}")
    try:
        folder = _download_full(root / "downloads" / name)
    except UserError as error:
        failures.append(str(error))
    else:
        sentence = "full set, the official files downloaded"
        return _prepared(name, "full", sentence, folder, root, announce)

    if data == "full":
        raise UserError(
            f"found no full {name}: expected it prepared in {_builder('full', root).data_path}, as "
            f"local files, or by download; got: {'; '.join(failures)}: give a folder with its four "
            "files as the source, or take data='embedded'"
        )
    for failure in failures:
        announce(f"{name}: no full set here: {failure}")
    return _prepared(name, "embedded", EMBEDDED_SENTENCE, None, root, announce)


def _prepared(
    name: str, config: str, sentence: str, folder: Path | None, root: Path, announce: Announce
) -> Any:
    builder = _builder(config, root, sentence)
    how = "prepared earlier"
    if not builder.data_path.exists():
        announce(f"{name}: preparing the {sentence} (once, some seconds)")
        prepare(builder, data_dir=root, manual_dir=folder)
        # Made anew: another process may have been the one that prepared it.
        builder, how = _builder(config, root), "prepared"
    announce(f"{name}: {_sentence(builder)} ({how} in {builder.data_path})")
    return builder


def _builder(config: str, root: Path, sentence: str | None = None) -> Any:
    from jaxvision.data.builders.fashion_mnist import FashionMNIST

    try:
        return FashionMNIST(config=config, data_dir=root, provenance=sentence)
    except Exception as error:  # it reads what is on disk, if anything is
        folder = root / FashionMNIST.name / config / str(FashionMNIST.VERSION)
        raise damaged(folder, f"its description can't be read ({error})") from error


def _sentence(builder: Any) -> str:
    return (builder.info.metadata or {}).get("source", "unknown source")


def _check_full(folder: Path) -> None:
    from jaxvision.data.builders.fashion_mnist import FULL, read_split

    for split in FULL.splits:
        read_split(folder, FULL, split)


def _download_full(folder: Path) -> Path:
    from jaxvision.data.builders.fashion_mnist import FULL

    for files in FULL.splits.values():
        expected = {files.images: files.images_sha256, files.labels: files.labels_sha256}
        for stem, sha256 in expected.items():
            file = f"{stem}.gz"
            path = download([url + file for url in FASHION_MNIST_URLS], folder / file)
            # Of the unpacked bytes, because mirrors compress the same file differently.
            if (got := decompressed_sha256(path)) != sha256:
                path.unlink()
                raise UserError(
                    f"{file} as downloaded: expected sha256 {sha256} unpacked, got {got}: "
                    "deleted; try again, or give a folder with the files as the source"
                )
    return folder


def _read(builder: Any, split: str) -> ArrayDataset:
    from jaxvision.data.builders.fashion_mnist import EDITIONS

    images, labels = read_images(builder, split)
    files = EDITIONS[builder.builder_config.name].splits[split]
    same_images = idx_sha256(images[..., 0]) == files.images_sha256
    if not (same_images and idx_sha256(labels.astype(np.uint8)) == files.labels_sha256):
        raise damaged(builder.data_path, f"{split} holds other pictures or labels")
    return ArrayDataset(
        images=images,
        labels=labels,
        class_names=tuple(builder.info.features["label"].names),
        name=builder.name,
        split=split,
        source=_sentence(builder),
    )
