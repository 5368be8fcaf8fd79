"""What torch pickles of a tensor: a storage by name, and the geometry of a view of it.

Nothing is read while a pickle is interpreted. Its tensors become `TensorSpec`s, checked against the
size that their storage is said to have; only those that are wanted become arrays, with `gather`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from jaxvision.weights.unpickle import BadFile, Builder, Global, inert, shown

_FLOAT8 = ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")

TORCH_DTYPES: dict[str, np.dtype] = {
    **{
        f"torch.{name}": np.dtype(name)
        for name in (
            *("float16", "float32", "float64", "complex64", "complex128", "bool"),
            *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        )
    },
    "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{f"torch.float8_{kind}": np.dtype(getattr(ml_dtypes, f"float8_{kind}")) for kind in _FLOAT8},
}
STORAGE_DTYPES: dict[str, np.dtype] = {
    f"torch.{name}Storage": TORCH_DTYPES[f"torch.{dtype}"]
    for name, dtype in (
        *(("Float", "float32"), ("Double", "float64"), ("Half", "float16")),
        *(("BFloat16", "bfloat16"), ("ComplexFloat", "complex64")),
        *(("ComplexDouble", "complex128"), ("Bool", "bool"), ("Byte", "uint8")),
        *(("Char", "int8"), ("Short", "int16"), ("Int", "int32"), ("Long", "int64")),
    )
}
UNTYPED_STORAGES = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
MAX_BYTES_ADDRESSABLE = 1 << 62
MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class Storage:
    """Bytes in the file, named by `key`: of these, `num_bytes` from `offset` on.

    `dtype` is None for the untyped storages of newer dtypes, whose tensors say it themselves.
    `total_bytes` is what the file holds under `key`, more than `num_bytes` only for a view.
    """

    key: str
    dtype: np.dtype | None
    num_bytes: int
    total_bytes: int
    offset: int = 0

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype is None else self.dtype.itemsize


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that was not read yet: `size` and `strides` in elements, `offset` in bytes."""

    storage: Storage
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False

    @property
    def num_bytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize


def storage_from_pid(pid: Any, *, legacy: bool) -> Storage:
    """Returns what a persistent id stands for: ("storage", type, key, device, number of elements).

    The legacy format has a sixth entry: None, or (key, offset, size) of a view, in elements.
    """
    length = 6 if legacy else 5
    if type(pid) is not tuple or len(pid) not in (5, length) or pid[0] != "storage":
        if type(pid) is tuple and pid[:1] == ("module",):
            raise BadFile(
                "it holds a whole pickled model; save its weights alone with "
                "torch.save(model.state_dict(), path)"
            )
        raise BadFile("its pickle is damaged: it refers to something that is not a storage")
    _, kind, key, _, count, *view = pid
    if type(kind) is not Global or kind.name not in (*STORAGE_DTYPES, *UNTYPED_STORAGES):
        raise BadFile("its pickle is damaged: a storage has no type")
    key = str(key) if type(key) is int else key
    if type(key) is not str or not (key.isascii() and key.isdigit()) or len(key) > 40:
        raise BadFile(f"the storage key {shown(key) if type(key) is str else ''} is not a number")
    dtype = STORAGE_DTYPES.get(kind.name)
    itemsize = 1 if dtype is None else dtype.itemsize
    total = _natural(count) * itemsize
    storage = Storage(key, dtype, total, total)
    if not view or view[0] is None:
        return storage
    if type(view[0]) is not tuple or len(view[0]) != 3:
        raise BadFile("its pickle is damaged: a storage's view is not a key, an offset and a size")
    offset, size = _natural(view[0][1]) * itemsize, _natural(view[0][2]) * itemsize
    if offset + size > total:
        raise BadFile(f"a view reaches outside its storage {key}")
    return replace(storage, offset=offset, num_bytes=size)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_BYTES_ADDRESSABLE:
        raise BadFile("its pickle is damaged: a size or offset is not a number from 0 on")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if type(values) not in (tuple, list) or len(values) > MAX_DIMENSIONS:
        raise BadFile("its pickle is damaged: a tensor's size or stride is not a short tuple")
    return tuple(map(_natural, values))


def _tensor(
    storage: Any, offset: Any, size: Any, strides: Any, dtype: np.dtype | None, metadata: Any
) -> TensorSpec:
    if type(storage) is not Storage:
        raise BadFile("its pickle is damaged: a tensor has no storage")
    dtype = dtype or storage.dtype
    if dtype is None:
        raise BadFile("its pickle is damaged: a tensor on an untyped storage has no dtype")
    size, strides, offset = _naturals(size), _naturals(strides), _natural(offset)
    if len(size) != len(strides):
        raise BadFile("its pickle is damaged: a tensor's size and stride differ in length")
    if math.prod(n or 1 for n in size) * dtype.itemsize > MAX_BYTES_ADDRESSABLE:
        raise BadFile("its pickle is damaged: a tensor is larger than any memory")
    if 0 not in size:
        last = offset + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
        if (last + 1) * dtype.itemsize > storage.num_bytes:
            raise BadFile(f"a tensor reaches outside its storage {storage.key}")
    bits = metadata if type(metadata) is dict else {}
    return TensorSpec(
        storage,
        dtype,
        offset * dtype.itemsize,
        size,
        # The stride of an axis of length 1 is never used, and may be any number.
        tuple(0 if n == 1 else stride for n, stride in zip(size, strides, strict=True)),
        conjugated=bits.get("conj") is True and dtype.kind == "c",
        negated=bits.get("neg") is True and dtype.kind in "fc",
    )


def _build_v1(arguments: tuple[Any, ...]) -> TensorSpec:
    """torch._utils._rebuild_tensor(storage, offset, size, stride)"""
    return _tensor(*_at_least(arguments, 4)[:4], None, None)


def _build_v2(arguments: tuple[Any, ...]) -> TensorSpec:
    """torch._utils._rebuild_tensor_v2(…, requires_grad, hooks, metadata=None)"""
    return _tensor(*_at_least(arguments, 6)[:4], None, arguments[6] if arguments[6:] else None)


def _build_v3(arguments: tuple[Any, ...]) -> TensorSpec:
    """torch._utils._rebuild_tensor_v3(…, requires_grad, hooks, dtype, metadata=None)"""
    name = getattr(_at_least(arguments, 7)[6], "name", None)
    if name not in TORCH_DTYPES:
        raise BadFile("its pickle is damaged: a tensor's dtype is not one")
    metadata = arguments[7] if arguments[7:] else None
    return _tensor(*arguments[:4], TORCH_DTYPES[name], metadata)


def _build_parameter(arguments: tuple[Any, ...]) -> Any:
    """torch._utils._rebuild_parameter(data, requires_grad, hooks): a Parameter is its data."""
    return _at_least(arguments, 1)[0]


def _build_subclass(arguments: tuple[Any, ...]) -> Any:
    """torch._tensor._rebuild_from_type_v2(function, type, arguments, state)"""
    function, _, inner = _at_least(arguments, 3)[:3]
    if type(function) is not Global or function.name not in _REBUILDERS or type(inner) is not tuple:
        raise BadFile("its pickle is damaged: a tensor is rebuilt by something else")
    return _REBUILDERS[function.name](inner)


def _build_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """collections.OrderedDict, from nothing or, as Python 2 wrote it, from a list of pairs."""
    result: dict[str, Any] = {}
    if arguments and type(arguments[0]) is list:
        for pair in arguments[0]:
            if type(pair) in (tuple, list) and len(pair) == 2 and type(pair[0]) is str:
                result[pair[0]] = pair[1]
    return result


def _at_least(arguments: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(arguments) < count:
        raise BadFile("its pickle is damaged: a tensor is rebuilt from too little")
    return arguments


_REBUILDERS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor": _build_v1,
    "torch._utils._rebuild_tensor_v2": _build_v2,
    "torch._utils._rebuild_tensor_v3": _build_v3,
    "torch._utils._rebuild_parameter": _build_parameter,
    "torch._utils._rebuild_parameter_with_state": _build_parameter,
}
# What checkpoints hold beside weights: counters, arguments of the program, best scores. Their names
# are let through and the objects forgotten; none of these is imported or made.
_INERT = (
    *("_codecs.encode", "argparse.Namespace", "collections.Counter", "numpy.dtype"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter"),
    *("builtins.set", "__builtin__.set", "builtins.complex", "builtins.bytearray"),
)
BUILDERS: Mapping[str, Builder] = {
    **_REBUILDERS,
    "torch._tensor._rebuild_from_type_v2": _build_subclass,
    "collections.OrderedDict": _build_dict,
    **dict.fromkeys((*STORAGE_DTYPES, *UNTYPED_STORAGES, *TORCH_DTYPES, *_INERT), inert),
}


def gather(
    specs: Mapping[str, TensorSpec],
    read_storage: Callable[[Storage], np.ndarray],
    max_bytes: int,
) -> dict[str, np.ndarray]:
    """Reads the storages one by one and returns each tensor as an array of its own, C-contiguous.

    `read_storage` gives all bytes of a storage, as a new uint8 array. Refuses before it reads
    anything if the storages, or the tensors, are more than `max_bytes`.
    """
    by_storage: dict[str, list[str]] = {}
    for name, spec in specs.items():
        by_storage.setdefault(spec.storage.key, []).append(name)
    stored = sum(specs[names[0]].storage.total_bytes for names in by_storage.values())
    needed = max(stored, sum(spec.num_bytes for spec in specs.values()))
    if needed > max_bytes:
        raise BadFile(
            f"its tensors need {needed:,} bytes, more than max_bytes={max_bytes:,}: give a larger "
            f"max_bytes if you trust the file"
        )
    arrays: dict[str, np.ndarray] = {}
    for names in by_storage.values():
        storages = {specs[name].storage.total_bytes for name in names}
        if len(storages) != 1:
            raise BadFile("its pickle gives one storage two sizes")
        raw = read_storage(specs[names[0]].storage)
        for name in names:
            arrays[name] = _array(specs[name], raw, alone=len(names) == 1)
    return {name: arrays[name] for name in specs}


def _array(spec: TensorSpec, raw: np.ndarray, *, alone: bool) -> np.ndarray:
    if 0 in spec.size:
        return np.empty(spec.size, spec.dtype)
    # A byte other than 0 and 1 is no bool, and what numpy does with one is undefined.
    dtype = np.dtype(np.uint8) if spec.dtype == bool else spec.dtype
    strides = tuple(stride * dtype.itemsize for stride in spec.strides)
    start = spec.storage.offset + spec.offset
    view = np.ndarray(spec.size, dtype, raw, start, strides)
    if alone and view.nbytes == raw.nbytes and view.flags.c_contiguous:
        array = raw.view(dtype).reshape(spec.size)  # the usual case: nothing is copied
    else:
        array = np.array(view, order="C")
    if spec.conjugated:
        array = np.conj(array)
    if spec.negated:
        array = np.negative(array)
    return np.asarray(array, spec.dtype)  # of bytes, bool is whether they are not 0
