"""Selective Search of a whole data set, computed once in parallel processes and kept on disk.

The pictures are done in chunks, and each chunk's file is named by a digest of its pictures, so a
computation that was killed goes on where it was, a longer part of the same data set begins with the
files of a shorter one, and other pictures never get these boxes.
"""

import contextlib
import hashlib
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from jaxvision.data.detection import DetectionDataset
from jaxvision.data.files import in_threads
from jaxvision.data.images import decode_image, read_image
from jaxvision.data.parallel import map_in_processes
from jaxvision.data.prepared import STALE_SECONDS, default_data_dir, track
from jaxvision.data.selective_search import VERSION, selective_search, strategies_of
from jaxvision.errors import UserError, describe_os_error

CHUNK = 100
"""Pictures in a file: as many as a process that is killed does again at most."""


@dataclass(frozen=True, eq=False)
class Proposals:
    """The proposed boxes of each picture of a data set, the most promising ones first.

    `boxes` are those of all pictures, one after another; those of picture i are
    `boxes[offsets[i] : offsets[i + 1]]`, or `proposals[i]`.
    """

    boxes: Float32[np.ndarray, "n 4"]
    offsets: Int64[np.ndarray, "pictures_and_one"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Float32[np.ndarray, "n 4"]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a picture from 0 to {len(self) - 1}, got {index}")
        return self.boxes[self.offsets[index] : self.offsets[index + 1]]

    def padded(
        self, index: int, count: int
    ) -> tuple[Float32[np.ndarray, "count 4"], Bool[np.ndarray, "count"]]:
        """The first `count` boxes of a picture, and which of them are valid: the rest is zeros.

        >>> proposals = Proposals(np.ones((3, 4), np.float32), np.array([0, 1, 3]))
        >>> proposals.padded(0, 2)[1].tolist()
        [True, False]
        """
        padded = pad_proposals([self[index]], count)
        return padded["proposals"][0], padded["proposal_valid"][0]


def pad_proposals(
    proposals: Sequence[Float32[np.ndarray, "_ 4"]], slots: int
) -> dict[str, np.ndarray]:
    """The arrays of a batch with each picture's first `slots` proposals, and zeros after the last.

    >>> batch = pad_proposals([np.ones((1, 4), np.float32)], slots=2)
    >>> batch["proposals"].shape, batch["proposal_valid"].tolist()
    ((1, 2, 4), [[True, False]])
    """
    boxes = np.zeros((len(proposals), slots, 4), np.float32)
    valid = np.zeros(boxes.shape[:2], bool)
    for row, each in enumerate(proposals):
        count = min(len(each), slots)
        boxes[row, :count], valid[row, :count] = each[:count], True
    return {"proposals": boxes, "proposal_valid": valid}


def load_proposals(
    dataset: DetectionDataset,
    *,
    mode: str = "fast",
    max_boxes: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    workers: int = 2,
    announce: Callable[[str], object] = print,
) -> Proposals:
    """The boxes that `selective_search` proposes for every picture, computed where none are kept.

    They are kept under `data_dir`/proposals, by default where prepared data sets are. `max_boxes`
    takes the first ones of each picture, all where it is None; what is kept has all of them.
    `workers` is the number of processes; 1 computes in this one. A file that is damaged is made
    again; a broken picture or a folder that can't be written raises `UserError`.

    >>> proposals = load_proposals(train, mode="fast", max_boxes=1000)  # doctest: +SKIP
    >>> boxes, valid = proposals.padded(0, 1000)  # doctest: +SKIP
    """
    strategies_of(mode)  # an unknown mode, before any work
    if workers < 1 or (max_boxes is not None and max_boxes < 1):
        raise UserError(f"expected at least 1, got workers {workers}, max_boxes {max_boxes}")
    root = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    folder = root / "proposals" / f"{dataset.name}-{mode}"
    chunks = _chunks(dataset, mode, folder)
    found = {chunk.path: _read(chunk) for chunk in chunks}
    missing = [chunk for chunk in chunks if found[chunk.path] is None]
    if missing:
        pictures = sum(len(chunk.entries) for chunk in missing)
        announce(
            f"{dataset.name}, {dataset.split}: Selective Search ({mode}) of {pictures:,} of "
            f"{len(dataset):,} pictures in {workers} {'processes' if workers > 1 else 'process'} "
            f"(once, kept in {folder})"
        )
        _make_writable(folder)
        title = f"proposals of {dataset.name}, {dataset.split}"
        computed = map_in_processes(partial(_compute, mode=mode), missing, processes=workers)
        for chunk, boxes in zip(missing, track(computed, title, len(missing)), strict=True):
            found[chunk.path] = boxes
    parts = [found[chunk.path] for chunk in chunks]
    return _joined([boxes[:max_boxes] for part in parts for boxes in part])


@dataclass(frozen=True)
class _Chunk:
    """Pictures in a row, as arrays, paths or files' bytes, and the file that keeps their boxes."""

    path: Path
    entries: UInt8[np.ndarray, "n h w 3"] | tuple[Path | bytes, ...]
    names: tuple[str, ...]

    def image(self, i: int) -> np.ndarray:
        entry = self.entries[i]
        if isinstance(entry, np.ndarray):
            return entry
        if isinstance(entry, bytes):
            return decode_image(entry, name=self.names[i])
        return read_image(entry)


def _chunks(dataset: DetectionDataset, mode: str, folder: Path) -> list[_Chunk]:
    starts = range(0, len(dataset), CHUNK)
    title = f"looking at {dataset.name}'s {dataset.split} set"

    def chunk(start: int) -> _Chunk:
        entries = dataset.images[start : start + CHUNK]
        names = dataset.names[start : start + CHUNK]
        digest = hashlib.sha256(f"selective search {VERSION} {mode}".encode())
        for entry, name in zip(entries, names, strict=True):
            shape, data = _content(entry, name)
            # The length says where one ends, so that no two lists of pictures give the same bytes.
            digest.update(f"{shape} {len(data)}:".encode())
            digest.update(data)
        return _Chunk(folder / f"{digest.hexdigest()[:32]}.npz", entries, names)

    return in_threads(lambda i: chunk(starts[i]), range(len(starts)), title)


def _content(entry: Any, name: str) -> tuple[str, bytes | memoryview]:
    if isinstance(entry, np.ndarray):
        return str(entry.shape), memoryview(np.ascontiguousarray(entry)).cast("B")
    if isinstance(entry, bytes):
        return "file", entry
    try:
        return "file", Path(entry).read_bytes()
    except OSError as error:
        raise UserError(
            f"{name}: expected a picture file, got: {describe_os_error(error)}"
        ) from error


def _compute(chunk: _Chunk, mode: str) -> list[Float32[np.ndarray, "_ 4"]]:
    boxes = [selective_search(chunk.image(i), mode=mode) for i in range(len(chunk.entries))]
    _write(chunk.path, boxes)
    return boxes


def _joined(boxes: Sequence[Float32[np.ndarray, "_ 4"]]) -> Proposals:
    counts = [len(each) for each in boxes]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    empty = np.zeros((0, 4), np.float32)
    return Proposals(np.concatenate([empty, *boxes]), offsets)


def _write(path: Path, boxes: Sequence[Float32[np.ndarray, "_ 4"]]) -> None:
    """Writes a chunk's boxes, whole or not at all."""
    joined = _joined(boxes)
    # In the same folder, because a rename across file systems is not atomic.
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, boxes=joined.boxes.astype(np.uint16), offsets=joined.offsets)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise _unwritable(path.parent, error) from error


def _read(chunk: _Chunk) -> list[Float32[np.ndarray, "_ 4"]] | None:
    """The boxes in a chunk's file; None where it is missing or does not hold what it should."""
    try:
        # The archive's own checksums find what has changed.
        with chunk.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            boxes, offsets = arrays["boxes"], arrays["offsets"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    kinds = (boxes.dtype, boxes.shape[1:], offsets.dtype, offsets.shape)
    if kinds != (np.uint16, (4,), np.int64, (len(chunk.entries) + 1,)):
        return None
    return [boxes[start:stop].astype(np.float32) for start, stop in pairwise(offsets)]


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.tmp"):  # of a process that was killed as it wrote
            with contextlib.suppress(OSError):
                if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                    leftover.unlink()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: expected a folder that proposals can be kept in, got: "
        f"{describe_os_error(error)}: free some space or choose another data_dir"
    )
