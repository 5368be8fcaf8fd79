"""Prepares TFDS data sets on disk, and reads them back into memory, without TensorFlow."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int32, UInt8

from jaxvision.errors import UserError

T = TypeVar("T")
DATA_VARIABLE = "JAXVISION_DATA"
CHUNK = 1000
STALE_SECONDS = 3600


def default_data_dir() -> Path:
    """`$JAXVISION_DATA`, or `~/.cache/jaxvision/datasets` where that is not set."""
    chosen = os.environ.get(DATA_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".cache" / "jaxvision" / "datasets"


class QuietPreparation:
    """Mix-in for a TFDS builder: leaves out the two lines that TFDS always prints."""

    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...


def prepare(builder: Any, *, data_dir: Path, manual_dir: Path | None = None) -> None:
    """Writes a builder's examples to disk, under `data_dir`, from the files in `manual_dir`.

    TFDS writes into a folder of its own and renames it at the end, so a preparation that was killed
    leaves nothing that looks prepared, and of two that run at once either one's result is used.
    A folder that can't be written, or a full disk, raises `UserError`.
    """
    import tensorflow_datasets as tfds

    _check_writable(data_dir)
    final = Path(builder.data_path)
    remove_stale(final.parent, "incomplete.*")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        with _no_tfds_bars(), _records_in_memory():
            builder.download_and_prepare(download_config=config)
    except Exception as error:
        if final.exists():  # another process was quicker: its result is the same
            return
        if "No space left" in str(error) or "File too large" in str(error):
            raise UserError(
                f"{data_dir}: the disk is full: expected room for the prepared data set "
                f"{builder.info.full_name}: free some space or choose another data folder "
                f"({DATA_VARIABLE})"
            ) from error
        if isinstance(error, OSError):
            raise _unwritable(data_dir, error) from error
        raise


def read_images(
    builder: Any, split: str
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, "n"]]:
    """All images and labels of a prepared split whose images have one size, decoded, in order.

    A prepared folder that is damaged raises `UserError`.
    """
    import cv2
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    h, w, c = builder.info.features["image"].shape
    flag = cv2.IMREAD_GRAYSCALE if c == 1 else cv2.IMREAD_COLOR_RGB

    def decode(records: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(records), h, w, c), np.uint8)
        labels = np.empty(len(records), np.int32)
        for i, record in enumerate(records):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            png = feature["image"].bytes_list.value[0]
            images[i] = cv2.imdecode(np.frombuffer(png, np.uint8), flag).reshape(h, w, c)
            labels[i] = feature["label"].int64_list.value[0]
        return images, labels

    try:
        # Decoding here, in threads, takes a quarter of the time of TFDS's own, one by one.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=raw)
        records = source.__getitems__(range(len(source)))
        chunks = [records[start : start + CHUNK] for start in range(0, len(records), CHUNK)]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            images, labels = zip(*pool.map(decode, chunks), strict=True)
        return np.concatenate(images), np.concatenate(labels)
    except Exception as error:  # TFDS, array_record, protobuf and OpenCV each raise their own kinds
        raise damaged(builder.data_path, f"{split} can't be read ({error})") from error


def read_decoded(
    path: Path, dtype: type, ndim: int, *, in_memory: bool = True
) -> np.ndarray | None:
    """The array in a file that `write_decoded` wrote, or None; the caller checks what it holds.

    Without `in_memory` the array stays in its file, is read as it is used and can't be written to.
    """
    try:
        array = np.load(path, allow_pickle=False, mmap_mode=None if in_memory else "r")
    except (OSError, ValueError, EOFError):
        return None
    return np.asarray(array) if array.dtype == dtype and array.ndim == ndim else None


def write_decoded(path: Path, array: np.ndarray) -> None:
    """Keeps a decoded array beside the records, whole or not at all; a failure costs only time."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            temporary = file.name
            np.save(file, array)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def write_decoded_chunks(
    shapes: Mapping[Path, tuple[int, ...]], chunks: Iterable[Mapping[Path, np.ndarray]]
) -> bool:
    """Keeps uint8 arrays that need not fit in memory, given in parts along their first axis.

    Returns whether they are kept: a folder that can't be written, or a full disk, costs only time.
    """
    written: dict[Path, Any] = {}
    try:
        with contextlib.ExitStack() as stack:
            for path, shape in shapes.items():
                remove_stale(path.parent, f"{path.name}?*")
                file = stack.enter_context(
                    tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False)
                )
                written[path] = file
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                for path, part in chunk.items():
                    written[path].write(np.ascontiguousarray(part).data)
        for path, file in written.items():
            os.replace(file.name, path)
    except OSError:
        return False
    finally:
        for file in written.values():
            with contextlib.suppress(OSError):
                os.unlink(file.name)
    return True


def read_files(
    builder: Any, split: str
) -> tuple[tuple[bytes, ...], tuple[str, ...], Int32[np.ndarray, "n"]]:
    """All picture files of a prepared split as they are, their names and labels, in order.

    A prepared folder that is damaged raises `UserError`.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    files, names, labels = [], [], []
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        source = builder.as_data_source(split, deserialize_method=raw)
        for record in source.__getitems__(range(len(source))):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            files.append(feature["image"].bytes_list.value[0])
            names.append(feature["file_name"].bytes_list.value[0].decode())
            labels.append(feature["label"].int64_list.value[0])
    except Exception as error:  # TFDS, array_record and protobuf each raise their own kinds
        raise damaged(builder.data_path, f"{split} can't be read ({error})") from error
    return tuple(files), tuple(names), np.array(labels, np.int32)


def png_examples(
    images: UInt8[np.ndarray, "n *shape"], labels: UInt8[np.ndarray, "n"], title: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The keys and examples that TFDS writes, in order, with a progress bar."""
    import cv2

    for key, (image, label) in enumerate(
        track(zip(images, labels, strict=True), title, len(labels))
    ):
        bgr = image[..., ::-1] if image.ndim == 3 else image
        # As PNG bytes, because TFDS encodes an array with TensorFlow. But not compressed: the shard
        # compresses each record, and PNG's own would take thrice the time for a larger file.
        png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
        yield key, {"image": png, "label": int(label)}


def damaged(folder: str | os.PathLike[str], got: str) -> UserError:
    """The error for a prepared folder that does not hold what it should."""
    return UserError(
        f"{os.fspath(folder)}: expected a prepared data set, but it is damaged: {got}: "
        "delete this folder, and it is prepared again"
    )


def track(examples: Iterable[T], description: str, total: int) -> Iterable[T]:
    """The same examples, with a progress bar where there is a terminal."""
    if not sys.stderr.isatty():
        return examples
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(file=sys.stderr)
    return rich_track(examples, description, total=total, console=console, transient=True)


def _check_writable(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise _unwritable(data_dir, error) from error


def _unwritable(data_dir: Path, error: OSError) -> UserError:
    return UserError(
        f"{data_dir}: expected a folder that prepared data sets can be written into, got: "
        f"{error.strerror or error}: choose another data folder ({DATA_VARIABLE})"
    )


def remove_stale(folder: Path, pattern: str) -> None:
    """Removes what preparations that were killed left behind; one under way is younger."""
    for leftover in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextlib.contextmanager
def _records_in_memory() -> Iterator[None]:
    """Lets TFDS hold a whole split, compressed, in memory: from 1 GB on it would sort the records
    in files, which it opens with TensorFlow."""
    from tensorflow_datasets.core import shuffle

    limit = shuffle.MAX_MEM_BUFFER_SIZE
    shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
    try:
        yield
    finally:
        shuffle.MAX_MEM_BUFFER_SIZE = limit


@contextlib.contextmanager
def _no_tfds_bars() -> Iterator[None]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    before = getattr(tqdm_utils, "_active", True)
    tfds.display_progress_bar(False)
    try:
        yield
    finally:
        tfds.display_progress_bar(before)
