"""garment_scenes: draws it once, keeps it on disk, and loads it."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.parallel import available_cores
from jaxvision.data.prepared import (
    damaged,
    default_data_dir,
    prepare,
    read_decoded,
    write_decoded,
    write_decoded_chunks,
)
from jaxvision.data.recipes import EMBEDDED_SENTENCE, source_sentence
from jaxvision.data.scene_drawing import SPLITS, VERSION
from jaxvision.data.sources import DataChoice, load_splits
from jaxvision.errors import UserError

NAME = "garment_scenes"
MOST_GARMENTS = 8
DECODED_AT_ONCE = 500
SPOT_CHECKS = 5


def load_garment_scenes(
    *,
    size: int = 128,
    counts: Mapping[str, int] | None = None,
    garments: tuple[int, int] = (1, MOST_GARMENTS),
    data: DataChoice = "auto",
    source: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    processes: int | None = None,
    announce: Callable[[str], Any] = print,
) -> dict[str, DetectionDataset]:
    """Scenes of `size` x `size` pixels (128 or 224) with labelled garments, boxes and masks.

    Garments of Fashion-MNIST, 1 to 8 of them (3 % of the scenes have none), 20 to 72 pixels long
    where the size is 128, tinted, stretched and flipped, lie on colour textures with lines and
    shapes. At least 60 % of each is seen; boxes and masks are of what is seen. train, val and test
    share no garment. `garments=(1, 1)` gives scenes with exactly one, for localisation.

    20,000 train, 1,000 val and 2,000 test scenes, or `counts` of them: scene i does not depend on
    how many there are. They are drawn once, in `processes` processes (by default one a core), and
    kept under `data_dir`; the pictures stay in their file and are read as they are used. `data` and
    `source` say which Fashion-MNIST they are drawn from, as in `load_splits`: the subset in the
    package gives other scenes than the full set, in a folder of their own.

    Raises `UserError` for a size, count or number of garments that it doesn't have, where there is
    no Fashion-MNIST, and for prepared scenes that are damaged.

    >>> scenes = load_garment_scenes(counts={"train": 100}, data="embedded")  # doctest: +SKIP
    >>> scenes["train"].example(0, masks=True)["boxes"]  # doctest: +SKIP
    """
    from jaxvision.data.builders.garment_scenes import scene_config

    counts = _checked(size, counts, garments, data, processes)
    root = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()

    def config(pictures: str, counts: Mapping[str, int]) -> Any:
        return scene_config(size, pictures=pictures, garments=garments, counts=counts)

    if source is None:  # a folder that the user named is never passed over in silence
        pictures = "embedded" if data == "embedded" else "full"
        builder = _prepared_before(config, pictures, counts, root)
        if builder is not None:
            return _load(builder, counts, "prepared earlier", announce)
    fashion = load_splits(
        "fashion_mnist", data=data, source=source, data_dir=data_dir, announce=announce
    )
    sentence = fashion["train"].source
    pictures = "embedded" if sentence == EMBEDDED_SENTENCE else "full"
    builder = _prepared_before(config, pictures, counts, root)
    if builder is not None:
        return _load(builder, counts, "prepared earlier", announce)
    processes = processes or available_cores()
    number = "1 process" if processes == 1 else f"up to {processes} processes"
    announce(
        f"{NAME}: drawing {sum(counts.values()):,} scenes of {size} x {size} in {number} "
        "(once, some minutes)"
    )
    chosen = config(pictures, counts)
    builder = _builder(
        chosen,
        root,
        pictures=fashion,
        processes=processes,
        provenance=f"scenes of garments from Fashion-MNIST, {sentence}",
    )
    prepare(builder, data_dir=root)
    # Made anew: another process may have been the one that prepared it.
    return _load(_builder(chosen, root), counts, "prepared", announce)


def _checked(
    size: int,
    counts: Mapping[str, int] | None,
    garments: tuple[int, int],
    data: str,
    processes: int | None,
) -> dict[str, int]:
    """Checks the options and returns the number of scenes of each split."""
    from jaxvision.data.builders.garment_scenes import COUNTS, SIZES

    if size not in SIZES:
        raise UserError(f"{NAME}: expected a size of {' or '.join(map(str, SIZES))}, got {size}")
    counts = {} if counts is None else dict(counts)
    wrong = [split for split, n in counts.items() if split not in SPLITS or n < 1]
    if wrong:
        raise UserError(
            f"{NAME}: expected counts of at least 1 for {', '.join(SPLITS)}, got "
            + ", ".join(f"{split}: {counts[split]}" for split in wrong)
        )
    lowest, highest = garments
    if not 1 <= lowest <= highest <= MOST_GARMENTS:
        raise UserError(
            f"{NAME}: expected garments from 1 to {MOST_GARMENTS} as (fewest, most), got {garments}"
        )
    if data not in ("auto", "full", "embedded"):
        raise UserError(f"expected data to be auto, full or embedded, got {data!r}")
    if processes is not None and processes < 1:
        raise UserError(f"expected at least 1 process, got {processes}")
    return {**COUNTS, **counts}


def _prepared_before(
    config: Callable[[str, Mapping[str, int]], Any],
    pictures: str,
    counts: Mapping[str, int],
    root: Path,
) -> Any | None:
    """The builder of these scenes, or of the default number of which they are the first ones."""
    from jaxvision.data.builders.garment_scenes import COUNTS

    fitting = [counts]
    if all(counts[split] <= COUNTS[split] for split in SPLITS):
        fitting.append(COUNTS)
    for each in fitting:
        builder = _builder(config(pictures, each), root)
        if Path(builder.data_path).exists():
            return builder
    return None


def _builder(config: Any, root: Path, **options: Any) -> Any:
    from jaxvision.data.builders.garment_scenes import builder_of

    try:
        return builder_of(config, data_dir=root, **options)
    except Exception as error:  # it reads what is on disk, if anything is
        folder = root / NAME / config.name / VERSION
        raise damaged(folder, f"its description can't be read ({error})") from error


def _load(
    builder: Any, counts: Mapping[str, int], how: str, announce: Callable[[str], Any]
) -> dict[str, DetectionDataset]:
    announce(f"{NAME}: {source_sentence(builder)} ({how} in {builder.data_path})")
    return {split: _read_split(builder, split, counts[split]) for split in SPLITS}


# --------------------------------------------------------------------------------------- reading
def _read_split(builder: Any, split: str, count: int) -> DetectionDataset:
    """The first `count` scenes of a prepared split."""
    expected = builder.builder_config.counts[split]
    found = builder.info.splits[split].num_examples if split in builder.info.splits else 0
    if found != expected:
        raise damaged(builder.data_path, f"{split} holds {found:,} of {expected:,} scenes")
    records = _Records(builder, split)
    arrays = _kept(records)
    if arrays is None:
        arrays = _decode_and_keep(records)
    class_names = tuple(builder.info.features["labels"].feature.names)
    if not _agree(arrays, expected, len(class_names)):
        raise damaged(builder.data_path, f"{split} holds other boxes or labels than scenes")
    ends = np.cumsum(arrays["numbers"], dtype=np.int64)[:count]
    difficult = np.zeros(len(arrays["labels"]), bool)
    spans = [slice(end - n, end) for end, n in zip(ends, arrays["numbers"], strict=False)]
    return DetectionDataset(
        images=arrays["images"][:count],
        names=tuple(f"{NAME} {split} {i}" for i in range(count)),
        image_ids=np.arange(count),
        objects=tuple(
            Objects(arrays["boxes"][span], arrays["labels"][span], difficult[span])
            for span in spans
        ),
        class_names=class_names,
        name=NAME,
        split=split,
        source=source_sentence(builder),
        masks=arrays["instances"][:count],
    )


class _Records:
    """The records of a prepared split, decoded."""

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        self.builder, self.split = builder, split
        self.size = builder.builder_config.size
        self.folder = Path(builder.data_path)
        try:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._source = builder.as_data_source(split, deserialize_method=raw)
            self._count = len(self._source)
        except Exception as error:  # TFDS and array_record each raise their own kinds
            raise damaged(self.folder, f"{split} can't be read ({error})") from error

    def __len__(self) -> int:
        return self._count

    def decode(self, indices: Int[np.ndarray, "n"] | range) -> dict[str, np.ndarray]:
        """Scenes as arrays: `images`, `instances`, `numbers` of objects, their `boxes`, `labels`.

        `boxes` and `labels` are those of all scenes, one after another.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            records = self._source.__getitems__([int(i) for i in indices])
            examples = [tf_example_pb2.Example.FromString(record) for record in records]
            features = [example.features.feature for example in examples]
            labels = [np.array(f["labels"].int64_list.value, np.int32) for f in features]
            boxes = [np.array(f["boxes"].float_list.value, np.float32) for f in features]
            return {
                "images": self._pictures(features, "image", 3),
                "instances": self._pictures(features, "instances", 1)[..., 0],
                "numbers": np.array([len(each) for each in labels], np.int32),
                "boxes": np.concatenate(boxes).reshape(-1, 4),
                "labels": np.concatenate(labels),
            }
        except Exception as error:  # TFDS, array_record, protobuf and OpenCV each raise their own
            raise damaged(self.folder, f"{self.split} can't be read ({error})") from error

    def chunks(self) -> Iterator[dict[str, np.ndarray]]:
        starts = range(0, len(self), DECODED_AT_ONCE)
        for start in starts:
            yield self.decode(range(start, min(start + DECODED_AT_ONCE, len(self))))

    def _pictures(
        self, features: list[Any], name: str, channels: int
    ) -> UInt8[np.ndarray, "n h w c"]:
        import cv2

        flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
        shape = (self.size, self.size, channels)

        def decode(feature: Any) -> np.ndarray:
            png = feature[name].bytes_list.value[0]
            return cv2.imdecode(np.frombuffer(png, np.uint8), flag).reshape(shape)

        with ThreadPoolExecutor(min(4, available_cores())) as pool:
            return np.stack(list(pool.map(decode, features)))


def _files(records: _Records) -> dict[str, Path]:
    names = ("images", "instances", "numbers", "boxes", "labels")
    return {name: records.folder / f"{records.split}-{name}.npy" for name in names}


def _kept(records: _Records) -> dict[str, np.ndarray] | None:
    """What was decoded before, the pictures still in their files; or None, where it isn't right."""
    files = _files(records)
    arrays = {
        "images": read_decoded(files["images"], np.uint8, 4, in_memory=False),
        "instances": read_decoded(files["instances"], np.uint8, 3, in_memory=False),
        "numbers": read_decoded(files["numbers"], np.int32, 1),
        "boxes": read_decoded(files["boxes"], np.float32, 2),
        "labels": read_decoded(files["labels"], np.int32, 1),
    }
    shape = (len(records), records.size, records.size)
    if any(array is None for array in arrays.values()):
        return None
    if arrays["images"].shape != (*shape, 3) or arrays["instances"].shape != shape:
        return None
    if not _agree(arrays, len(records), 256):
        return None
    # Some scenes and not all, because reading and decoding a gigabyte would take many seconds.
    some = np.unique(np.linspace(0, len(records) - 1, SPOT_CHECKS).astype(int))
    decoded = records.decode(some)
    ends = np.cumsum(arrays["numbers"])
    objects = np.concatenate([np.arange(ends[i] - arrays["numbers"][i], ends[i]) for i in some])
    rows = {"images": some, "instances": some, "numbers": some, "boxes": objects, "labels": objects}
    same = all(np.array_equal(arrays[name][rows[name]], decoded[name]) for name in arrays)
    return arrays if same else None


def _agree(arrays: Mapping[str, np.ndarray], count: int, classes: int) -> bool:
    numbers, boxes, labels = (arrays[name] for name in ("numbers", "boxes", "labels"))
    return bool(
        len(numbers) == count
        and numbers.min(initial=0) >= 0
        and numbers.sum() == len(boxes) == len(labels)
        and boxes.shape[1:] == (4,)
        and labels.min(initial=0) >= 0
        and labels.max(initial=0) < classes
    )


def _decode_and_keep(records: _Records) -> dict[str, np.ndarray]:
    """Decodes all records, and keeps what that gives beside them where it can be written."""
    files = _files(records)
    small: list[dict[str, np.ndarray]] = []

    def pictures() -> Iterator[dict[Path, np.ndarray]]:
        for chunk in records.chunks():
            small.append({name: chunk[name] for name in ("numbers", "boxes", "labels")})
            yield {files[name]: chunk[name] for name in ("images", "instances")}

    shape = (len(records), records.size, records.size)
    shapes = {files["images"]: (*shape, 3), files["instances"]: shape}
    if not write_decoded_chunks(shapes, pictures()):
        return _joined(list(records.chunks()))
    joined = _joined(small)
    for name, array in joined.items():
        write_decoded(files[name], array)
    return _kept(records) or _joined(list(records.chunks()))


def _joined(chunks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
