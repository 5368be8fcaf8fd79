"""Reads the data in a pickle without running it: an interpreter of our own, of data opcodes only.

Python's unpickler calls what a file names, and a subclass of it has to guard every way there:
REDUCE with strange arguments, BUILD that sets attributes of what we allowed, memo bombs, and the
recursion of its C code. Here there is nothing to guard. A global is a name, checked against a list;
REDUCE and NEWOBJ look that name up in a table of our functions; BUILD forgets the state it is
given.
Weight files have small pickles (the arrays lie beside them), so plain Python is quick enough:
resnet152's takes about 0.03 s.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

MAX_PICKLE_BYTES = 16 << 20
MAX_OPCODES = 2_000_000
"""Each opcode makes at most one small object, so this bounds memory (to some 300 MB) and time."""
MAX_INTEGER_BYTES = 16

Builder = Callable[[tuple[Any, ...]], Any]


class BadFile(Exception):
    """The file is not what it should be; the message says what came and what to do."""


class Global:
    """The name of a class or function in the pickled program. Only a name: it cannot be called."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Inert:
    """Stands for an object that holds no weights, such as a device: forgets what it is given."""

    __slots__ = ()


INERT = Inert()


def inert(arguments: tuple[Any, ...]) -> Inert:
    """The builder of objects that hold no weights."""
    return INERT


def shown(text: object) -> str:
    """What a file says, fit for an error of one line: ASCII, at most 100 characters."""
    text = str(text).encode("ascii", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 100 else f"{text[:97]}..."


def unpickle(
    data: bytes,
    start: int,
    builders: Mapping[str, Builder],
    persistent_load: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Returns `(value, end)` of the pickle that begins at `data[start]`.

    The value is made of None, bool, int, float, str, bytes, tuples, lists, dictionaries and what
    `builders` (name of a global -> our function of its arguments) and `persistent_load` return. Of
    dictionaries only the entries under strings are kept, and sets become `INERT`: nothing in here
    needs hashing of a file's nested or crafted keys. Lists and dictionaries may contain themselves.
    Raises `BadFile`, whatever is wrong.
    """
    machine = _Machine(data, start, builders, persistent_load)
    try:
        return machine.run(), machine.position
    except (IndexError, struct.error):  # an empty stack, or the end of the data
        raise BadFile("its pickle is damaged or cut short") from None


class _Machine:
    """The pickle machine of `pickletools`: a stack, a stack of marks and a memo."""

    def __init__(
        self,
        data: bytes,
        start: int,
        builders: Mapping[str, Builder],
        persistent_load: Callable[[Any], Any] | None,
    ):
        self.data, self.position = data, start
        self.builders, self.persistent_load = builders, persistent_load
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.read(1)
            if code == b".":
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                known = pickletools.code2op.get(code.decode("latin-1"))
                name = known.name if known else f"0x{code.hex()}"
                raise BadFile(f"refused the pickle opcode {name}, which no weights file needs")
            step(self)
        raise BadFile(f"its pickle has more than {MAX_OPCODES:,} opcodes")

    def read(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise BadFile("its pickle is damaged or cut short")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise BadFile("its pickle is damaged or cut short")
        line = self.read(end - self.position)
        self.position += 1
        return _text(line)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise BadFile(f"its pickle is damaged: expected a {kind.__name__} on the stack")
        return self.stack[-1]

    def pop_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def integer(self, count: int) -> None:
        if not 0 <= count <= MAX_INTEGER_BYTES:
            raise BadFile(f"its pickle has an integer of {count} bytes")
        self.push(int.from_bytes(self.read(count), "little", signed=True))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if target is INERT:
            return
        target = self.top(dict)
        if len(items) % 2:
            raise BadFile("its pickle is damaged: a dictionary's key has no value")
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if type(key) is str)

    def extend(self, items: list[Any]) -> None:
        if self.stack[-1] is not INERT:
            self.top(list).extend(items)

    def global_(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise BadFile("its pickle is damaged: a global's name is not a string")
        full = f"{module}.{name}"
        if full not in self.builders:
            raise BadFile(
                f"refused global {shown(full)}: only weights are read, nothing in a file is "
                f"executed. If it holds a whole model, save its weights alone with "
                f"torch.save(model.state_dict(), path)"
            )
        self.push(Global(full))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.global_(module, name)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise BadFile("its pickle is damaged: it calls what is no function")
        self.push(self.builders[function.name](arguments))

    def call_with_keywords(self) -> None:
        self.stack.pop()
        self.call()

    def build(self) -> None:
        self.stack.pop()
        if not self.stack:
            raise IndexError

    def persistent(self) -> None:
        if self.persistent_load is None:
            raise BadFile("its pickle refers to data where none is expected")
        self.push(self.persistent_load(self.stack.pop()))

    def keep(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise BadFile("its pickle is damaged: it recalls what it never kept")
        self.push(self.memo[index])

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadFile("its pickle has a string that is not UTF-8") from None


def _old_text(data: bytes) -> str:
    """A str of Python 2, which said no encoding; every byte string is Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


_STEPS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m.read(1),  # PROTO
    b"\x95": lambda m: m.read(8),  # FRAME
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.pop_mark,
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.integer(m.number("<B")),
    b"\x8b": lambda m: m.integer(m.number("<i")),
    b"G": lambda m: m.push(m.number(">d")),
    b"T": lambda m: m.push(_old_text(m.read(m.number("<I")))),
    b"U": lambda m: m.push(_old_text(m.read(m.number("<B")))),
    b"X": lambda m: m.push(_text(m.read(m.number("<I")))),
    b"\x8c": lambda m: m.push(_text(m.read(m.number("<B")))),
    b"\x8d": lambda m: m.push(_text(m.read(m.number("<Q")))),
    b"B": lambda m: m.push(m.read(m.number("<I"))),
    b"C": lambda m: m.push(m.read(m.number("<B"))),
    b"\x8e": lambda m: m.push(m.read(m.number("<Q"))),
    b"\x96": lambda m: m.push(m.read(m.number("<Q"))),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.pop_tuple(1),
    b"\x86": lambda m: m.pop_tuple(2),
    b"\x87": lambda m: m.pop_tuple(3),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.pop_mark()),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.pop_mark()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"\x8f": lambda m: m.push(INERT),  # EMPTY_SET
    b"\x90": _Machine.pop_mark,  # ADDITEMS
    b"\x91": lambda m: (m.pop_mark(), m.push(INERT)),  # FROZENSET
    b"c": lambda m: m.global_(m.line(), m.line()),
    b"\x93": _Machine.stack_global,
    b"R": _Machine.call,
    b"\x81": _Machine.call,
    b"\x92": _Machine.call_with_keywords,
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
    b"q": lambda m: m.keep(m.number("<B")),
    b"r": lambda m: m.keep(m.number("<I")),
    b"\x94": lambda m: m.keep(len(m.memo)),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
}
