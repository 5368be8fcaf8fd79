"""The pictures and videos that a command line names, one frame after another."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxvision.data import read_image
from jaxvision.errors import UserError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})

DRAWING = "drawn by jaxvision"
"""The comment in a drawn picture: another's is never written over."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture: a file's, number `index` of them all, or the frame `number` of a video."""

    source: Path
    index: int
    image: UInt8[np.ndarray, "h w 3"]
    number: int | None = None
    fps: float | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.source) if self.number is None else f"{self.source}, frame {self.number}"


def find_inputs(paths: Sequence[Path], drawings: Path | None = None) -> list[Path]:
    """Returns the files among `paths`, the pictures and videos in the folders among them, and what
    patterns such as `shots/*.jpg` find; each folder's and each pattern's sorted, no file twice.

    Pictures that were drawn earlier into the folder `drawings` are left out of folders and
    patterns, and so are the videos there, which bear no mark, where it is in a folder that is
    named.
    """
    files: list[Path] = []

    def is_drawn(file: Path, named: Path | None = None) -> bool:
        if drawings is None or file.parent.resolve() != drawings.resolve():
            return False
        if file.suffix.lower() in VIDEOS:
            return named is not None and named.resolve() != drawings.resolve()
        return is_drawing(file)

    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES | VIDEOS)
            files += [p for p in found if not is_drawn(p, path)]
        elif path.exists():
            files.append(path)
        elif glob.has_magic(str(path)):
            found = sorted(map(Path, glob.glob(str(path), recursive=True)))
            files += [p for p in found if p.is_file() and not is_drawn(p)]
        else:
            raise UserError(f"no such file or folder: {path}")
    if not files:
        raise UserError(f"no pictures in {', '.join(map(str, paths)) or 'the command line'}")
    return list(dict.fromkeys(files))


def is_drawing(file: Path) -> bool:
    """Whether a picture bears the mark of those that are drawn here."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.info.get("comment") in (DRAWING, DRAWING.encode())
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def read_frames(
    files: Sequence[Path], every: int, failed: Callable[[Path, UserError], None]
) -> Iterator[Frame]:
    """Yields the picture of each file, and of a video every so many frames, the first one first.

    A file that cannot be read is handed to `failed`, and the next one's turn comes.
    """
    for index, file in enumerate(files):
        try:
            if file.suffix.lower() in VIDEOS:
                yield from _video_frames(file, index, every)
            else:
                yield Frame(file, index, read_image(file))
        except UserError as error:
            failed(file, error)


def together(frames: Iterator[Frame], count: int, pixels: int) -> Iterator[list[Frame]]:
    """Yields the frames in lists of at most `count`, and of about so many pixels at most."""
    listed: list[Frame] = []
    room = pixels
    for frame in frames:
        listed.append(frame)
        room -= frame.image.shape[0] * frame.image.shape[1]
        if len(listed) == count or room <= 0:
            yield listed
            listed, room = [], pixels
    if listed:
        yield listed


def _video_frames(file: Path, index: int, every: int) -> Iterator[Frame]:
    # OpenCV and its FFmpeg would print lines of their own about a file that is no video.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    if not file.stat().st_size:
        raise UserError(f"{file}: expected a video, got an empty file")
    capture = cv2.VideoCapture(str(file))
    try:
        fps = capture.get(cv2.CAP_PROP_FPS) or 25.0
        number = 0
        while capture.isOpened() and capture.grab():
            if number % every == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                yield Frame(file, index, rgb, number, fps)
            number += 1
        if number == 0:
            raise UserError(f"{file}: expected a video that OpenCV can read, got none: convert it")
    finally:
        capture.release()
