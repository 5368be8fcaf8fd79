"""Torch files made by hand, right and wrong: pickles by opcodes, in zip archives or old streams."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping

MAGIC = 0x1950A86A20F9469CFC6C


def name(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Without the header and the end of a pickle, an int of any size is one opcode."""
    return pickle.dumps(value, protocol=2)[2:-1]


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def global_(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def storage(key="0", count=6, kind="torch.FloatStorage", view=None) -> bytes:
    """`view` is what the old format has in sixth place: opcodes, b"N" for none."""
    sixth = view or b""
    place = name("storage") + global_(kind) + name(key) + name("cpu")
    return b"(" + place + number(count) + sixth + b"tQ"


def tensor(place: bytes, size=(2, 3), strides=(3, 1), offset=0, metadata=b"") -> bytes:
    hooks = global_("collections.OrderedDict") + b")R"
    geometry = number(offset) + numbers(size) + numbers(strides)
    call = b"(" + place + geometry + b"\x89" + hooks + metadata + b"tR"
    return global_("torch._utils._rebuild_tensor_v2") + call


def mapping(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(name(k) + value for k, value in entries.items()) + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def zip_file(
    pickled: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    byteorder: bytes = b"little",
    root: str = "m",
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
    checksums: bool = True,
) -> bytes:
    """`others` are more members by full name; without `checksums` all are 0, as torch can do."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", byteorder)
        for key, data in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", data)
        for member, data in (others or {}).items():
            archive.writestr(member, data)
    data = bytearray(buffer.getvalue())
    if not checksums:
        at = data.find(b"PK\x01\x02")
        while at >= 0:
            data[at + 16 : at + 20] = bytes(4)
            at = data.find(b"PK\x01\x02", at + 46)
    return bytes(data)


def legacy_file(
    pickled: bytes,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    *,
    little_endian: bool = True,
    version: int = 1001,
    keys: list | None = None,
) -> bytes:
    """`storages` maps a key to the number of elements that is written, and the bytes."""
    storages = storages or {}
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    parts = [pickle.dumps(value, protocol=2) for value in (MAGIC, version, system)]
    parts += [pickled, pickle.dumps(list(storages) if keys is None else keys, protocol=2)]
    parts += [struct.pack("<q", count) + data for count, data in storages.values()]
    return b"".join(parts)
