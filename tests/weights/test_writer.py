"""What is written comes back bit by bit, appears only when complete, and failures are one line."""

import errno
import os
import struct
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.weights import read_torch, write_safetensors, write_torch
from jaxvision.weights import torch_writer as module
from jaxvision.weights.tensors import TORCH_DTYPES

RNG = np.random.default_rng(0)
WRITERS = {".pth": write_torch, ".safetensors": write_safetensors}


def bits_of(arrays):
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


def example(dtype):
    raw = RNG.integers(0, 256, 12 * dtype.itemsize, dtype=np.uint8)
    return (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(3, 4)


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_dtype_and_shape_comes_back(tmp_path, suffix):
    arrays = {str(dtype): example(dtype) for dtype in TORCH_DTYPES.values()}
    if suffix == ".safetensors":
        del arrays["complex128"]  # safetensors has none
    arrays |= {
        "scalar": np.array(3),
        "empty": np.zeros((0, 4), np.float32),
        "one": np.zeros((1, 1, 5), np.float32),
        "ä.ß": np.float32([np.nan, -0.0, np.inf]),
    }
    path = tmp_path / f"weights{suffix}"
    WRITERS[suffix](path, arrays)
    found = read_torch(path)
    assert bits_of(found) == bits_of(arrays)
    if suffix == ".pth":
        assert list(found) == list(arrays)


@pytest.mark.parametrize("suffix", WRITERS)
def test_other_layouts_are_written_as_what_they_show(tmp_path, suffix):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "transposed": base.T,
        "strided": base[::2, ::-1],
        "broadcast": np.broadcast_to(base[0], (3, 6)),
        "big endian": base.astype(">f4"),
        "fortran": np.asfortranarray(base),
        "jax": jnp.arange(3, dtype=jnp.bfloat16),
    }
    path = tmp_path / f"weights{suffix}"
    WRITERS[suffix](path, arrays)
    found = read_torch(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], np.asarray(array))
    assert found["jax"].dtype == ml_dtypes.bfloat16


def test_a_pth_is_laid_out_as_torch_does(tmp_path):
    path = tmp_path / "net.pth"
    write_torch(path, {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.int8)})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == [
            f"net/{n}" for n in ("data.pkl", "byteorder", "data/0", "data/1", "version")
        ]
        assert archive.read("net/version") == b"3\n"
        data = path.read_bytes()
        for info in archive.infolist():
            lengths = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
            assert (info.header_offset + 30 + sum(lengths)) % 64 == 0
    again = tmp_path / "other" / "net.pth"
    write_torch(again, {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.int8)})
    assert again.read_bytes() == data  # the same weights are the same file


def test_safetensors_carries_metadata(tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": np.arange(3.0)}, {"epoch": "3"})
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt", "epoch": "3"}
    np.testing.assert_array_equal(load_file(path)["w"], np.arange(3.0))


@pytest.mark.parametrize("suffix", WRITERS)
def test_dtypes_that_torch_lacks_are_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for array in (np.array(["text"]), np.array([None]), np.zeros(2, np.longdouble)):
        with pytest.raises(UserError, match="torch has no dtype for 'w'"):
            WRITERS[suffix](path, {"w": array})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_is_replaced(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for count in (3, 4):
        WRITERS[suffix](path, {"w": np.arange(count)})
        np.testing.assert_array_equal(read_torch(path)["w"], np.arange(count))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, {"w": np.arange(3.0)})
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match=f"cannot write {path}: No space left on device"):
        WRITERS[suffix](path, {"w": np.arange(4.0)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_disk_without_room_is_one_line(tmp_path, suffix):
    """The limit on the size of a file fails in the middle of a write, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError) as caught:
            WRITERS[suffix](tmp_path / f"a{suffix}", {"w": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {tmp_path / f'a{suffix}'}: " in str(caught.value)
    assert "File too large" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*a\.pth"):
        write_torch(tmp_path / "file" / "a.pth", {"w": np.zeros(3)})
