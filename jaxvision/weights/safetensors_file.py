"""Reads .safetensors: a length, a JSON header with each array's dtype, shape and place, the bytes.

Our own thirty lines rather than the library's reader, which holds the file twice and has no numpy
dtype for bfloat16 and float8. What is written goes through the library (torch_writer.py).
"""

import json
import math
import struct
from io import BufferedIOBase
from typing import Any

import ml_dtypes
import numpy as np

from jaxvision.weights.unpickle import BadFile, shown
from jaxvision.weights.zip_archive import DAMAGED, read_exactly

MAX_HEADER_BYTES = 8 << 20  # some 100 bytes an array
MAX_DIMENSIONS = 64
DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype(np.complex64),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}


def read_safetensors(file: BufferedIOBase, max_bytes: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file in the order of their bytes, without its metadata.

    As the format demands, the arrays' bytes must fill the file without gaps or overlaps. Raises
    `BadFile` for anything else.
    """
    file_size = file.seek(0, 2)
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(MAX_HEADER_BYTES, file_size - 8):
        raise BadFile(f"its header has {length:,} bytes: {DAMAGED}")
    header = _parse_header(file.read(length))
    entries = [
        (name, *_parse_entry(name, entry))
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: entry[3:])
    position, data_start = 0, 8 + length
    for name, _, _, begin, end in entries:
        if begin != position:
            raise BadFile(f"the bytes of {shown(name)} overlap others or leave a gap")
        position = end
    if data_start + position != file_size:
        raise BadFile(f"expected {data_start + position:,} bytes, found {file_size:,}: {DAMAGED}")
    if position > max_bytes:
        raise BadFile(
            f"its tensors need {position:,} bytes, more than max_bytes={max_bytes:,}: give a "
            f"larger max_bytes if you trust the file"
        )
    arrays = {}
    for name, dtype, shape, begin, end in entries:
        raw = read_exactly(file, data_start + begin, end - begin)
        # A byte other than 0 and 1 is no bool, and what numpy does with one is undefined.
        array = raw != 0 if dtype.kind == "b" else raw.view(dtype)
        arrays[name] = array.reshape(shape)
    return arrays


def _parse_header(data: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise BadFile("its header has one name twice")
        return result

    try:
        header = json.loads(data, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError):
        raise BadFile(f"its header is not JSON: {DAMAGED}") from None
    if type(header) is not dict:
        raise BadFile(f"its header is not a JSON object: {DAMAGED}")
    return header


def _parse_entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns (dtype, shape, first byte, byte behind the last)."""
    where = f"the header's entry {shown(name)}"
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadFile(f"{where} is not a dtype, a shape and data_offsets")
    kind = entry["dtype"] if type(entry["dtype"]) is str else "(none)"
    if kind not in DTYPES:
        raise BadFile(f"{where} has the dtype {shown(kind)}, which is not read")
    dtype = DTYPES[kind]
    shape, offsets = (_naturals(entry[field], where) for field in ("shape", "data_offsets"))
    if len(shape) > MAX_DIMENSIONS or len(offsets) != 2:
        raise BadFile(f"{where} has a shape or data_offsets of the wrong length")
    begin, end = offsets
    # The product of all but the zeros: numpy refuses (0, 2**62, 2**62) too.
    if math.prod(n or 1 for n in shape) > 1 << 58:
        raise BadFile(f"{where} has a shape larger than any memory")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise BadFile(f"{where} has a shape that does not fit its data_offsets")
    return dtype, shape, begin, end


def _naturals(values: Any, where: str) -> tuple[int, ...]:
    if type(values) is not list or any(type(v) is not int or v < 0 for v in values):
        raise BadFile(f"{where} has a shape or data_offsets that are not numbers from 0 on")
    return tuple(values)
