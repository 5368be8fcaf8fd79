"""Unpacks archives without trusting them: a path, a size or a link in them may be an attack."""

import contextlib
import io
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jaxvision.errors import UserError, describe_os_error

MAX_FILES = 1_000_000
MAX_BYTES = 64 << 30
MAX_RATIO = 200  # unpacked over packed, above RATIO_FREE bytes: pictures do not shrink so
RATIO_FREE = 64 << 20
BLOCK = 1 << 20


def extract(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    max_files: int = MAX_FILES,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Unpacks a .zip or .tar(.gz, .bz2, .xz) into `folder`, which must not exist; returns it.

    The files go to a folder beside it that is renamed at the end, so `folder` is never half there.
    Only plain files and folders are written, with the permissions of new ones. A path that leaves
    the folder, a link, a device, an encrypted or damaged file, more files or bytes than allowed (in
    what is really unpacked, whatever the archive claims) raise `UserError`; nothing is left then.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: expected no such folder yet: delete it to unpack {archive}")
    try:
        packed = archive.stat().st_size
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unpacking-", dir=folder.parent))
    except FileNotFoundError as error:
        raise UserError(f"{archive}: expected an archive here, but there is none") from error
    except OSError as error:
        raise UserError(f"{folder}: could not be written: {describe_os_error(error)}") from error
    budget = min(max_bytes, max(RATIO_FREE, MAX_RATIO * packed))
    try:
        inside = temporary / "content"  # mkdtemp's own folder is closed to others
        inside.mkdir()
        with _reading(archive):
            for number, (name, file) in enumerate(_members(archive), start=1):
                if number > max_files:
                    raise UserError(f"{archive}: expected at most {max_files:,} files, got more")
                budget -= _write(archive, file, _target(archive, inside, name), budget)
        os.replace(inside, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _members(archive: Path) -> Iterator[tuple[str, io.BufferedIOBase]]:
    """The name and content of each plain file; anything but files and folders is refused."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    continue
                if kind not in (0, stat.S_IFREG):
                    raise _refused(archive, info.filename, "a link or special file")
                if info.flag_bits & 1:
                    raise _refused(archive, info.filename, "an encrypted file")
                with opened.open(info) as file:
                    yield info.filename, file
        return
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            if member.isdir():
                continue
            if not member.isreg():
                raise _refused(archive, member.name, "a link or special file")
            file = opened.extractfile(member)
            assert file is not None
            with file:
                yield member.name, file


def _target(archive: Path, folder: Path, name: str) -> Path:
    path = PurePosixPath(name)
    # A backslash or a colon is a separator or a drive on Windows only, and in no honest archive.
    if path.is_absolute() or ".." in path.parts or not path.parts or set(name) & set("\\:\0"):
        raise _refused(archive, name, "a path that leaves the folder")
    target = folder.joinpath(*path.parts)
    # No member is a link, so what the path goes through are folders that were made here.
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _write(archive: Path, file: io.BufferedIOBase, target: Path, budget: int) -> int:
    """Copies at most `budget` bytes, counted as they come; returns how many it were."""
    written = 0
    with open(target, "xb") as out:  # a second file of that name is refused
        while block := file.read(BLOCK):
            written += len(block)
            if written > budget:
                raise UserError(
                    f"{archive}: refused to unpack: it holds far more than its size on disk "
                    "can mean: expected pictures, not an archive bomb"
                )
            out.write(block)
    return written


def _refused(archive: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{archive}: refused to unpack: expected plain files and folders, got {what}: {name!r}"
    )


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turns what the archive modules raise on damaged archives into one `UserError`."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        # tarfile lists on lines of its own what each of its openers said.
        reason = getattr(error, "strerror", None) or str(error).partition(":\n")[0]
        raise UserError(
            f"{archive}: expected a complete .zip or .tar archive that can be unpacked here, got: "
            f"{reason}"
        ) from error


_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, NotImplementedError, RuntimeError, LookupError),
)
