"""What read_torch finds in a file, and what it refuses: formats, nesting, geometry, sizes."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.weights import read_torch, write_safetensors, write_torch
from jaxvision.weights import torch_file as module
from jaxvision.weights.torch_file import read_stream

from .torch_files import (
    global_,
    legacy_file,
    mapping,
    name,
    number,
    numbers,
    program,
    storage,
    tensor,
    zip_file,
)

WEIGHTS = np.arange(6, dtype=np.float32)
RAW = WEIGHTS.tobytes()
T = tensor(storage())


def read(data, **options):
    return read_stream(io.BytesIO(data), "file.pth", **options)


def refused(data, **options):
    with pytest.raises(UserError) as caught:
        read(data, **options)
    message = str(caught.value)
    assert message.startswith("file.pth: ")
    assert "\n" not in message
    assert len(message) < 600
    return message


def zipped(entries, **options):
    return zip_file(program(mapping(entries)), {"0": RAW}, **options)


def legacy(entries, count=6, **options):
    return legacy_file(program(mapping(entries)), {"0": (count, RAW)}, **options)


OLD = tensor(storage(view=b"N"))


@pytest.mark.parametrize("data", [zipped({"a": T}), legacy({"a": OLD})])
def test_both_formats_are_read(data):
    found = read(data)
    np.testing.assert_array_equal(found["a"], WEIGHTS.reshape(2, 3))
    found["a"][0, 0] = 7  # an array of its own, that may be written to
    assert read(data)["a"][0, 0] == 0


def test_the_name_of_a_file_does_not_matter(tmp_path):
    path = tmp_path / "weights.bin"
    for write in (write_torch, write_safetensors):
        write(path, {"a": WEIGHTS})
        np.testing.assert_array_equal(read_torch(path)["a"], WEIGHTS)
        assert read_torch(str(path)).keys() == {"a"}


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ({"a": T, "b": T}, ["a", "b"]),
        ({"b": T, "a": T, "n": number(3), "s": name("x"), "l": b"]", "none": b"N"}, ["b", "a"]),
        ({"state_dict": mapping({"a": T}), "epoch": number(3)}, ["a"]),
        ({"model": mapping({"a": T}), "best": tensor(storage(), (), ())}, ["a"]),
        ({"checkpoint": mapping({"net": mapping({"a": T})})}, ["a"]),
        (
            {"model": mapping({"a": T}), "optimizer": mapping({"state": mapping({"m": T})})},
            ["a"],
        ),
        ({"a": T, "b._extra_state": mapping({"x": T})}, ["a"]),
        ({"module.a": T, "module.b": T}, ["a", "b"]),
        ({"_orig_mod.module.a": T}, ["a"]),
        ({"module.a": T, "b": T}, ["module.a", "b"]),
        ({"module": mapping({"module.a": T})}, ["a"]),
        ({"a": tensor(storage(), (), ())}, ["a"]),
    ],
)
def test_the_one_set_of_weights_is_found(entries, names):
    assert list(read(zipped(entries))) == names


SEVERAL = {"model": mapping({"a": T}), "model_ema": mapping({"b": T}), "epoch": number(1)}


def test_several_sets_need_a_key():
    data = zipped(SEVERAL)
    message = refused(data)
    assert "'model'" in message
    assert "'model_ema'" in message
    assert "key=" in message
    assert list(read(data, key="model_ema")) == ["b"]
    assert "no entry student; there are model, model_ema, epoch" in refused(data, key="student")
    inner = zipped({"runs": mapping(SEVERAL)})
    assert list(read(inner, key="runs.model")) == ["a"]
    assert list(read(zipped({"a": T, "b": mapping({"c": T})}), key="")) == ["a"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (mapping({"epoch": number(3), "lr": name("x")}), "it holds epoch, lr"),
        (b"}", "it holds nothing under a name"),
        (T, "one tensor without a name"),
        (b"](" + T + b"e", "found list"),
        (number(3), "found int"),
        (mapping({"a\nb\u2028": number(1)}), "holds a\\x0ab\\u2028"),
    ],
)
def test_a_file_without_named_tensors_is_refused(body, why):
    assert why in refused(zip_file(program(body), {"0": RAW}))


@pytest.mark.parametrize(
    ("opcodes", "expected"),
    [
        (tensor(storage(), (3, 2), (1, 3)), WEIGHTS.reshape(2, 3).T),
        (tensor(storage(), (2,), (2,), 1), WEIGHTS[[1, 3]]),
        (tensor(storage(), (4, 6), (0, 1)), np.broadcast_to(WEIGHTS, (4, 6))),
        (tensor(storage(), (), (), 5), WEIGHTS[5]),
        (tensor(storage(), (1, 6), (1 << 60, 1)), WEIGHTS[None]),
        (tensor(storage(), (0, 1 << 30), (1, 1), 99), np.empty((0, 1 << 30), np.float32)),
        (tensor(storage(), (4, 3), (1, 1)), np.lib.stride_tricks.sliding_window_view(WEIGHTS, 3)),
    ],
)
@pytest.mark.parametrize("make", [zipped, legacy])
def test_views_are_read_as_what_they_show(make, opcodes, expected):
    if make is legacy:
        opcodes = opcodes.replace(storage(), storage(view=b"N"))
    found = read(make({"a": opcodes, "whole": OLD if make is legacy else T}))
    np.testing.assert_array_equal(found["a"], expected)
    assert found["a"].flags.c_contiguous
    np.testing.assert_array_equal(found["whole"], WEIGHTS.reshape(2, 3))
    assert not np.shares_memory(found["a"], found["whole"])


def test_old_views_of_a_storage_are_read():
    view = b"(" + name("view") + number(2) + number(3) + b"t"
    entries = {"a": tensor(storage(view=view), (3,), (1,)), "b": OLD}
    np.testing.assert_array_equal(read(legacy(entries))["a"], WEIGHTS[2:5])
    outside = {"a": tensor(storage(view=view), (4,), (1,)), "b": OLD}
    assert "outside its storage" in refused(legacy(outside))
    beyond = b"(" + name("view") + number(4) + number(3) + b"t"
    assert "outside its storage" in refused(legacy({"a": tensor(storage(view=beyond))}))


@pytest.mark.parametrize("stored", [b"\x00\x01\x02\xff\x80\x00"])
def test_a_bool_is_0_or_1(stored):
    opcodes = tensor(storage(kind="torch.BoolStorage"), (6,), (1,))
    found = read(zip_file(program(mapping({"a": opcodes})), {"0": stored}))["a"]
    assert found.dtype == bool
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1, 1, 0]


def test_an_unused_storage_is_not_read():
    """The optimiser's state, for example: here one that would be refused if it were."""
    other = tensor(storage("1", 10**9), (10,), (1,))
    entries = {"model": mapping({"a": T}), "optim": mapping({"m": other})}
    assert list(read(zipped(entries))) == ["a"]


@pytest.mark.parametrize(
    ("opcodes", "why"),
    [
        (tensor(storage(), (2, 4), (4, 1)), "outside its storage"),
        (tensor(storage(), (2, 3), (3, 1), 1), "outside its storage"),
        (tensor(storage(), (2,), (1 << 61,)), "outside its storage"),
        (tensor(storage(), (2,), (-1,)), "not a number from 0 on"),
        (tensor(storage(), (-2,), (1,)), "not a number from 0 on"),
        (tensor(storage(), (2,), (1,), -1), "not a number from 0 on"),
        (tensor(storage(), (1 << 70,), (0,)), "not a number from 0 on"),
        (tensor(storage(), (1 << 40, 1 << 40), (0, 0)), "larger than any memory"),
        (tensor(storage(), (0, 1 << 60, 1 << 60), (0, 0, 0)), "larger than any memory"),
        (tensor(storage(), (1,) * 65, (1,) * 65), "short tuple"),
        (tensor(storage(), (2,), (1, 1)), "differ in length"),
        (tensor(storage(count=7)), "expected 28 bytes in m/data/0, found 24 bytes"),
        (tensor(storage(count=-1)), "not a number from 0 on"),
        (tensor(storage("7")), "found nothing"),
        (tensor(storage("../0")), "is not a number"),
        (tensor(storage("٣")), "is not a number"),
        (tensor(storage(kind="torch.QInt8Storage")), "refused global torch.QInt8Storage"),
        (tensor(storage(kind="torch.UntypedStorage")), "untyped storage has no dtype"),
        (tensor(storage(kind="torch.float32")), "a storage has no type"),
        (tensor(number(3)), "a tensor has no storage"),
        (number(3) + b"Q", "not a storage"),
        (b"(" + name("module") + global_("torch.device") + b"NNtQ", "whole pickled model"),
    ],
)
def test_impossible_tensors_are_refused(opcodes, why):
    assert why in refused(zipped({"a": opcodes}))


def test_one_storage_has_one_size():
    entries = {"a": T, "b": tensor(storage(kind="torch.DoubleStorage"))}
    assert "one storage two sizes" in refused(zipped(entries))
    old = {"a": OLD, "b": tensor(storage(kind="torch.LongStorage", view=b"N"))}
    assert "one storage two sizes" in refused(legacy(old))


def test_what_expands_is_bounded():
    """A few bytes that claim a terabyte, by a stride of 0, and many views of one storage."""
    assert "more than max_bytes" in refused(zipped({"a": tensor(storage(), (1 << 38,), (0,))}))
    many = {f"a{i}": tensor(storage(), (1 << 10, 1 << 10), (0, 0)) for i in range(100)}
    assert "need 419,430,400 bytes" in refused(zipped(many))
    assert "more than max_bytes=23" in refused(zipped({"a": T}), max_bytes=23)
    assert read(zipped({"a": T}), max_bytes=24)["a"].size == 6


def test_a_large_file_may_expand_in_proportion(monkeypatch):
    monkeypatch.setattr(module, "MIN_ALLOWED_BYTES", 0)
    data = zipped({"a": tensor(storage(), (100, 6), (0, 1))})
    assert len(data) * 16 > 2400 > len(data)
    assert read(data)["a"].shape == (100, 6)
    assert "max_bytes" in refused(zipped({"a": tensor(storage(), (1000, 6), (0, 1))}))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (zipped({"a": T}, byteorder=b"big"), "byte order big"),
        (legacy({"a": OLD}, little_endian=False), "byte order little"),
        (legacy({"a": OLD}, version=1002), "version 1002"),
        (legacy({"a": OLD}, count=5), "expected 6 elements in storage 0, found 5"),
        (legacy({"a": OLD}, count=-6), "found -6"),
        (legacy({"a": OLD}, keys=["1"]), "does not fit its tensors"),
        (legacy({"a": OLD}, keys=[]), "does not fit its tensors"),
        (legacy({"a": OLD}, keys=["0", "0"]), "does not fit its tensors"),
        (legacy({"a": OLD}, keys=3), "damaged"),
        (legacy({"a": T})[:-1], "1 bytes are missing"),
        (b"", "the file is empty"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"\x1f\x8b\x08", "gzip"),
        (bytes(257) + b"ustar" + bytes(250), "a tar archive"),
        (pickle.dumps({"a": 1}, protocol=2), "a pickle that torch.save did not write"),
        (b"some text", "begins like none"),
        (b"PK\x03\x04", "without its end"),
        (zip_file(b"", root="m/n"), "without the data.pkl"),
        (
            zipped({"a": T}, others={"m/constants.pkl": b"", "m/code/a.py": b""}),
            "TorchScript program",
        ),
    ],
)
def test_other_files_are_refused_by_what_they_are(data, why):
    assert why in refused(data)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path}: "):
            read_torch(path)


@pytest.mark.parametrize("data", [zipped({"a": T}), legacy({"a": OLD})])
def test_every_cut_is_noticed(data):
    for end in range(len(data)):
        refused(data[:end])


def test_newer_dtypes_lie_in_untyped_storages():
    place = storage(kind="torch.storage.UntypedStorage", count=12)
    hooks = global_("collections.OrderedDict") + b")R"
    body = (
        global_("torch._utils._rebuild_tensor_v3")
        + b"("
        + place
        + number(0)
        + numbers((6,))
        + numbers((1,))
        + b"\x89"
        + hooks
        + global_("torch.uint16")
        + b"tR"
    )
    raw = struct.pack("<6H", 0, 1, 2, 3, 40000, 65535)
    found = read(zip_file(program(mapping({"a": body})), {"0": raw}))["a"]
    assert found.dtype == np.uint16
    assert found.tolist() == [0, 1, 2, 3, 40000, 65535]
    wrong = body.replace(b"uint16", b"device")
    assert "dtype is not one" in refused(zip_file(program(mapping({"a": wrong})), {"0": raw}))


def test_a_compressed_archive_is_refused():
    data = zipped({"a": T}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed or encrypted" in refused(data)
