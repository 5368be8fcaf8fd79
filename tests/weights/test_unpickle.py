"""Nothing in a pickle is executed, however it is asked for, and only one error comes out."""

import argparse
import builtins
import collections
import contextlib
import copyreg
import functools
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.weights import unpickle as module
from jaxvision.weights.tensors import BUILDERS
from jaxvision.weights.torch_file import read_stream
from jaxvision.weights.unpickle import BadFile, unpickle

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

WEIGHTS = np.arange(6, dtype=np.float32)


def read(data):
    return read_stream(io.BytesIO(data), "file.pth")


def refused(data):
    with pytest.raises(UserError) as caught:
        read(data)
    message = str(caught.value)
    assert message.startswith("file.pth: ")
    assert "\n" not in message
    return message


def assert_good_file_still_reads():
    pickled = program(mapping({"a": tensor(storage())}))
    found = read(zip_file(pickled, {"0": WEIGHTS.tobytes()}))
    np.testing.assert_array_equal(found["a"], WEIGHTS.reshape(2, 3))


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(flag):
    """Objects whose unpickling, if it did what they say, would create the file `flag`."""
    touch = f"open({str(flag)!r}, 'w').close()"
    shell = f"touch {flag}"
    return {
        "os.system": Calls(os.system, shell),
        "subprocess": Calls(subprocess.Popen, [sys.executable, "-c", touch]),
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "partial": Calls(functools.partial(eval, touch)),
        "getattr": Calls(getattr, os, "system"),
        "import": Calls(__import__, "os"),
        "reconstructor": Calls(copyreg._reconstructor, dict, object, None),
        "open": Calls(builtins.open, str(flag), "w"),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, shell))),
        "defaultdict": collections.defaultdict(os.getcwd),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("attack", list(attacks("flag")))
def test_no_function_is_called(tmp_path, attack, protocol):
    flag = tmp_path / "flag"
    value = attacks(flag)[attack]
    if attack == "getattr":  # modules cannot be pickled: a global of one stands in
        value = Calls(getattr, os.system, "__call__")
    pickled = pickle.dumps({"a": value}, protocol=protocol)
    for data in (zip_file(pickled), legacy_file(pickled)):
        assert "refused" in refused(data)
        assert not flag.exists()


def test_the_attacks_would_work_on_pickle(tmp_path):
    for attack in ("os.system", "eval"):
        flag = tmp_path / attack
        pickle.loads(pickle.dumps(attacks(flag)[attack]))
        assert flag.exists()


def test_a_refused_global_is_named():
    message = refused(zip_file(pickle.dumps(Calls(os.system, "true"), protocol=2)))
    assert f"refused global {os.name}.system" in message
    assert "torch.save(model.state_dict(), path)" in message


CONTAINER = global_("collections.OrderedDict")
EVIL_STATE = mapping({"__class__": name("x"), "update": name("x"), "__setstate__": name("x")})


@pytest.mark.parametrize(
    "body",
    [
        CONTAINER + b")R" + EVIL_STATE + b"b",  # BUILD on a dictionary
        CONTAINER + EVIL_STATE + b"b",  # BUILD on the function itself
        CONTAINER + b")\x81" + EVIL_STATE + b"b",
        global_("argparse.Namespace") + b")\x81" + EVIL_STATE + b"b",
        global_("torch.device") + EVIL_STATE + b"b",
        tensor(storage()) + EVIL_STATE + b"b",
        CONTAINER + b"N\x85R",  # a function with an argument of another kind
        CONTAINER + b"]N\x86R",
        CONTAINER + number(1 << 100) + b"\x85R",
        global_("torch.FloatStorage") + b")R",
        global_("torch._utils._rebuild_parameter") + b"N\x85R",
        CONTAINER + b"}" + b"\x92",
    ],
)
def test_allowed_names_are_harmless_with_anything(body):
    before = dict(BUILDERS)
    entries = {"a": body, "b": tensor(storage())}
    with contextlib.suppress(UserError):
        read(zip_file(program(mapping(entries)), {"0": WEIGHTS.tobytes()}))
    assert dict(BUILDERS) == before
    assert_good_file_still_reads()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (global_("torch._utils._rebuild_tensor_v2") + b")R", "from too little"),
        (global_("torch._utils._rebuild_tensor_v2") + b"NR", "calls what is no function"),
        (name("os.system") + b")R", "calls what is no function"),
        (b"}" + b")R", "calls what is no function"),
        (global_("torch._tensor._rebuild_from_type_v2") + b"(NN)tR", "by something else"),
        (
            global_("torch._tensor._rebuild_from_type_v2")
            + b"("
            + global_("collections.OrderedDict")
            + b"N)tR",
            "by something else",
        ),
        (b"i" + b"os\nsystem\n", "the pickle opcode INST"),
        (b"(" + CONTAINER + b"o", "the pickle opcode OBJ"),
        (b"\x82\x01", "the pickle opcode EXT1"),
        (b"\x97", "the pickle opcode NEXT_BUFFER"),
        (b"P1\n", "the pickle opcode PERSID"),
        (b"\xff", "the pickle opcode 0xff"),
        (number(1) + number(2) + b"\x93", "global's name is not a string"),
        (b"h\x07", "recalls what it never kept"),
        (b"]" + b"]s", "damaged"),
        (b"X\xff\xff\xff\x7fabc", "cut short"),
        (b"X\x01\x00\x00\x00\xff", "not UTF-8"),
        (b"\x8b\xff\xff\xff\x7f" + b"1", "an integer of 2147483647 bytes"),
        (b"\x8b\xff\xff\xff\xff", "an integer of -1 bytes"),
        (b"\x8d" + b"\xff" * 8, "cut short"),
    ],
)
def test_what_is_wrong_is_said(body, why):
    assert why in refused(zip_file(program(mapping({"a": body}))))
    assert_good_file_still_reads()


@pytest.mark.parametrize("opened", [b"]", b"(", b"}", b"N\x85", b")"])
def test_what_lies_on_the_stack_is_no_danger(opened):
    pickled = program(opened * 10_000 + mapping({"a": tensor(storage())}))
    read(zip_file(pickled, {"0": WEIGHTS.tobytes()}))


def test_depth_is_no_danger():
    """Nested tuples are made, dropped and never hashed: that would overflow the stack of C."""
    nested = b")" + b"\x85" * 150_000
    assert "found tuple" in refused(zip_file(program(nested)))
    assert "no tensors" in refused(zip_file(program(b"}" + nested + b"Ns")))


def test_a_container_may_hold_itself():
    loop = b"}q\x00(" + name("me") + b"h\x00" + name("a") + tensor(storage()) + b"u"
    assert list(read(zip_file(program(loop), {"0": WEIGHTS.tobytes()}))) == ["a"]


def test_opcodes_are_limited(monkeypatch):
    monkeypatch.setattr(module, "MAX_OPCODES", 1000)
    assert "more than 1,000 opcodes" in refused(zip_file(program(b"N" * 2000)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_data_comes_back_as_python_reads_it(protocol):
    value = {
        "none": None,
        "flags": [True, False],
        "ints": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 2**63],
        "floats": [0.5, -1e300],
        "text": ["", "ä" * 300],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "nested": {"a": {"b": []}},
        "many": list(range(3000)),
    }
    if protocol > 2:
        value["bytes"] = b"\x00" * 300
    found, end = unpickle(data := pickle.dumps(value, protocol=protocol), 0, {})
    assert found == value
    assert end == len(data)


def test_what_holds_no_weights_is_let_through_and_forgotten():
    value = {
        "args": argparse.Namespace(lr=0.1),
        "milestones": collections.Counter([1, 2]),
        "best": np.float64(3.5),
        "seen": {1, 2},
    }
    found, _ = unpickle(pickle.dumps(value, protocol=2), 0, BUILDERS)
    assert set(found.values()) == {module.INERT}


def test_every_cut_is_noticed():
    data = pickle.dumps({"a": [1, 2.5, "text"], "b": (None, True)}, protocol=4)
    for end in range(len(data)):
        with pytest.raises(BadFile):
            unpickle(data[:end], 0, {})
