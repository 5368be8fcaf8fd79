"""Finds a data set, prepares it once, and loads it, by name."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.files import Check, FileDataset
from jaxvision.data.image_folder import VAL_FRACTION, load_image_folder
from jaxvision.data.prepared import damaged, default_data_dir, prepare
from jaxvision.data.recipes import RECIPES, source_sentence
from jaxvision.errors import UserError

Announce = Callable[[str], Any]
DataChoice = Literal["auto", "full", "embedded"]
Dataset = ArrayDataset | FileDataset

IMAGE_FOLDER = "image_folder"
DATASETS = (*RECIPES, IMAGE_FOLDER)


def load_dataset(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    data: DataChoice = "auto",
    source: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    check: Check | None = None,
    announce: Announce = print,
) -> Dataset:
    """Loads one split of a data set: see `load_splits`, which loads all of them.

    Returns an `ArrayDataset`, or a `FileDataset` for pictures of many sizes.

    >>> train = load_dataset("fashion_mnist", split="train")  # doctest: +SKIP
    """
    _check_arguments(name, data, source, val_fraction, check)
    if name == IMAGE_FOLDER:
        splits = _image_folder(source, val_fraction, check, announce)
        _check_split(name, split, tuple(splits))
        return splits[split]
    _check_split(name, split, RECIPES[name].splits)
    return RECIPES[name].read(_find(name, data_dir, data, source, announce), split)


def load_splits(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    data: DataChoice = "auto",
    source: str | os.PathLike[str] | None = None,
    val_fraction: float | None = None,
    check: Check | None = None,
    announce: Announce = print,
) -> dict[str, Dataset]:
    """Loads every split of a data set, by name; prepares it on disk the first time.

    `fashion_mnist`, `mnist` and `cifar10` are loaded into memory as an `ArrayDataset`;
    `hymenoptera` (ants and bees) and `image_folder` are a `FileDataset`, decoded when asked for.

    `data="auto"` takes the first of: the full set prepared earlier under `data_dir`; the full set
    in local files (`source`, a folder, or else where the system's package puts them); the full set
    downloaded; the subset inside this package. "full" leaves the last one out, "embedded" takes
    only it; fashion_mnist alone has it. Prepared data goes under `data_dir`, by default
    `$JAXVISION_DATA` or `~/.cache/jaxvision/datasets`. `announce` gets one line that names the
    source that was used, and one for each that could not be.

    `image_folder` is the user's own folder `source`, read where it is, with `val_fraction` and
    `check` for it alone: see `load_image_folder`.

    Raises `UserError` if the name is unknown, no source has the data, `source` is missing or
    damaged, prepared data is damaged, or `data_dir` can't be written.

    >>> splits = load_splits("fashion_mnist", data="embedded")  # doctest: +SKIP
    >>> splits["train"].images.shape  # doctest: +SKIP
    (11000, 28, 28, 1)
    """
    _check_arguments(name, data, source, val_fraction, check)
    if name == IMAGE_FOLDER:
        return _image_folder(source, val_fraction, check, announce)
    builder = _find(name, data_dir, data, source, announce)
    return {split: RECIPES[name].read(builder, split) for split in RECIPES[name].splits}


def _check_arguments(
    name: str,
    data: str,
    source: str | os.PathLike[str] | None,
    val_fraction: float | None,
    check: str | None,
) -> None:
    if name not in DATASETS:
        raise UserError(f"expected one of the data sets {', '.join(DATASETS)}, got {name!r}")
    if data not in ("auto", "full", "embedded"):
        raise UserError(f"expected data to be auto, full or embedded, got {data!r}")
    if check not in (None, "header", "decode"):
        raise UserError(f"expected check to be header or decode, got {check!r}")
    if name != IMAGE_FOLDER and not (val_fraction is None and check is None):
        raise UserError(
            f"val_fraction and check are for image_folder: {name} has its own splits; leave them "
            "out"
        )
    if data == "embedded" and (name == IMAGE_FOLDER or RECIPES[name].embedded is None):
        raise UserError(f"{name} has no subset in this package: expected data auto or full")
    if data == "embedded" and source is not None:
        raise UserError(
            f"a source folder ({os.fspath(source)}) holds the full set, but data is 'embedded': "
            "leave one of the two out"
        )


def _check_split(name: str, split: str, known: tuple[str, ...]) -> None:
    if split not in known:
        raise UserError(f"expected a split of {name} ({', '.join(known)}), got {split!r}")


def _image_folder(
    source: str | os.PathLike[str] | None,
    val_fraction: float | None,
    check: Check | None,
    announce: Announce,
) -> dict[str, FileDataset]:
    if source is None:
        raise UserError("image_folder is a folder of your own: give it as the source")
    return load_image_folder(
        source,
        val_fraction=VAL_FRACTION if val_fraction is None else val_fraction,
        check=check or "header",
        announce=announce,
    )


def _find(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    data: str,
    source: str | os.PathLike[str] | None,
    announce: Announce,
) -> Any:
    """The builder of the data set, prepared under `data_dir` from the first source that has it."""
    recipe = RECIPES[name]
    root = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    scratch = root / "downloads" / name
    if data == "embedded":
        assert recipe.embedded is not None
        return _prepared(name, "embedded", recipe.embedded, None, root, announce)
    if source is not None:
        # Before anything else: a folder that the user named is never passed over in silence.
        with recipe.opened(Path(source).expanduser(), scratch) as folder:
            sentence = f"full set, local files in {os.fspath(source)}"
            return _prepared(name, "full", sentence, folder, root, announce)
    if _builder(name, "full", root).data_path.exists():
        return _prepared(name, "full", "", None, root, announce)

    failures = []
    if recipe.system_folder is not None:
        place = recipe.system_folder()
        with contextlib.ExitStack() as stack:
            try:
                if not place.is_dir():
                    raise UserError(f"no folder {place}")
                folder = stack.enter_context(recipe.opened(place, scratch))
            except UserError as error:
                failures.append(str(error))
            else:
                sentence = f"full set, local files in {place}"
                return _prepared(name, "full", sentence, folder, root, announce)
    try:
        downloaded = recipe.fetch(scratch)
    except UserError as error:
        failures.append(str(error))
    else:
        with recipe.opened(downloaded, scratch) as folder:
            sentence = "full set, the official files downloaded"
            return _prepared(name, "full", sentence, folder, root, announce)

    if data == "full" or recipe.embedded is None:
        or_embedded = "" if recipe.embedded is None else ", or take data='embedded'"
        raise UserError(
            f"found no full {name}: expected it prepared in "
            f"{_builder(name, 'full', root).data_path}, as local files, or by download; got: "
            f"{'; '.join(failures)}: give a folder with {recipe.files} as the source{or_embedded}"
        )
    for failure in failures:
        announce(f"{name}: no full set here: {failure}")
    return _prepared(name, "embedded", recipe.embedded, None, root, announce)


def _prepared(
    name: str, config: str, sentence: str, folder: Path | None, root: Path, announce: Announce
) -> Any:
    builder = _builder(name, config, root, sentence)
    how = "prepared earlier"
    if not builder.data_path.exists():
        announce(f"{name}: preparing the {sentence} (once, some seconds)")
        prepare(builder, data_dir=root, manual_dir=folder)
        # Made anew: another process may have been the one that prepared it.
        builder, how = _builder(name, config, root), "prepared"
    announce(f"{name}: {source_sentence(builder)} ({how} in {builder.data_path})")
    return builder


def _builder(name: str, config: str, root: Path, sentence: str | None = None) -> Any:
    builder = RECIPES[name].builder()
    try:
        return builder(config=config, data_dir=root, provenance=sentence)
    except Exception as error:  # it reads what is on disk, if anything is
        folder = root / builder.name / config / str(builder.VERSION)
        raise damaged(folder, f"its description can't be read ({error})") from error
