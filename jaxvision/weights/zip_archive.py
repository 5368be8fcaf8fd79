"""Reads the members of a zip archive as torch writes them: stored, never compressed.

Of the format only what torch uses is read, so that nothing can expand or be read twice: a member is
a stretch of the file, no two overlap, and its size is what it takes there.
"""

import struct
import zlib
from dataclasses import dataclass
from io import BufferedIOBase

import numpy as np

from jaxvision.weights.unpickle import BadFile, shown

MAX_DIRECTORY_BYTES = 8 << 20  # at some 90 bytes a member: more members than any model has
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_MAX_COMMENT = 0xFFFF
DAMAGED = "it is damaged or cut short: copy or download it again"


@dataclass(frozen=True)
class Member:
    """A stretch of the file; the local header in front of it begins at `header`.

    Both together take at least `span` bytes: the local header's extra field is not counted.
    """

    name: str
    size: int
    header: int
    span: int
    crc: int
    stored: bool


class ZipArchive:
    """The members of `file` by name. Raises `BadFile` for whatever torch would not write."""

    def __init__(self, file: BufferedIOBase):
        self.file = file
        self.size = file.seek(0, 2)
        self.members: dict[str, Member] = {}
        start, directory, count = self._directory()
        try:
            self._parse(directory, count)
        except struct.error:
            raise BadFile(f"{DAMAGED} (its directory)") from None
        self._check_places(start)

    def read(self, name: str, limit: int) -> bytes:
        """Returns a small member's bytes."""
        if self._member(name).size > limit:
            raise BadFile(f"its {shown(name)} is larger than {limit:,} bytes")
        return self.read_array(name).tobytes()

    def read_array(self, name: str) -> np.ndarray:
        """Returns a member's bytes as a new uint8 array."""
        member = self._member(name)
        if not member.stored:
            raise BadFile(
                f"its member {shown(name)} is compressed or encrypted, which torch never does: "
                f"load the file with torch and save it again"
            )
        self.file.seek(member.header)
        header = self.file.read(30)
        if len(header) < 30 or header[:4] != _LOCAL:
            raise BadFile(f"{DAMAGED} ({shown(name)} is not where its directory says)")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = member.header + 30 + name_length + extra_length
        if start + member.size > self.size:
            raise BadFile(f"{DAMAGED} ({shown(name)} goes beyond the end)")
        array = read_exactly(self.file, start, member.size)
        # torch writes 0 where it was told not to compute checksums.
        if member.crc and zlib.crc32(memoryview(array)) != member.crc:
            raise BadFile(f"{DAMAGED} (the checksum of {shown(name)} is wrong)")
        return array

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise BadFile(f"it has no {shown(name)}: {DAMAGED}")
        return self.members[name]

    def _directory(self) -> tuple[int, bytes, int]:
        """Returns where the directory begins, its bytes, and how many members it has."""
        tail_start = max(0, self.size - 22 - _MAX_COMMENT)
        self.file.seek(tail_start)
        tail = self.file.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) < at + 22:
            raise BadFile(f"{DAMAGED} (a zip archive without its end)")
        disk, _, _, count, size, start, comment = struct.unpack("<HHHHIIH", tail[at + 4 : at + 22])
        end = tail_start + at
        if disk or at + 22 + comment != len(tail):
            raise BadFile(f"{DAMAGED} (bytes behind the zip archive's end)")
        if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
            (end,) = struct.unpack("<Q", tail[at - 12 : at - 4])
            if end > self.size - 56:
                raise BadFile(f"{DAMAGED} (a zip archive without its end)")
            self.file.seek(end)
            record = self.file.read(56)
            if record[:4] != _END64:
                raise BadFile(f"{DAMAGED} (a zip archive without its end)")
            count, size, start = struct.unpack("<QQQ", record[32:56])
        if size > MAX_DIRECTORY_BYTES:
            raise BadFile(f"its zip directory is larger than {MAX_DIRECTORY_BYTES:,} bytes")
        if start + size != end:
            raise BadFile(f"{DAMAGED} (its zip directory is not in front of its end)")
        self.file.seek(start)
        return start, self.file.read(size), count

    def _parse(self, directory: bytes, count: int) -> None:
        position = 0
        while position < len(directory):
            fields = struct.unpack("<4s4xHH4xIIIHHHHHII", directory[position : position + 46])
            signature, flags, method, crc, packed, size = fields[:6]
            name_length, extra_length, comment_length, _, _, _, header = fields[6:]
            position += 46
            name_end = position + name_length
            name = directory[position:name_end].decode("utf-8", "backslashreplace")
            extra = directory[name_end : name_end + extra_length]
            position = name_end + extra_length + comment_length
            if signature != _ENTRY or position > len(directory):
                raise BadFile(f"{DAMAGED} (its directory)")
            size, packed, header = _from_zip64(extra, size, packed, header)
            parts = name.replace("\\", "/").split("/")
            if ".." in parts or not parts[0] or ":" in parts[0] or "\0" in name:
                raise BadFile(f"refused the member name {shown(name)}")
            if name in self.members:
                raise BadFile(f"it has two members named {shown(name)}")
            stored = method == 0 and not flags & 1 and packed == size
            span = 30 + name_length + packed
            self.members[name] = Member(name, size, header, span, crc, stored)
        if len(self.members) != count:
            raise BadFile(f"{DAMAGED} (its directory has {len(self.members)} of {count} members)")

    def _check_places(self, end: int) -> None:
        for member in sorted(self.members.values(), key=lambda m: m.header, reverse=True):
            if member.header + member.span > end:
                raise BadFile(f"its member {shown(member.name)} overlaps what is behind it")
            end = member.header


def read_exactly(file: BufferedIOBase, start: int, size: int) -> np.ndarray:
    """Returns `size` bytes of the file from `start` on, which it must have, as a new array."""
    array = np.empty(size, np.uint8)
    file.seek(start)
    view, done = memoryview(array), 0
    while done < size:
        count = file.readinto(view[done:])
        if not count:
            raise BadFile(f"{DAMAGED} ({size - done:,} bytes are missing)")
        done += count
    return array


def _from_zip64(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replaces the values that did not fit in 32 bits by those in the extra field of zip64."""
    values = []
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[position : position + 4])
        body = extra[position + 4 : position + 4 + length]
        if kind == 1:
            values = [v for (v,) in struct.iter_unpack("<Q", body[: length // 8 * 8])]
            break
        position += 4 + length
    result = []
    for value in (size, packed, header):
        if value == 0xFFFFFFFF:
            if not values:
                raise BadFile(f"{DAMAGED} (its directory)")
            value = values.pop(0)
        result.append(value)
    return tuple(result)
