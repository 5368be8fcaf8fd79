"""The official archives of the detection data sets, and their preparation, once, on disk."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvision.data.archives import extract
from jaxvision.data.download import download
from jaxvision.data.formats.annotated import AnnotatedPicture, Announce
from jaxvision.data.prepared import damaged, default_data_dir, prepare, remove_stale
from jaxvision.data.recipes import check_sha256, source_sentence
from jaxvision.errors import UserError

Source = str | os.PathLike[str] | None
Listed = Sequence[tuple[AnnotatedPicture, tuple[str, ...]]]
"""Pictures, and the lists (splits) that each is in."""


@dataclass(frozen=True)
class Archive:
    """An official archive: its file's name, the URLs that have it, in order, and its sha256."""

    file: str
    urls: tuple[str, ...]
    sha256: str


def _voc_archive(year: str, file: str, sha256: str) -> Archive:
    oxford = ("https://thor.robots.ox.ac.uk", "http://host.robots.ox.ac.uk")
    urls = [f"{host}/pascal/VOC/voc{year}/{file}" for host in oxford]
    return Archive(file, (*urls, f"https://pjreddie.com/media/files/{file}"), sha256)


# The sums are those that TFDS and torchvision publish for the same files.
VOC_ARCHIVES = {
    "2007": (
        _voc_archive(
            *("2007", "VOCtrainval_06-Nov-2007.tar"),
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
        ),
        _voc_archive(
            *("2007", "VOCtest_06-Nov-2007.tar"),
            "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
        ),
    ),
    "2012": (
        _voc_archive(
            *("2012", "VOCtrainval_11-May-2012.tar"),
            "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        ),
    ),
}
PENN_FUDAN_ARCHIVE = Archive(
    "PennFudanPed.zip",
    ("https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip",),
    "9095a9613c95586f1c7f2a327d454833d16e0f5e17e5f83d35027ffd315b48e2",
)
COCO_HOSTS = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
COCO_ARCHIVES = {
    "val2017": Archive(
        "val2017.zip",
        tuple(f"{host}/zips/val2017.zip" for host in COCO_HOSTS),
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    "annotations": Archive(
        "annotations_trainval2017.zip",
        tuple(f"{host}/annotations/annotations_trainval2017.zip" for host in COCO_HOSTS),
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
}


def prepared_once(
    name: str,
    make: Callable[..., Any],
    archives: Sequence[Archive],
    read: Callable[[Sequence[Path]], Listed],
    what: str,
    source: Source,
    data_dir: Source,
    announce: Announce,
) -> Any:
    """The prepared builder: made now, if need be, from archives in `source` or downloaded."""
    root = data_folder(data_dir)
    scratch = root / "downloads" / name
    folder = None if source is None else Path(source).expanduser()
    if folder is not None and not all((folder / each.file).is_file() for each in archives):
        raise UserError(f"{folder}: expected {what} in this folder, got neither")
    builder = _builder(make, root, name)
    if builder.data_path.exists():
        announce(f"{name}: {source_sentence(builder)} (prepared earlier in {builder.data_path})")
        return builder
    if folder is None:
        sentence = "full set, the official files downloaded"
        for each in archives:
            try:
                download(each.urls, scratch / each.file, sha256=each.sha256)
            except UserError as error:
                raise UserError(
                    f"found no {name}: expected it prepared in {builder.data_path}, as local files,"
                    f" or by download; got: {error}: give a folder with {what} as the source"
                ) from error
    else:
        sentence = f"full set, local files in {folder}"
        for each in archives:
            check_sha256(folder / each.file, each.sha256)
    with _unpacked([(folder or scratch) / each.file for each in archives], scratch) as folders:
        announce(f"{name}: preparing the {sentence} (once, up to some minutes)")
        prepare(
            _builder(make, root, name, pictures=read(folders), provenance=sentence), data_dir=root
        )
    # Made anew: another process may have been the one that prepared it.
    builder = _builder(make, root, name)
    announce(f"{name}: {source_sentence(builder)} (prepared in {builder.data_path})")
    return builder


def _builder(make: Callable[..., Any], root: Path, name: str, **options: Any) -> Any:
    try:
        return make(data_dir=root, **options)
    except Exception as error:  # it reads what is on disk, if anything is
        raise damaged(root / name, f"its description can't be read ({error})") from error


@contextlib.contextmanager
def _unpacked(archives: Sequence[Path], scratch: Path) -> Iterator[list[Path]]:
    scratch.mkdir(parents=True, exist_ok=True)
    remove_stale(scratch, "unpacked-*")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="unpacked-") as temporary:
        yield [extract(each, Path(temporary) / each.stem) for each in archives]


def data_folder(data_dir: Source) -> Path:
    """The folder that the user chose for prepared data, or the usual one."""
    return default_data_dir() if data_dir is None else Path(data_dir).expanduser()
