"""Headers of .safetensors that say one thing and bytes that are another."""

import io
import json
import struct

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.weights import safetensors_file as module
from jaxvision.weights.torch_file import read_stream

WEIGHTS = np.arange(6, dtype=np.float32)
RAW = WEIGHTS.tobytes()


def file_of(header, data=RAW):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin=0, end=24, shape=(2, 3), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def refused(data, **options):
    with pytest.raises(UserError) as caught:
        read_stream(io.BytesIO(data), "a.safetensors", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arrays_are_read_in_the_order_of_their_bytes():
    header = {"__metadata__": {"a": "b"}, "b": entry(8, 24, (4,)), "a": entry(0, 8, (2, 1))}
    found = read_stream(io.BytesIO(file_of(header)), "a")
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], [[0], [1]])
    np.testing.assert_array_equal(found["b"], [2, 3, 4, 5])
    empty = {"e": entry(0, 0, (0, 5)), "w": entry(), "s": entry(24, 24, (0,), "BOOL")}
    assert read_stream(io.BytesIO(file_of(empty)), "a")["e"].shape == (0, 5)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": entry(), "b": entry()}, "overlap others or leave a gap"),
        ({"a": entry(4, 24, (5,))}, "overlap others or leave a gap"),
        ({"a": entry(0, 20, (5,))}, "expected"),  # bytes behind the last array
        ({"a": entry(0, 28, (7,))}, "expected"),  # and too few
        ({"a": entry(0, 24, (2, 2))}, "does not fit its data_offsets"),
        ({"a": entry(24, 0)}, "does not fit its data_offsets"),
        ({"a": entry(-24, 0)}, "not numbers from 0 on"),
        ({"a": entry(shape=(-2, -3))}, "not numbers from 0 on"),
        ({"a": entry(shape=(2.0, 3))}, "not numbers from 0 on"),
        ({"a": entry(shape=(True, 6))}, "not numbers from 0 on"),
        ({"a": entry(shape=(1 << 40, 1 << 40))}, "larger than any memory"),
        ({"a": entry(0, 0, (0, 1 << 62, 1 << 62))}, "larger than any memory"),
        ({"a": entry(shape=(1,) * 65)}, "of the wrong length"),
        ({"a": {**entry(), "data_offsets": [0]}}, "of the wrong length"),
        ({"a": entry(dtype="F4")}, "the dtype F4, which is not read"),
        ({"a": entry(dtype=["F32"])}, "which is not read"),
        ({"a": {"dtype": "F32"}}, "is not a dtype, a shape and data_offsets"),
        ({"a": 3}, "is not a dtype, a shape and data_offsets"),
        (b'{"a": 1, "a": 2}', "one name twice"),
        (b'{"a": ' + b"[" * 100_000, "not JSON"),
        (b'{"a": \xff}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"{", "not JSON"),
    ],
)
def test_a_header_that_lies_is_refused(header, why):
    assert why in refused(file_of(header))


def test_sizes_are_bounded(monkeypatch):
    data = file_of({"a": entry()})
    assert "more than max_bytes=23" in refused(data, max_bytes=23)
    assert "header has" in refused(struct.pack("<Q", 1 << 62) + data[8:])
    assert "leave key out" in refused(data, key="model")
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 20)
    assert "header has" in refused(data)


def test_every_cut_is_noticed():
    data = file_of({"a": entry()})
    for end in range(len(data)):
        refused(data[:end])


def test_a_bool_is_0_or_1():
    data = file_of({"a": entry(0, 4, (4,), "BOOL")}, b"\x00\x01\x02\xff")
    found = read_stream(io.BytesIO(data), "a")["a"]
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1]
