"""What `predict` prints and writes: lines, JSON, CSV, COCO's results, drawn pictures and videos."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.cli.inputs import DRAWING, VIDEOS, Frame, is_drawing
from jaxvision.errors import UserError, describe_os_error
from jaxvision.ops import encode_masks
from jaxvision.predict import Classification, Detections, Localization, Result, Segmentation
from jaxvision.weights.catalog import coco_classes

BOX_COLUMNS = ("x1", "y1", "x2", "y2")
UNUSED_COCO_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
"""Of COCO's 90 category ids those that none of the 80 classes has."""

Record = dict[str, Any]


def describe(result: Result, top: int) -> str:
    """Returns the line that is printed of a picture."""
    match result:
        case Localization():
            box = ", ".join(f"{side:.1f}" for side in result.box)
            return f"{result.name} {result.score:.1%} at {box}"
        case Classification():
            return ", ".join(f"{name} {score:.1%}" for name, score in result.top(top))
        case Segmentation():
            return ", ".join(f"{name} {share:.1%}" for name, share in result.shares().items())
        case Detections():
            counts = Counter(result.names())
            return ", ".join(f"{n} x {name}" for name, n in counts.most_common()) or "nothing"


def to_record(frame: Frame, result: Result, masks: bool = False) -> Record:
    """Returns what the JSON file has of a picture; boxes are in its own pixels.

    With `masks` each object that has one has it as COCO's run length, which takes a while in large
    pictures.
    """
    h, w = frame.image.shape[:2]
    record: Record = {"picture": str(frame.source)}
    if frame.number is not None:
        record |= {"frame": frame.number, "seconds": round(frame.number / frame.fps, 3)}
    match result:
        case Classification():
            probabilities = result.probabilities.tolist()
            record |= {
                "class": result.name,
                "probability": result.score,
                "probabilities": dict(zip(result.class_names, probabilities, strict=True)),
            }
            if isinstance(result, Localization):
                record |= {"width": w, "height": h, "box": _rounded(result.box)}
        case Segmentation():
            record |= {"width": w, "height": h, "shares": result.shares()}
        case Detections():
            record |= {
                "width": w,
                "height": h,
                "objects": [
                    {"class": name, "label": int(label), "score": float(s), "box": _rounded(box)}
                    for name, label, s, box in zip(
                        result.names(), result.labels, result.scores, result.boxes, strict=True
                    )
                ],
            }
            if masks and result.masks is not None:
                for found, mask in zip(record["objects"], result.masks, strict=True):
                    (packed,) = encode_masks(mask[None])
                    size, counts = packed["size"], packed["counts"].decode("ascii")
                    found["mask"] = {"size": [int(side) for side in size], "counts": counts}
            if result.keypoints is not None:
                for found, points in zip(record["objects"], result.keypoints, strict=True):
                    found["keypoints"] = [_rounded(point) for point in points]
    return record


def write_json(path: Path, records: Sequence[Record]) -> None:
    _write(path, json.dumps(records, indent=2) + "\n")


def write_csv(path: Path, records: Sequence[Record], top: int) -> None:
    """Writes one row an object, a class of a map, or one of the `top` classes of a picture."""
    rows: list[Record] = []
    for record in records:
        place = {"picture": record["picture"], "frame": record.get("frame", "")}
        if "objects" in record:
            rows += [
                {**place, "class": o["class"], "score": o["score"]}
                | dict(zip(BOX_COLUMNS, o["box"], strict=True))
                for o in record["objects"]
            ]
        elif "box" in record:
            row = {**place, "class": record["class"], "score": record["probability"]}
            rows.append(row | dict(zip(BOX_COLUMNS, record["box"], strict=True)))
        elif "shares" in record:
            rows += [{**place, "class": n, "share": s} for n, s in record["shares"].items()]
        else:
            best = sorted(record["probabilities"].items(), key=lambda pair: -pair[1])[:top]
            rows += [{**place, "class": name, "score": p} for name, p in best]
    columns = ["picture", "frame", "class", "score", *BOX_COLUMNS]
    if records and "shares" in records[0]:
        columns = ["picture", "frame", "class", "share"]
    elif records and "probabilities" in records[0] and "box" not in records[0]:
        columns = columns[:4]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe_os_error(error)}") from error
    print(f"written: {path}")


def write_coco(path: Path, records: Sequence[Record], class_names: Sequence[str]) -> None:
    """Writes COCO's results: one dict an object, its box as x, y, width, height, and where it has
    them its mask as "segmentation" and its keypoints as x, y, 1 for each.

    A picture's id is its file's name where that is a number, as COCO's are, else its place from 1
    on; `file_name` is said as well. Category ids are COCO's own for its 80 classes, else label + 1.
    """
    used = [i for i in range(1, 91) if i not in UNUSED_COCO_IDS]
    own = used if tuple(class_names) == coco_classes() else range(1, len(class_names) + 1)
    stems = [Path(record["picture"]).stem for record in records]
    numbered = all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems)
    rows = []
    for place, (stem, record) in enumerate(zip(stems, records, strict=True), start=1):
        objects = record.get("objects")
        if objects is None:
            label = list(class_names).index(record["class"])
            objects = [{"label": label, "score": record["probability"], "box": record["box"]}]
        for o in objects:
            x1, y1, x2, y2 = o["box"]
            row = {
                "image_id": int(stem) if numbered else place,
                "category_id": own[o["label"]],
                "bbox": _rounded(np.array([x1, y1, x2 - x1, y2 - y1])),
                "score": o["score"],
                "file_name": Path(record["picture"]).name,
            }
            if "mask" in o:
                row["segmentation"] = o["mask"]
            if "keypoints" in o:
                row["keypoints"] = [x for point in o["keypoints"] for x in (*point, 1)]
            rows.append(row)
    _write(path, json.dumps(rows) + "\n")


class Drawings:
    """Writes each picture with what was found in it into a folder: `<name>.jpg`, or, of a video,
    `<name>.mp4` unless its `frames` shall be pictures too. No two files get one name, and nothing
    is written over but earlier drawings of pictures; it is a `UserError`."""

    def __init__(self, folder: Path, files: Sequence[Path], *, every: int, frames: bool):
        self.folder, self._every, self._frames = folder, every, frames
        self._names: dict[int, str] = {}  # by the place of the file
        self._video: Any = None
        self._video_index, self._video_size = -1, (0, 0)
        self.count = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {describe_os_error(error)}") from error
        for index, file in enumerate(files):  # before any is drawn
            name = self._name(index, file)
            if file.suffix.lower() not in VIDEOS:
                _refuse_others(folder / f"{name}.jpg")
            elif not frames and (folder / f"{name}.mp4").exists():
                raise UserError(f"{folder / name}.mp4 exists: delete it, or give another --out")

    def add(self, frame: Frame, result: Result) -> None:
        drawn, name = result.draw(frame.image), self._name(frame.index, frame.source)
        if isinstance(result, Segmentation):
            suffix = "" if frame.number is None else f"-{frame.number:06d}"
            self._save(result.labels, f"{name}{suffix}-labels.png")
        if frame.number is None:
            self._save(drawn, f"{name}.jpg")
        elif self._frames:
            self._save(drawn, f"{name}-{frame.number:06d}.jpg")
        else:
            self._add_to_video(frame, drawn, self.folder / f"{name}.mp4")

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None

    def _name(self, index: int, file: Path) -> str:
        if index not in self._names:
            stem, number = file.stem, 1
            name = stem
            while name in self._names.values():
                number += 1
                name = f"{stem}-{number}"
            self._names[index] = name
        return self._names[index]

    def _save(self, image: np.ndarray, name: str) -> None:
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        path, mark = self.folder / name, PngInfo()
        mark.add_text("comment", DRAWING)
        _refuse_others(path)
        try:
            Image.fromarray(image).save(path, quality=92, comment=DRAWING, pnginfo=mark)
        except OSError as error:
            raise UserError(f"cannot write {path}: {describe_os_error(error)}") from error
        self.count += 1

    def _add_to_video(self, frame: Frame, drawn: np.ndarray, path: Path) -> None:
        import cv2

        if self._video_index != frame.index:
            self.close()
            # Even sides, as most players want them; all frames of a video have one size.
            self._video_size = (
                drawn.shape[0] + drawn.shape[0] % 2,
                drawn.shape[1] + drawn.shape[1] % 2,
            )
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            rate = max(frame.fps / self._every, 1.0)
            self._video = cv2.VideoWriter(str(path), codec, rate, self._video_size[::-1])
            self._video_index = frame.index
            self.count += 1
            if not self._video.isOpened():
                raise UserError(f"cannot write the video {path}: use --frames for pictures instead")
        h, w = self._video_size
        canvas = np.zeros((h, w, 3), np.uint8)
        part = drawn[:h, :w]
        canvas[: part.shape[0], : part.shape[1]] = part
        self._video.write(cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))


def _refuse_others(path: Path) -> None:
    if path.exists() and not is_drawing(path):
        raise UserError(f"{path} exists and was not drawn by jaxvision: give another --out")


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(side), 3) for side in box]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe_os_error(error)}") from error
    print(f"written: {path}")
