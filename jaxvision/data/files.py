"""Data sets of picture files, of any size, decoded when they are asked for."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Int, Int32

from jaxvision.data.arrays import ArrayDataset
from jaxvision.data.images import Picture, check_header, open_picture
from jaxvision.data.prepared import track
from jaxvision.errors import UserError

T = TypeVar("T")
Check = Literal["header", "decode"]
SHOWN = 5


@dataclass(frozen=True, eq=False)
class FileDataset:
    """Labelled picture files, and where they came from.

    `files` are paths, or the bytes of the files where they are small enough to stay in memory;
    `names` are what an error calls them. `labels` index into `class_names`. Pictures have
    `channels` 3 (RGB) or 1 (grey), whatever the files have.
    """

    files: tuple[Path | bytes, ...]
    names: tuple[str, ...]
    labels: Int32[np.ndarray, "n"]
    class_names: tuple[str, ...]
    name: str
    split: str
    source: str
    channels: int = 3

    def __post_init__(self) -> None:
        if not len(self.files) == len(self.names) == len(self.labels):
            raise ValueError(
                f"{len(self.files)} files, {len(self.names)} names, {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> Picture:
        """The Pillow picture number `index`, decoded; a broken file raises `UserError`."""
        return open_picture(self.files[index], channels=self.channels, name=self.names[index])

    def subset(self, indices: Int[np.ndarray, "m"]) -> "FileDataset":
        """The examples at `indices`, in that order: for a validation split or a quick run."""
        return replace(
            self,
            files=tuple(self.files[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            labels=self.labels[indices],
        )


def to_arrays(
    dataset: FileDataset, evaluate: Callable[[Picture], np.ndarray], *, workers: int = 2
) -> ArrayDataset:
    """Decodes every picture once into memory, each by `evaluate`, such as `classification_eval()`.

    A picture of 224 x 224 takes 150 kB, so a thousand take 150 MB.

    >>> arrays = to_arrays(splits["val"], classification_eval(256, 224))  # doctest: +SKIP
    """
    title = f"decoding {dataset.name}'s {dataset.split} set"
    decoded = in_threads(
        lambda i: evaluate(dataset.picture(i)), range(len(dataset)), title, workers=workers
    )
    shapes = {image.shape for image in decoded}
    if len(shapes) != 1:
        raise ValueError(f"expected pictures of one size from the preset, got {sorted(shapes)}")
    return ArrayDataset(
        images=np.stack(decoded),
        labels=dataset.labels,
        class_names=dataset.class_names,
        name=dataset.name,
        split=dataset.split,
        source=dataset.source,
    )


def leave_out_broken(
    dataset: FileDataset, check: Check, announce: Callable[[str], object], *, workers: int = 2
) -> FileDataset:
    """The data set after a look at every file, so that no run stops at one after hours.

    "header" reads the first bytes of each: a file that is no picture raises `UserError` with a list
    of them. "decode" decodes each whole: broken ones are left out, and announced.
    """
    look = _decodes if check == "decode" else _begins
    title = f"checking {dataset.name}'s {dataset.split} set"
    faults = in_threads(lambda i: look(dataset, i), range(len(dataset)), title, workers=workers)
    broken = [fault for fault in faults if fault is not None]
    if not broken:
        return dataset
    listed = "; ".join(broken[:SHOWN])
    if (more := len(broken) - SHOWN) > 0:
        listed += f"; and {more} more"
    where = f"{dataset.name}, {dataset.split}"
    if check == "header":
        raise UserError(
            f"{where}: expected pictures only, got {len(broken)} broken of {len(dataset)}: "
            f"{listed}: replace or delete them, or leave them out with check='decode'"
        )
    announce(f"{where}: left out {len(broken)} of {len(dataset)}, which are broken: {listed}")
    kept = np.array([i for i, fault in enumerate(faults) if fault is None], np.int32)
    if not len(kept):
        raise UserError(f"{where}: expected at least one picture that can be read: {listed}")
    return dataset.subset(kept)


def in_threads(
    function: Callable[[int], T], items: Sequence[int], title: str, *, workers: int = 2
) -> list[T]:
    """`function` of each item, in order, with a progress bar; the first error ends it."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            results: Iterable[T] = pool.map(function, items)
            return list(track(results, title, len(items)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begins(dataset: FileDataset, index: int) -> str | None:
    try:
        check_header(dataset.files[index], name=dataset.names[index])
    except UserError as error:
        return str(error)
    return None


def _decodes(dataset: FileDataset, index: int) -> str | None:
    try:
        dataset.picture(index)
    except UserError as error:
        return str(error)
    return None


def relative_name(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """`path` below `root`, with forward slashes on every system."""
    return Path(path).relative_to(root).as_posix()
