"""Writes arrays as .pth, which the real torch.load(path, weights_only=True) reads, or .safetensors.

A file appears under its name only when it is complete: what was there before is kept till then.
"""

import contextlib
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from jaxvision.errors import UserError, describe_os_error
from jaxvision.weights.tensors import STORAGE_DTYPES, TORCH_DTYPES, UNTYPED_STORAGES

ALIGNMENT = 64
"""Each array begins at a multiple of it in a .pth, as torch has it, so that it can be mapped."""

_STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def write_torch(path: str | os.PathLike[str], tensors: Mapping[str, ArrayLike]) -> None:
    """Writes `tensors` as torch.save would an OrderedDict of them, in the zip format (torch 1.6+).

    numpy or jax arrays of any dtype that torch has, bfloat16 and float8 included. A file at `path`
    is replaced. Raises `UserError` if it cannot be written (a full disk), and for another dtype.

    >>> write_torch("weights.pth", to_torch("resnet18", variables))  # doctest: +SKIP
    """
    arrays = _checked(tensors)
    path = Path(path)
    root = path.stem or "archive"
    with _replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        _add(archive, f"{root}/data.pkl", _pickle(arrays))
        _add(archive, f"{root}/byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            _add(archive, f"{root}/data/{i}", array.reshape(-1).view(np.uint8).data)
        _add(archive, f"{root}/version", b"3\n")


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, ArrayLike],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes `tensors` and the text in `metadata` as .safetensors. Otherwise like `write_torch`."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = _checked(tensors)
    if wrong := [name for name in arrays if name == "__metadata__"]:
        raise UserError(f"safetensors has no room for an array named {wrong[0]}: rename it")
    with _replacing(Path(path)) as part:
        try:
            save_file(arrays, part, {"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error


def _checked(tensors: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """Returns contiguous little-endian arrays, and refuses what torch has no dtype for."""
    arrays = {}
    for name, value in tensors.items():
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype not in _DTYPE_NAMES:
            raise UserError(f"torch has no dtype for {name!r}, which is {array.dtype}: convert it")
        # Not ascontiguousarray: it makes a scalar an array of one.
        arrays[name] = array.copy(order="C") if not array.flags.c_contiguous else array
    return arrays


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path`, which becomes `path` if nothing goes wrong."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe_os_error(error)}") from error


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(name)  # of a fixed date: the same weights are the same file
    large = len(data) >= 1 << 31
    zip64 = 20 if large else 0  # what zipfile puts in front of our extra field then
    header = archive.fp.tell() + 30 + len(name.encode()) + zip64 + 4
    padding = -header % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as member:
        member.write(data)


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of tensors, opcode by opcode.

    Python's pickler would import torch to check that the functions it names exist.
    """
    parts = [b"\x80\x02", _global("collections.OrderedDict"), b")R("]
    for i, (name, array) in enumerate(arrays.items()):
        typed = array.dtype in _STORAGE_NAMES
        storage = _STORAGE_NAMES[array.dtype] if typed else UNTYPED_STORAGES[0]
        strides = tuple(stride // array.itemsize for stride in _c_strides(array))
        parts += [
            _string(name),
            _global(f"torch._utils._rebuild_tensor_{'v2' if typed else 'v3'}"),
            *(b"((", _string("storage"), _global(storage), _string(str(i)), _string("cpu")),
            *(_integer(array.size if typed else array.nbytes), b"tQ"),
            *(b"K\x00", _tuple(array.shape), _tuple(strides)),
            *(b"\x89", _global("collections.OrderedDict"), b")R"),
            b"" if typed else _global(_DTYPE_NAMES[array.dtype]),
            b"tR",
        ]
    return b"".join([*parts, b"u."])


def _c_strides(array: np.ndarray) -> tuple[int, ...]:
    """numpy leaves the strides of axes of length 0 and 1 undefined; torch writes these."""
    strides, step = [], array.itemsize
    for n in reversed(array.shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _string(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple(values: tuple[int, ...]) -> bytes:
    return b"".join([b"(", *map(_integer, values), b"t"])
