"""Archives that are honest, broken, and hostile."""

import io
import os
import tarfile
import zipfile

import pytest

from jaxvision.data import archives
from jaxvision.data.archives import extract
from jaxvision.errors import UserError

FILES = {"data/train/a.txt": b"one", "data/b.bin": bytes(5000), "c": b""}


def make_zip(path, files, *, mode=0o100644, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


def make_tar(path, files, *, kind=tarfile.REGTYPE, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data) if kind == tarfile.REGTYPE else 0, kind
            info.linkname = "/etc/passwd"
            archive.addfile(info, io.BytesIO(data))
    return path


MAKERS = {
    "zip": lambda path, files: make_zip(path, files),
    "tar": lambda path, files: make_tar(path, files, mode="w"),
    "tar.gz": lambda path, files: make_tar(path, files),
    "tar.xz": lambda path, files: make_tar(path, files, mode="w:xz"),
}


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refused(archive, tmp_path, **options):
    """The error's one line; nothing but the archive is left, inside and outside of the folder."""
    before = everything(tmp_path)
    with pytest.raises(UserError) as caught:
        extract(archive, tmp_path / "deep" / "out", **options)
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    assert set(everything(tmp_path)) - set(before) <= {"deep"}
    return str(caught.value)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_packed_comes_out(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / f"a.{kind}", FILES)
    folder = extract(archive, tmp_path / "deep" / "out")
    assert folder == tmp_path / "deep" / "out"
    found = {path: (folder / path).read_bytes() for path in FILES}
    assert found == FILES
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(UserError, match="expected no such folder yet"):
        extract(archive, folder)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "..", "a\\..\\evil", "C:evil", "a/.."]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, kind, name):
    archive = MAKERS[kind](tmp_path / "a", {"fine": b"1", name: b"2"})
    assert "a path that leaves the folder" in refused(archive, tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_are_refused(tmp_path, kind):
    archive = make_tar(tmp_path / "a.tar", {"link": b"", "link/file": b""}, kind=kind)
    assert "a link or special file: 'link'" in refused(archive, tmp_path)


def test_a_link_in_a_zip_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"link": b"/etc/passwd"}, mode=0o120777)
    assert "a link or special file: 'link'" in refused(archive, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused_while_they_are_unpacked(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE", 1 << 20)
    archive = MAKERS[kind](tmp_path / "a", {"zeros": bytes(64 << 20)})
    assert archive.stat().st_size < (64 << 20) / archives.MAX_RATIO
    assert "far more than its size" in refused(archive, tmp_path)


def test_more_files_or_bytes_than_allowed(tmp_path):
    archive = make_zip(tmp_path / "a.zip", FILES)
    assert "at most 2 files" in refused(archive, tmp_path, max_files=2)
    assert "far more than" in refused(archive, tmp_path, max_bytes=4999)
    extract(archive, tmp_path / "fits", max_files=3, max_bytes=5003)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_that_would_be_written_twice_or_through_a_file(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / "a", {"a": b"1", "a/b": b"2"})
    refused(archive, tmp_path)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as twice:
        twice.writestr("a", b"1")
        twice.writestr("a", b"2")
    refused(tmp_path / "twice.zip", tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.98])
def test_truncated_archives(tmp_path, kind, kept):
    noise = {"a": os.urandom(20_000), "b": os.urandom(20_000)}
    archive = MAKERS[kind](tmp_path / "a", noise)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * kept)])
    if kind == "tar" and kept == 0.98:
        return  # only the padding at the end is missing
    assert "complete .zip or .tar archive" in refused(archive, tmp_path)


def test_a_damaged_file_in_a_zip(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"a": os.urandom(20_000)})
    data = bytearray(archive.read_bytes())
    data[10_000] ^= 255
    archive.write_bytes(data)
    assert "complete .zip or .tar archive" in refused(archive, tmp_path)


def test_no_archive_and_no_place(tmp_path):
    assert "there is none" in refused(tmp_path / "missing.zip", tmp_path)
    (tmp_path / "file").write_bytes(b"")
    archive = make_zip(tmp_path / "a.zip", FILES)
    with pytest.raises(UserError, match="could not be written"):
        extract(archive, tmp_path / "file" / "out")
