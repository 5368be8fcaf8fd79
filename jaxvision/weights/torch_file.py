"""Reads the weights in .pth, .pt and .safetensors files into numpy, without torch.

Formats are recognised by what is in the file, not by its name: torch's zip archives (since 1.6),
its older stream of pickles and bytes, and safetensors. Nothing in a file is executed (unpickle.py
says how), and before anything large is reserved the file must be seen to have it.
"""

import os
import struct
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.errors import UserError, describe_os_error
from jaxvision.weights.safetensors_file import read_safetensors
from jaxvision.weights.tensors import BUILDERS, Storage, TensorSpec, gather, storage_from_pid
from jaxvision.weights.unpickle import MAX_PICKLE_BYTES, BadFile, shown, unpickle
from jaxvision.weights.zip_archive import DAMAGED, ZipArchive, read_exactly

MIN_ALLOWED_BYTES, MAX_EXPANSION = 256 << 20, 16
"""What a file's tensors may need by default: 16 times its size (views can repeat), or 256 MiB."""
MAX_DEPTH = 4
"""So deep among dictionaries the weights are looked for."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every name."""
NOT_WEIGHTS = ("optim", "sched", "scaler", "_extra_state")
"""Entries whose name contains one of these are passed over in the search for weights."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LEGACY_START = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number
_FOREIGN = {
    b"\x89HDF": "an HDF5 file, not one of torch's",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\x93NUMPY": "a numpy array, not a torch file",
    b"version https://git-lfs": "a pointer of git-lfs, not the file: get it with git lfs pull",
    b"<": "a web page, not weights: the download went wrong",
}

ReadStorage = Callable[[Storage], np.ndarray]


def read_torch(
    path: str | os.PathLike[str], *, key: str | None = None, max_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the arrays of a .pth, .pt or .safetensors file by name, in the file's order.

    Where a checkpoint has its weights beside other things ({"state_dict": …, "epoch": 3}), they are
    found; `key` ("model_ema", "student.state_dict") says which where there are several. What is not
    an array is left out. A "module." or "_orig_mod." in front of all names is taken off.

    The arrays are C-contiguous, in memory of their own, of the file's dtypes (bfloat16 and float8
    as ml_dtypes has them). Raises `UserError` for everything else: another format, a damaged file,
    a whole pickled model, anything that would have to be executed, more than `max_bytes` (by
    default 16 times the file's size, or 256 MiB if that is more).

    >>> weights = read_torch("resnet18-f37072fd.pth")  # doctest: +SKIP
    >>> weights["fc.weight"].shape  # doctest: +SKIP
    (1000, 512)
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return read_stream(file, str(path), key=key, max_bytes=max_bytes)
    except OSError as error:
        raise UserError(f"cannot read {path}: {describe_os_error(error)}") from error


def read_stream(
    file: BufferedIOBase, name: str, *, key: str | None = None, max_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Does `read_torch` for an open file; `name` is what errors call it."""
    try:
        file_size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(512)
        if max_bytes is None:
            max_bytes = max(MAX_EXPANSION * file_size, MIN_ALLOWED_BYTES)
        if start.startswith(b"PK"):
            arrays = _read_zip(file, key, max_bytes)
        elif start[:1] == b"\x80" and _LEGACY_START in start[:32]:
            arrays = _read_legacy(file, key, max_bytes)
        elif start[8:9] == b"{":
            if key:
                raise BadFile(f"a safetensors file has no entry {shown(key)}: leave key out")
            arrays = read_safetensors(file, max_bytes)
        else:
            raise BadFile(_why_foreign(start))
        if not arrays:
            raise BadFile("there are no arrays in it")
        return _without_prefixes(arrays)
    except BadFile as error:
        raise UserError(f"{name}: {error}") from None
    except MemoryError as error:
        raise UserError(f"{name}: there is not enough memory for its arrays") from error


def _why_foreign(start: bytes) -> str:
    if not start:
        return "the file is empty: copy or download it again"
    for signature, what in _FOREIGN.items():
        if start.startswith(signature):
            return f"this is {what}"
    if start[257:262] == b"ustar":
        return (
            "this is a tar archive; if torch wrote it (before 0.2), load it with torch and save "
            "the state_dict again"
        )
    if start[:1] == b"\x80":
        return (
            "this is a pickle that torch.save did not write; save the weights with "
            "torch.save(model.state_dict(), path)"
        )
    return (
        "expected a file that torch.save wrote (.pth, .pt) or .safetensors, and it begins like none"
    )


def _read_zip(file: BufferedIOBase, key: str | None, max_bytes: int) -> dict[str, np.ndarray]:
    archive = ZipArchive(file)
    pickles = [name for name in archive.members if name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise BadFile("a zip archive, but without the data.pkl that torch.save puts there")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.members:
        raise BadFile(
            "it holds a TorchScript program; save its weights alone with "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    if f"{root}byteorder" in archive.members:
        order = archive.read(f"{root}byteorder", 16)
        if order.strip() != b"little":
            raise BadFile(f"it was written with byte order {shown(order.decode('latin-1'))}")
    data = archive.read(pickles[0], MAX_PICKLE_BYTES)
    value, _ = unpickle(data, 0, BUILDERS, lambda pid: storage_from_pid(pid, legacy=False))

    def read_storage(storage: Storage) -> np.ndarray:
        name = f"{root}data/{storage.key}"
        member = archive.members.get(name)
        if member is None or member.size != storage.num_bytes:
            has = "nothing" if member is None else f"{member.size:,} bytes"
            raise BadFile(f"expected {storage.num_bytes:,} bytes in {shown(name)}, found {has}")
        return archive.read_array(name)

    return gather(_weights(value, key), read_storage, max_bytes)


def _read_legacy(file: BufferedIOBase, key: str | None, max_bytes: int) -> dict[str, np.ndarray]:
    """Five pickles (magic, version, system, object, storage keys), then each storage's bytes."""
    file_size = file.seek(0, 2)
    file.seek(0)
    data = file.read(MAX_PICKLE_BYTES)
    storages: dict[str, Storage] = {}

    def load(pid: Any) -> Storage:
        storage = storage_from_pid(pid, legacy=True)
        known = storages.setdefault(storage.key, storage)
        if (known.total_bytes, known.itemsize) != (storage.total_bytes, storage.itemsize):
            raise BadFile("its pickle gives one storage two sizes")
        return storage

    magic, position = unpickle(data, 0, {})
    version, position = unpickle(data, position, {})
    if type(magic) is not int or magic != _MAGIC or type(version) is not int:
        raise BadFile(DAMAGED)
    if version != _PROTOCOL:
        raise BadFile(f"it is of version {version} of torch's old format, which is not known")
    system, position = unpickle(data, position, {})
    if type(system) is not dict or system.get("little_endian") is not True:
        raise BadFile("it was not written with byte order little")
    value, position = unpickle(data, position, BUILDERS, load)
    keys, position = unpickle(data, position, {})
    if type(keys) is not list:
        raise BadFile(DAMAGED)

    places: dict[str, int] = {}
    for storage_key in keys:
        storage = storages.get(storage_key) if type(storage_key) is str else None
        if storage is None or storage_key in places:
            raise BadFile("its list of storages does not fit its tensors")
        file.seek(position)
        header = file.read(8)
        if len(header) < 8:
            raise BadFile(DAMAGED)
        (count,) = struct.unpack("<q", header)
        if count * storage.itemsize != storage.total_bytes:
            raise BadFile(
                f"expected {storage.total_bytes // storage.itemsize:,} elements in storage "
                f"{shown(storage_key)}, found {count:,}"
            )
        places[storage_key] = position + 8
        position += 8 + storage.total_bytes
        if position > file_size:
            raise BadFile(f"{DAMAGED} ({position - file_size:,} bytes are missing)")

    def read_storage(storage: Storage) -> np.ndarray:
        if storage.key not in places:
            raise BadFile("its list of storages does not fit its tensors")
        return read_exactly(file, places[storage.key], storage.total_bytes)

    return gather(_weights(value, key), read_storage, max_bytes)


def _weights(value: Any, key: str | None) -> dict[str, TensorSpec]:
    """Returns the one mapping of names to tensors in what was unpickled."""
    if type(value) is not dict:
        what = "one tensor without a name" if type(value) is TensorSpec else type(value).__name__
        raise BadFile(
            f"expected names with arrays, found {shown(what)}; save the weights with "
            f"torch.save(model.state_dict(), path)"
        )
    if key is not None:
        for part in key.split(".") if key else ():
            inner = value.get(part)
            if type(inner) is not dict:
                raise BadFile(f"it has no entry {shown(part)}; there are {_names(value)}")
            value = inner
        if not (found := _tensors(value)):
            raise BadFile(f"its entry {shown(key)} holds no tensors but {_names(value)}")
        return found

    candidates: dict[str, dict[str, TensorSpec]] = {}
    seen: set[int] = set()

    def search(mapping: Mapping[str, Any], path: str, depth: int) -> None:
        if id(mapping) in seen or depth > MAX_DEPTH:
            return
        seen.add(id(mapping))
        if found := _tensors(mapping):
            candidates[path] = found
        for name, inner in mapping.items():
            if type(inner) is dict and not any(word in name for word in NOT_WEIGHTS):
                search(inner, f"{path}.{name}" if path else name, depth + 1)

    search(value, "", 0)
    # A best score beside the weights may be a tensor too; weights are not scalars alone.
    if len(candidates) > 1 and not any(spec.size for spec in candidates.get("", {}).values()):
        candidates.pop("", None)
    if not candidates:
        raise BadFile(f"there are no tensors under names in it; it holds {_names(value)}")
    if len(candidates) > 1:
        names = [repr(shown(path)) for path in candidates]
        listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise BadFile(f"it holds several sets of tensors: choose one with key=, of {listed}")
    return next(iter(candidates.values()))


def _tensors(mapping: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: spec for name, spec in mapping.items() if type(spec) is TensorSpec}


def _names(mapping: Mapping[str, Any]) -> str:
    names = [shown(name) for name in list(mapping)[:8]]
    return (", ".join(names) + (", …" if len(mapping) > 8 else "")) or "nothing under a name"


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    while True:
        for prefix in PREFIXES:
            if all(name.startswith(prefix) and name != prefix for name in arrays):
                arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
                break
        else:
            return arrays
