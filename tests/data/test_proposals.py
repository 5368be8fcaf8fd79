"""Proposals of a whole data set: kept on disk, computed once, whole or not at all."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import proposals as module
from jaxvision.data.detection import DetectionDataset, Objects
from jaxvision.data.proposals import Proposals, load_proposals
from jaxvision.data.selective_search import selective_search
from jaxvision.errors import UserError


def pictures(count, *, side=24, seed=0):
    """Pictures of four patches each, in noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 2, 2, 3))
    images = small.repeat(side // 2, axis=1).repeat(side // 2, axis=2)
    return np.clip(images + rng.normal(0, 4, images.shape), 0, 255).astype(np.uint8)


def dataset_of(images):
    count = len(images)
    return DetectionDataset(
        images=images,
        names=tuple(f"picture {i}" for i in range(count)),
        image_ids=np.arange(count),
        objects=tuple(Objects.of([], []) for _ in range(count)),
        class_names=("thing",),
        name="patches",
        split="test",
        source="made here",
    )


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)


@pytest.fixture
def count_searches(monkeypatch):
    """The pictures that are searched in this process from now on."""
    searched = []

    def search(image, **options):
        searched.append(image)
        return selective_search(image, **options)

    monkeypatch.setattr(module, "selective_search", search)
    return searched


def load(dataset, folder, **options):
    options = {"mode": "single", "workers": 1, "announce": lambda line: None} | options
    return load_proposals(dataset, data_dir=folder, **options)


def kept_in(folder):
    return sorted((folder / "proposals" / "patches-single").iterdir())


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


def test_they_are_the_searchs_own_and_the_second_time_nothing_is_searched(
    tmp_path, small_chunks, count_searches
):
    dataset = dataset_of(pictures(7))
    found = load(dataset, tmp_path)
    assert len(found) == 7
    for i in range(7):
        np.testing.assert_array_equal(found[i], selective_search(dataset.images[i], mode="single"))
    assert len(kept_in(tmp_path)) == 3
    assert len(count_searches) == 7
    lines = []
    assert_equal(load(dataset, tmp_path, announce=lines.append), found)
    assert len(count_searches) == 7
    assert lines == []


def test_in_processes_they_are_the_same(tmp_path, small_chunks):
    dataset = dataset_of(pictures(8))
    lines = []
    found = load(dataset, tmp_path / "two", workers=2, announce=lines.append)
    assert_equal(found, load(dataset, tmp_path / "one"))
    assert "8 of 8 pictures in 2 processes" in lines[0]
    files = [[p.read_bytes() for p in kept_in(tmp_path / name)] for name in ("one", "two")]
    assert files[0] == files[1]


def test_only_what_is_new_is_searched(tmp_path, small_chunks, count_searches):
    images = pictures(9)
    whole = dataset_of(images)
    first = load(whole.subset(np.arange(6)), tmp_path)
    assert len(count_searches) == 6
    # A longer part of the data set begins with the same files.
    found = load(whole, tmp_path)
    assert len(count_searches) == 9
    np.testing.assert_array_equal(found.boxes[: len(first.boxes)], first.boxes)
    # One pixel more or less is another picture, and so is another mode or version.
    images = images.copy()
    images[4, 0, 0, 0] ^= 1
    load(dataset_of(images), tmp_path)
    assert len(count_searches) == 12
    load(whole.subset(np.arange(3)), tmp_path, mode="fast")
    assert len(count_searches) == 15


def test_another_version_of_the_search_is_another_set(
    tmp_path, small_chunks, count_searches, monkeypatch
):
    dataset = dataset_of(pictures(3))
    load(dataset, tmp_path)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    load(dataset, tmp_path)
    assert len(count_searches) == 6


@pytest.mark.parametrize("fault", ["cut", "byte flipped", "empty", "pickle", "other", "missing"])
def test_a_damaged_file_is_made_again(tmp_path, small_chunks, count_searches, fault):
    dataset = dataset_of(pictures(5))
    before = load(dataset, tmp_path)
    path = kept_in(tmp_path)[0]
    good = path.read_bytes()
    if fault == "cut":
        path.write_bytes(good[:-50])
    elif fault == "byte flipped":
        # In the boxes' values, behind the headers of the archive and of the array.
        middle = good.index(b"\n", good.index(b"<u2")) + 10
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "pickle":
        np.savez(path, boxes=np.array([print], object), offsets=np.zeros(1, object))
    elif fault == "other":
        np.savez(path, boxes=np.zeros((2, 4)), offsets=np.array([0, 1, 2]))
    elif fault == "missing":
        path.unlink()
    searched = len(count_searches)
    assert_equal(load(dataset, tmp_path), before)
    assert len(count_searches) - searched in (2, 3)  # that chunk alone
    assert path.read_bytes() == good


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import test_proposals as t
t.module.CHUNK = 3
print("ready", flush=True)
t.load(t.dataset_of(t.pictures(60, side=64)), t.Path(sys.argv[2]))
"""


def test_killed_it_goes_on_where_it_was(tmp_path, small_chunks, count_searches):
    folder = tmp_path / "proposals" / "patches-single"
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*.npz"))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = len(list(folder.glob("*.npz")))
    assert 3 <= kept < 20
    dataset = dataset_of(pictures(60, side=64))
    resumed = load(dataset, tmp_path)
    assert len(count_searches) == 60 - 3 * kept
    assert_equal(resumed, load(dataset, tmp_path / "whole"))


def test_pictures_of_any_size_from_files_and_bytes(tmp_path):
    entries = []
    for i, (h, w) in enumerate([(20, 30), (31, 17), (8, 8)]):
        picture = np.zeros((h, w, 3), np.uint8)
        picture[2:6, 3:7] = 255
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        entries.append(buffer.getvalue())
        (tmp_path / f"{i}.png").write_bytes(entries[-1])
    from_bytes = load(dataset_of(tuple(entries)), tmp_path)
    paths = tuple(tmp_path / f"{i}.png" for i in range(3))
    from_files = load(dataset_of(paths), tmp_path)
    assert_equal(from_bytes, from_files)
    # Of each picture, the whole of it is among the boxes.
    assert [found.max(axis=0)[2:].tolist() for found in from_files] == [[30, 20], [17, 31], [8, 8]]
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png"):
        load(dataset_of(paths), tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="No such file"):
        load(dataset_of(paths), tmp_path)


def test_a_broken_picture_is_named_from_another_process_too(tmp_path, small_chunks):
    entries = (b"no picture",) * 7
    with pytest.raises(UserError, match="picture 0"):
        load(dataset_of(entries), tmp_path, workers=2)


def test_padding_is_marked_and_zero():
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = Proposals(boxes, np.array([0, 1, 1, 3]))
    assert [len(found[i]) for i in range(3)] == [1, 0, 2]
    padded, valid = found.padded(0, 3)
    assert (padded.dtype, padded.tolist()) == (np.float32, [[0, 1, 2, 3], [0] * 4, [0] * 4])
    assert valid.tolist() == [True, False, False]
    assert found.padded(1, 2)[1].tolist() == [False, False]
    padded, valid = found.padded(2, 1)
    assert (padded.tolist(), valid.tolist()) == ([[4, 5, 6, 7]], [True])
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"from 0 to 2, got {index}"):
            found[index]


def test_the_first_boxes_of_what_is_kept(tmp_path, count_searches):
    dataset = dataset_of(pictures(3))
    whole, few = load(dataset, tmp_path), load(dataset, tmp_path, max_boxes=2)
    assert len(count_searches) == 3
    assert few.offsets.tolist() == [0, 2, 4, 6]
    for i in range(3):
        np.testing.assert_array_equal(few[i], whole[i][:2])
    assert len(load(dataset.subset(np.arange(0)), tmp_path)) == 0


def test_what_cannot_be_done_is_refused(tmp_path):
    dataset = dataset_of(pictures(1))
    for options, message in [
        ({"mode": "slow"}, r"\(single, fast, quality\), got 'slow'"),
        ({"workers": 0}, "got workers 0"),
        ({"max_boxes": 0}, "max_boxes 0"),
    ]:
        with pytest.raises(UserError, match=message):
            load(dataset, tmp_path, **options)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="folder that proposals can be kept in"):
        load(dataset, tmp_path / "file")
