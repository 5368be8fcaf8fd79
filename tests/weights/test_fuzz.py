"""Thousands of damaged and crafted files: one kind of error, little memory, little time.

JAXVISION_FUZZ=100000 sets how many; by default a thousand, with the same seed.
"""

import io
import os
import pickletools
import re
import struct
import time
import tracemalloc
from itertools import pairwise

import jaxtyping
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.weights.torch_file import read_stream

from .torch_files import (
    global_,
    legacy_file,
    mapping,
    name,
    number,
    program,
    storage,
    tensor,
    zip_file,
)

COUNT = int(os.environ.get("JAXVISION_FUZZ", "1000"))
MAX_BYTES, MAX_PEAK, MAX_SECONDS = 1 << 20, 16 << 20, 2.0
RAW = np.arange(6, dtype=np.float32).tobytes()
INTERESTING = [
    *(struct.pack("<B", v) for v in (0, 1, 0x2E, 0x52, 0x62, 0x7F, 0x80, 0x81, 0xFF)),
    *(struct.pack("<I", v) for v in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)),
    *(struct.pack("<Q", v) for v in (1, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63)),
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"../", b"\xff" * 8, b"-1", b"[" * 50),
]


STORAGES = {"0": RAW, "1": bytes(8), "2": b"\x01\x00\x01", "3": bytes(8)}
HEADER = (
    b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
    b'"b":{"dtype":"BOOL","shape":[2],"data_offsets":[24,26]}}'
)


def pickles():
    """Of several arrays, dtypes and views: in a checkpoint, ordered, and of the old format."""
    old = storage(view=b"N")
    view = b"(" + name("v") + number(2) + number(3) + b"t"
    inner = {
        "a.weight": tensor(storage()),
        "a.bias": tensor(storage("1", 4, "torch.HalfStorage"), (4,), (1,)),
        "t": tensor(storage(), (3, 2), (1, 3)),
        "flags": tensor(storage("2", 3, "torch.BoolStorage"), (3,), (1,)),
        "n": tensor(storage("3", 1, "torch.LongStorage"), (), ()),
    }
    whole = mapping({"state_dict": mapping(inner), "epoch": number(3), "lr": b"G" + bytes(8)})
    ordered = global_("collections.OrderedDict") + b")R" + mapping(inner)[1:]
    legacy = {"w": tensor(old), "v": tensor(storage(view=view), (3,), (1,)), "e": number(1)}
    return program(whole), program(ordered), program(mapping(legacy))


def as_zip(pickled):
    return zip_file(pickled, STORAGES)


def as_legacy(pickled):
    return legacy_file(pickled, {"0": (6, RAW)})


def as_safetensors(header):
    return struct.pack("<Q", len(header)) + header + RAW + b"\x01\x00"


def mutate(data, rng, other):
    """One to three changes: a bit, bytes, a stretch cut, repeated or foreign."""
    data = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        at = int(rng.integers(0, len(data)))
        end = min(len(data), at + int(rng.integers(1, 12)))
        match int(rng.choice(8, p=[0.3, 0.2, 0.05, 0.05, 0.05, 0.2, 0.05, 0.1])):
            case 0:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[at] = int(rng.integers(0, 256))
            case 2:
                data[at:end] = rng.bytes(end - at)
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end] * int(rng.integers(1, 30))
            case 5:
                value = pick(INTERESTING, rng)
                data[at : at + len(value)] = value
            case 6:
                begin = int(rng.integers(0, len(other)))
                data[at:at] = other[begin : begin + int(rng.integers(1, 200))]
            case _ if rng.random() < 0.3 and at:
                del data[at:]
    return bytes(data)


def mutate_parts(parts, rng, others):
    """One to three changes of whole words: left out, repeated, swapped, replaced."""
    parts = list(parts)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        i, j = (int(k) for k in rng.integers(0, len(parts), 2))
        match rng.integers(0, 5):
            case 0 if len(parts) > 1:
                del parts[i]
            case 1:
                parts.insert(j, parts[i])
            case 2:
                parts[i], parts[j] = parts[j], parts[i]
            case _:
                parts[i] = pick(others, rng)
    return b"".join(parts)


def pick(options, rng):
    return options[int(rng.integers(0, len(options)))]


def opcodes_of(pickled):
    starts = [start for _, _, start in pickletools.genops(pickled)]
    return [pickled[i:j] for i, j in pairwise([*starts, len(pickled)])]


OPCODES = [bytes([code]) for code in range(256)]
WORDS = [
    *(global_(f) for f in ("collections.OrderedDict", "torch._utils._rebuild_parameter")),
    *(global_("torch._utils._rebuild_tensor_v2"), global_("torch._tensor._rebuild_from_type_v2")),
    *(global_("os.system"), global_("torch.FloatStorage"), global_("torch.device")),
    *(tensor(storage()), storage(), name("a"), number(1), number(-(1 << 40)), b"(", b"}", b"]"),
    *(b")", b"R", b"b", b"u", b"s", b"t", b"\x85", b"\x86", b"a", b"e", b"Q", b"q\x00", b"h\x00"),
    *(b"2", b"0", b"\x81", b"\x93", b"\x91", b"\x90", b"\x8f", b"N", b"d"),
]


def random_program(rng):
    """A pickle of words of the language in any order, now and then with a valid end."""
    words = []
    for _ in range(int(rng.integers(1, 60))):
        pool = OPCODES if rng.random() < 0.1 else WORDS
        words.append(pick(pool, rng))
    end = mapping({"a": tensor(storage())}) if rng.random() < 0.5 else b""
    return program(b"".join(words) + end)


def cases(count, seed=0):
    """In turn: damaged files; damaged pickles and headers in sound files, by bytes and by words;
    random pickles."""
    rng = np.random.default_rng(seed)
    whole, ordered, old = pickles()
    sound = [as_zip(whole), as_legacy(old), as_safetensors(HEADER)]
    sound.append(zip_file(ordered, STORAGES, checksums=False))
    for data in sound:
        assert read_stream(io.BytesIO(data), "sound")
    inner = [(as_zip, whole), (as_zip, ordered), (as_legacy, old), (as_safetensors, HEADER)]
    words = {data: opcodes_of(data) for data in (whole, ordered, old)}
    words[HEADER] = re.findall(rb"\d+|\w+|.", HEADER)
    numbers = [
        b"0",
        b"-1",
        b"1",
        b"6",
        b"1e3",
        b"25",
        b"4294967296",
        b"9" * 30,
        b"null",
        b"[",
        b"]",
    ]
    for i in range(count):
        make, data = pick(inner, rng)
        match i % 4:
            case 0:
                yield mutate(pick(sound, rng), rng, pick(sound, rng))
            case 1:
                yield make(mutate(data, rng, data))
            case 2:
                more = numbers if data is HEADER else WORDS
                yield make(mutate_parts(words[data], rng, [*words[data], *more]))
            case 3:
                yield pick([as_zip, as_legacy], rng)(random_program(rng))


def is_read(data):
    """Reads a file: whether it can, where the one error says that it cannot."""
    try:
        arrays = read_stream(io.BytesIO(data), "fuzz", max_bytes=MAX_BYTES)
        for array in arrays.values():
            array.tobytes()  # the memory behind it is really there
    except UserError as error:
        # PT017 would have a with-block, which cannot say that no error is fine too.
        if "\n" in str(error) or not str(error).startswith("fuzz: "):
            pytest.fail(f"a message of its own kind: {error}")
        return False
    return True


def test_only_the_one_error_comes_out_in_bounded_memory_and_time(monkeypatch):
    files = list(cases(COUNT))
    checked = sum(map(is_read, files))
    # Once more without the suite's checks of types, whose own memory would be traced for long.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    read, slowest, worst = 0, 0.0, b""
    tracemalloc.start()
    try:
        for data in files:
            began = time.process_time()
            read += is_read(data)
            seconds = time.process_time() - began
            if seconds > slowest:
                slowest, worst = seconds, data
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{COUNT} files: {read} read, peak {peak / 1e6:.1f} MB, slowest {slowest * 1e3:.0f} ms")
    assert read == checked
    assert peak < MAX_PEAK
    assert slowest < MAX_SECONDS, worst[:200]
    assert 0.03 * COUNT < read < 0.9 * COUNT  # the damage is neither total nor harmless
