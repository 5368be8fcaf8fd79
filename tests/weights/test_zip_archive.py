"""Zip archives that say one thing and hold another."""

import io
import struct
import warnings
import zipfile

import numpy as np
import pytest

from jaxvision.weights import zip_archive as module
from jaxvision.weights.unpickle import BadFile
from jaxvision.weights.zip_archive import ZipArchive

MEMBERS = {"m/data.pkl": b"pickle", "m/data/0": bytes(range(200)), "m/empty": b""}


def archive_of(members, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return bytearray(buffer.getvalue())


def opened(data):
    return ZipArchive(io.BytesIO(bytes(data)))


def refused(data, name="m/data/0"):
    with pytest.raises(BadFile) as caught:
        opened(data).read_array(name)
    return str(caught.value)


def entry(data, name):
    """Where the entry of a member in the directory begins."""
    return data.rfind(name.encode()) - 46


def test_members_are_read():
    archive = opened(archive_of(MEMBERS))
    assert {name: archive.read(name, 1000) for name in archive.members} == MEMBERS
    array = archive.read_array("m/data/0")
    assert array.dtype == np.uint8
    assert array.flags.writeable
    with pytest.raises(BadFile, match="larger than 199 bytes"):
        archive.read("m/data/0", 199)
    with pytest.raises(BadFile, match="has no m/data/1"):
        archive.read_array("m/data/1")


def test_zip64_is_read():
    """As torch writes it: the 64-bit end record always, the entry's sizes in the extra field."""
    data = archive_of({"m/data/0": b"abc"})
    at, end = entry(data, "m/data/0"), data.rfind(b"PK\x05\x06")
    extra = struct.pack("<HHQQ", 1, 16, 3, 3)
    data[at + 20 : at + 28] = b"\xff" * 8
    data[at + 30 : at + 32] = struct.pack("<H", len(extra))
    data[end:end] = extra
    size = end + len(extra) - at
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, at)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at + size, 1)
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    data[at + size :] = record + locator + tail
    assert opened(data).read("m/data/0", 10) == b"abc"
    data[at + 30 : at + 32] = struct.pack("<H", 0)
    refused(data)


@pytest.mark.parametrize(
    "name", ["../m/data/0", "m/../../x", "/etc/passwd", "C:/x", "..\\x", "m/a\0b", ""]
)
def test_names_that_lead_elsewhere_are_refused(name):
    data = archive_of({"m/data/0": b"x", "Q" * max(len(name), 1): b"y"})
    data = data.replace(b"Q" * max(len(name), 1), name.encode() or b"/")
    assert "refused the member name" in refused(data)


def test_two_members_of_one_name_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("m/data/0", b"one")
            archive.writestr("m/data/0", b"two")
    assert "two members named m/data/0" in refused(bytearray(buffer.getvalue()))


def test_overlapping_members_are_refused():
    """The bomb of many entries that share one stretch of the file."""
    data = archive_of({"m/a": b"x" * 100, "m/b": b"y" * 100})
    first, second = entry(data, "m/a"), entry(data, "m/b")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    assert "overlaps" in refused(data, "m/b")
    data[second + 42 : second + 46] = struct.pack("<I", 50)
    assert "overlaps" in refused(data, "m/b")


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (20, struct.pack("<II", 10**6, 10**6), "overlaps"),  # both sizes
        (24, struct.pack("<I", 10**6), "compressed or encrypted"),  # the real one alone
        (10, struct.pack("<H", 8), "compressed or encrypted"),
        (8, struct.pack("<H", 1), "compressed or encrypted"),
        (42, struct.pack("<I", 10**6), "overlaps"),
        (16, struct.pack("<I", 12345), "checksum of m/data/0 is wrong"),
        (0, b"PKxx", "its directory"),
        (28, struct.pack("<H", 10_000), "its directory"),
    ],
)
def test_a_directory_that_lies_is_refused(offset, value, why):
    data = archive_of(MEMBERS)
    at = entry(data, "m/data/0")
    data[at + offset : at + offset + len(value)] = value
    assert why in refused(data)


def test_a_changed_byte_is_noticed_unless_there_are_no_checksums():
    data = archive_of(MEMBERS)
    data[data.find(bytes(range(200))) + 7] ^= 1
    assert "checksum" in refused(data)
    at = entry(data, "m/data/0")
    data[at + 16 : at + 20] = bytes(4)
    assert opened(data).read_array("m/data/0")[7] == 6


def test_the_local_header_must_be_where_the_directory_says():
    data = archive_of(MEMBERS)
    data[data.find(b"PK\x03\x04", 1)] = 0
    assert "not where its directory says" in refused(data)
    data = archive_of(MEMBERS)
    at = data.find(b"PK\x03\x04", 1)
    data[at + 28 : at + 30] = b"\xff\xff"
    assert "goes beyond the end" in refused(data)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d + b"behind", "behind the zip archive's end"),
        (lambda d: b"front" + d, "not in front of its end"),
        (lambda d: d[:-22], "without its end"),
        (lambda d: d[:-12] + struct.pack("<H", 9) + d[-10:], "of 9 members"),
        (lambda d: d[:-10] + struct.pack("<II", 1 << 30, 0) + d[-2:], "larger than"),
    ],
)
def test_a_false_end_is_refused(change, why):
    assert why in refused(change(archive_of(MEMBERS)))


def test_a_large_directory_is_refused(monkeypatch):
    data = archive_of(MEMBERS)
    monkeypatch.setattr(module, "MAX_DIRECTORY_BYTES", 100)
    assert "directory is larger than 100 bytes" in refused(data)
