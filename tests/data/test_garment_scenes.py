"""garment_scenes on the disk: prepared, read back, damaged, interrupted."""

import mmap
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle as tfds_shuffle

from jaxvision.data import load_detection, load_splits
from jaxvision.data import scenes as scenes_module
from jaxvision.data.builders import garment_scenes
from jaxvision.data.builders.fashion_mnist import CLASS_NAMES
from jaxvision.errors import UserError

COUNTS = {"train": 12, "val": 5, "test": 4}
QUIET = {"announce": lambda line: None, "processes": 1}


def load(data_dir, **options):
    options = {"counts": COUNTS, "data": "embedded", "data_dir": data_dir, **QUIET, **options}
    return load_detection("garment_scenes", **options)


def fails(data_dir, **options):
    with pytest.raises(UserError) as caught:
        load(data_dir, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def prepared_dir(embedded_dir, tmp_path_factory):
    """A data folder with a few scenes, of which tests take copies."""
    folder = tmp_path_factory.mktemp("scenes") / "data"
    shutil.copytree(embedded_dir, folder)
    load(folder)
    return folder


@pytest.fixture
def copied(prepared_dir, tmp_path):
    """(data folder, the folder of the prepared scenes in it), to be damaged."""
    shutil.copytree(prepared_dir, tmp_path / "d")
    (folder,) = (tmp_path / "d" / "garment_scenes").glob("128*/1.0.0")
    return tmp_path / "d", folder


def assert_same(a, b):
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(a[split].images, b[split].images)
        np.testing.assert_array_equal(a[split].masks, b[split].masks)
        for ours, theirs in zip(a[split].objects, b[split].objects, strict=True):
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.labels, theirs.labels)


# Preparing and reading


def test_the_splits_and_their_examples(prepared_dir):
    lines = []
    splits = load(prepared_dir, announce=lines.append)
    assert {split: len(dataset) for split, dataset in splits.items()} == COUNTS
    (line,) = lines
    assert line.startswith("garment_scenes: scenes of garments from Fashion-MNIST, embedded subset")
    assert "prepared earlier in" in line
    for split, dataset in splits.items():
        assert dataset.class_names == CLASS_NAMES
        assert (dataset.name, dataset.split) == ("garment_scenes", split)
        assert dataset.images.shape == (COUNTS[split], 128, 128, 3)
        for i in range(len(dataset)):
            example = dataset.example(i, masks=True)
            assert example["image_id"] == i
            assert not example["difficult"].any()
            for box, mask in zip(example["boxes"], example["masks"], strict=True):
                ys, xs = np.nonzero(mask)
                assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    # The pictures stay in their file, so a start costs no copy; nobody can write into them.
    owner = splits["train"].images
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        splits["train"].images[0] = 0
    splits["train"].example(0)["image"][:] = 0


def test_tfds_reads_the_same_and_garments_are_those_of_their_splits(prepared_dir):
    """The decoder here is ours; TFDS's own is the oracle."""
    splits = load(prepared_dir)
    fashion = load_splits("fashion_mnist", data="embedded", data_dir=prepared_dir, announce=print)
    config = garment_scenes.scene_config(pictures="embedded", counts=COUNTS)
    builder = garment_scenes.builder_of(config, data_dir=prepared_dir)
    assert builder.info.file_format.value == "array_record"
    garments = {}
    for split, dataset in splits.items():
        source = builder.as_data_source(split)
        examples = [source[i] for i in range(len(source))]
        for i, example in enumerate(examples):
            np.testing.assert_array_equal(example["image"], dataset.images[i])
            np.testing.assert_array_equal(example["instances"][..., 0], dataset.masks[i])
            np.testing.assert_array_equal(example["boxes"], dataset.objects[i].boxes)
            labels = dataset.objects[i].labels.tolist()
            assert list(example["labels"]) == labels
            pictures = fashion["test" if split == "test" else "train"]
            assert pictures.labels[list(example["garments"])].tolist() == labels
        garments[split] = {g for example in examples for g in example["garments"]}
    assert garments["train"]
    assert not garments["train"] & garments["val"]


def test_counts_sizes_and_garments_are_kept_apart(prepared_dir, copied):
    data_dir, _ = copied
    splits = load(data_dir)
    fewer = load(data_dir, counts={"train": 3, "val": 1, "test": 1}, processes=None)
    assert len(fewer["train"]) == 3
    np.testing.assert_array_equal(fewer["train"].images, splits["train"].images[:3])
    few = {"train": 2, "val": 1, "test": 1}
    single = load(data_dir, counts={**few, "train": 20}, garments=(1, 1))
    assert {len(objects) for objects in single["train"].objects} == {1}
    assert load(data_dir, counts=few, size=224)["test"].images.shape == (1, 224, 224, 3)
    assert sorted(path.name for path in (data_dir / "garment_scenes").glob("[0-9]*")) == [
        "128_embedded_garments1to1_train20_val1_test1",
        "128_embedded_train12_val5_test4",
        "128_embedded_train3_val1_test1",
        "224_embedded_train2_val1_test1",
    ]
    assert_same(load(data_dir), splits)


def test_fewer_than_what_is_there_are_its_first_ones(prepared_dir, copied, monkeypatch):
    data_dir, folder = copied
    expected = load(prepared_dir)["train"].images[:4]
    monkeypatch.setattr(garment_scenes, "COUNTS", COUNTS)  # as if these few were the default
    folder.parent.rename(folder.parent.with_name("128_embedded"))
    lines = []
    splits = load(data_dir, counts={"train": 4}, announce=lines.append)
    assert [len(dataset) for dataset in splits.values()] == [4, 5, 4]
    assert len(splits["train"].names) == len(splits["train"].objects) == 4
    np.testing.assert_array_equal(splits["train"].images, expected)
    assert len(lines) == 1
    assert "128_embedded/" in lines[0]


def test_a_split_larger_than_what_tfds_keeps_in_memory(tmp_path, embedded_dir, monkeypatch):
    # From this size on TFDS sorts records in files, with TensorFlow, which is not installed.
    monkeypatch.setattr(tfds_shuffle, "MAX_MEM_BUFFER_SIZE", 10_000)
    shutil.copytree(embedded_dir, tmp_path / "d")
    splits = load(tmp_path / "d", counts={"train": 2, "val": 1, "test": 1})
    assert len(splits["train"]) == 2
    assert tfds_shuffle.MAX_MEM_BUFFER_SIZE == 10_000


def test_the_full_set_gives_other_scenes(tmp_path, tiny_full, prepared_dir):
    """`tiny_full` stands for the full set: 30 and 10 pictures."""
    counts = {"train": 2, "val": 1, "test": 1}
    options = {"data": "auto", "counts": counts}
    splits = load(tmp_path / "d", source=tiny_full, **options)
    assert "full set, local files in" in splits["train"].source
    shutil.rmtree(tiny_full)
    assert_same(load(tmp_path / "d", **options), splits)
    assert "no such folder" in fails(tmp_path / "d", source=tiny_full, **options)
    assert not np.array_equal(splits["train"].images, load(prepared_dir)["train"].images[:2])


# Wrong options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "expected a size of 128 or 224, got 100"),
        ({"counts": {"training": 3}}, "counts of at least 1 for train, val, test, got training: 3"),
        ({"counts": {"val": 0}}, "got val: 0"),
        ({"garments": (0, 3)}, "expected garments from 1 to 8"),
        ({"garments": (5, 4)}, "got (5, 4)"),
        ({"garments": (1, 9)}, "got (1, 9)"),
        ({"processes": 0}, "at least 1 process"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, options, message):
    assert message in fails(tmp_path, **options)
    assert not list(tmp_path.iterdir())


# Damage, interruption, read-only folders

KEPT = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": lambda path: path.unlink(),
    "byte flipped": lambda path: path.write_bytes(
        path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
    ),
    "other shape": lambda path: np.save(path, np.load(path)[:-1]),
    "other type": lambda path: np.save(path, np.load(path).astype(np.float64)),
}


@pytest.mark.parametrize("fault", KEPT)
@pytest.mark.parametrize("part", ["images", "labels"])
def test_what_is_kept_decoded_is_checked_and_made_again(prepared_dir, copied, fault, part):
    data_dir, folder = copied
    path = folder / f"train-{part}.npy"
    good = path.read_bytes()
    KEPT[fault](path)
    assert_same(load(data_dir), load(prepared_dir))
    assert path.read_bytes() == good


def test_good_decoded_pictures_are_not_decoded_again(copied, monkeypatch):
    data_dir, _ = copied
    monkeypatch.setattr(scenes_module, "_decode_and_keep", None)
    assert len(load(data_dir)["train"]) == 12


def test_where_decoded_pictures_cannot_be_kept_they_are_in_memory(prepared_dir, copied):
    data_dir, folder = copied
    for path in folder.glob("*.npy"):
        path.unlink()
        path.mkdir()
    splits = load(data_dir)
    assert_same(splits, load(prepared_dir))
    assert not isinstance(splits["train"].images, np.memmap)
    assert not [path for path in folder.glob("*.npy?*") if path.is_file()]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def shard(folder, split="train"):
    (path,) = folder.glob(f"*-{split}.array_record-*")
    return path


DAMAGE = {
    "shard deleted": lambda folder: shard(folder).unlink(),
    "shard emptied": lambda folder: shard(folder).write_bytes(b""),
    "shard cut": lambda folder: os.truncate(shard(folder), 70_000),
    "byte flipped": lambda folder: flip(shard(folder)),
    "another split's shard": lambda folder: shutil.copy(shard(folder, "test"), shard(folder)),
    "no description": lambda folder: (folder / "dataset_info.json").unlink(),
    "bad description": lambda folder: (folder / "dataset_info.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_prepared_scenes_say_which_folder_to_delete(prepared_dir, copied, damage):
    data_dir, folder = copied
    for path in folder.glob("*.npy"):
        path.unlink()
    DAMAGE[damage](folder)
    message = fails(data_dir)
    assert message.startswith(f"{folder}: expected a prepared data set, but it is damaged")
    assert "delete this folder" in message
    shutil.rmtree(folder)
    assert_same(load(data_dir), load(prepared_dir))


PREPARE = """
    import sys
    from jaxvision.data import load_detection
    counts = {"train": 210, "val": 1, "test": 1}  # the fewest chunks that two processes draw
    splits = load_detection(
        "garment_scenes", counts=counts, data="embedded", data_dir=sys.argv[1], processes=2
    )
    print(len(splits["train"]))
"""


@pytest.mark.slow
def test_a_killed_preparation_leaves_nothing_that_looks_prepared(tmp_path, embedded_dir):
    data_dir = tmp_path / "d"
    shutil.copytree(embedded_dir, data_dir)
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PREPARE), str(data_dir)]
    parent = data_dir / "garment_scenes" / "128_embedded_train210_val1_test1"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(parent.glob("incomplete.*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    (leftover,) = parent.iterdir()
    assert leftover.name.startswith("incomplete.")
    os.utime(leftover, (0, 0))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n210\n")
    assert done.stderr == ""
    assert [folder.name for folder in parent.iterdir()] == ["1.0.0"]  # an old leftover is gone


def test_a_data_dir_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another data folder (JAXVISION_DATA)" in fails(tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_data_dir_with_scenes_is_enough(copied):
    data_dir, folder = copied
    for path in (*folder.glob("*"), folder, *Path(data_dir).glob("**/"), data_dir):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert len(load(data_dir)["train"]) == 12
    assert "Permission denied" in fails(data_dir, counts={"train": 1})
