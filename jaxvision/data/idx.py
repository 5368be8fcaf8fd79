"""Strict reader of IDX, the format of MNIST and Fashion-MNIST, gzipped or not.

An IDX file is two zero bytes, a type code (8: uint8), the number of dimensions, each dimension as a
big-endian int32, then the values in C order (http://yann.lecun.com/exdb/mnist).
"""

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxvision.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
UINT8_CODE = 8


def read_idx(
    path: str | os.PathLike[str], *, shape: Sequence[int | None], sha256: str | None = None
) -> UInt8[np.ndarray, "..."]:
    """Reads the uint8 array in an IDX file, which must have exactly this `shape` (None: any size).

    `sha256` is that of the *decompressed* bytes, so that a file that was gzipped again still counts
    as the same. A missing, truncated, too long, damaged or different file raises `UserError`.

    >>> images = read_idx("train-images-idx3-ubyte.gz", shape=(None, 28, 28))  # doctest: +SKIP
    """
    path = Path(path)
    header, payload, dims = _read(path, len(shape))
    if any(want is not None and want != got for want, got in zip(shape, dims, strict=True)):
        raise UserError(
            f"{path}: expected dimensions {_dims(shape)}, got {_dims(dims)}: use the right file"
        )
    if sha256 is not None and (got := _sha256(header, payload)) != sha256:
        raise UserError(
            f"{path}: expected sha256 {sha256} of the decompressed bytes, got {got}: "
            "the file is damaged or another version; fetch it again"
        )
    return np.frombuffer(payload, np.uint8).reshape(dims).copy()


def idx_bytes(array: UInt8[np.ndarray, "..."]) -> bytes:
    """The IDX file, not gzipped, that holds `array`: the inverse of `read_idx`."""
    return _header(array.shape) + np.ascontiguousarray(array).tobytes()


def idx_sha256(array: UInt8[np.ndarray, "..."]) -> str:
    """The sha256 of the decompressed IDX file that would hold `array`."""
    return _sha256(_header(array.shape), np.ascontiguousarray(array).data)


def decompressed_sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes, after gunzipping where it is a gzip file."""
    path = Path(path)
    digest = hashlib.sha256()
    try:
        with _open(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def find_idx(folder: str | os.PathLike[str], stem: str) -> Path:
    """`folder/stem.gz`, or `folder/stem` where only the unpacked file is there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder with {stem}.gz, but there is no such folder")
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: expected {stem}.gz or {stem} in this folder, found neither")


def _read(path: Path, ndim: int) -> tuple[bytes, bytes, tuple[int, ...]]:
    try:
        with _open(path) as file:
            header = file.read(4 + 4 * ndim)
            magic = _header((0,) * ndim)[:4]
            if header[:4] != magic:
                raise UserError(
                    f"{path}: expected an IDX file of {ndim}-dimensional uint8 data (magic number "
                    f"0x{magic.hex()}), got 0x{header[:4].hex()}: use the right file"
                )
            if len(header) < 4 + 4 * ndim:
                raise UserError(
                    f"{path}: truncated: expected a header of {4 + 4 * ndim} bytes, "
                    f"got {len(header)}: fetch it again"
                )
            dims = struct.unpack(f">{ndim}I", header[4:])
            size = math.prod(dims)
            # One byte more than expected, never all there is: a gzip bomb must not fill the memory.
            payload = _read_at_most(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if len(payload) != size:
        fault = "truncated" if len(payload) < size else "trailing bytes"
        got = f"{len(payload):,} bytes" if len(payload) < size else "more"
        raise UserError(
            f"{path}: {fault}: expected {size:,} bytes of data for dimensions {_dims(dims)}, "
            f"got {got}: fetch it again"
        )
    return header, payload, dims


def _read_at_most(file: io.BufferedIOBase, size: int) -> bytes:
    """Block by block, because read(size) on a lying header would allocate `size` bytes at once."""
    blocks, left = [], size
    while left and (block := file.read(min(left, 1 << 20))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _open(path: Path) -> io.BufferedIOBase:
    with open(path, "rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if zipped else open(path, "rb")


def _header(shape: Sequence[int]) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, UINT8_CODE, len(shape), *shape)


def _sha256(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _dims(shape: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape)


def _unreadable(path: Path, error: Exception) -> UserError:
    match error:
        case FileNotFoundError():
            return UserError(f"{path}: expected an IDX file here, but there is none")
        case EOFError():
            return UserError(f"{path}: truncated: the gzip data ends too early: fetch it again")
        case gzip.BadGzipFile() | zlib.error():
            return UserError(f"{path}: damaged gzip data ({error}): fetch it again")
        case _:
            reason = getattr(error, "strerror", None) or error
            return UserError(f"{path}: expected a readable IDX file, got: {reason}")
