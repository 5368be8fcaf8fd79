import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from jaxvision.data import load_dataset, load_splits, prepared, recipes, sources
from jaxvision.data.builders.fashion_mnist import CLASS_NAMES, EMBEDDED, FULL, FashionMNIST
from jaxvision.data.builders.idx_files import read_split
from jaxvision.data.embedded import embedded_folder
from jaxvision.data.embedded.make import make_fashion_mnist
from jaxvision.errors import UserError

FOLDER = embedded_folder("fashion_mnist")
DEBIAN = recipes.FASHION_MNIST_FOLDER
needs_debian = pytest.mark.skipif(
    not DEBIAN.is_dir(),
    reason=f"needs the full set in {DEBIAN} (apt install dataset-fashion-mnist)",
)


class Announced(list):
    def __call__(self, line):
        self.append(line)


def fails(**options):
    with pytest.raises(UserError) as caught:
        load_splits("fashion_mnist", **{"announce": lambda line: None, **options})
    message = str(caught.value)
    assert "\n" not in message
    return message


def run(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


# The subset inside the package


def test_the_embedded_subset_is_small_stratified_and_licensed():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 6_000_000
    assert "Copyright (c) 2017 Zalando SE" in (FOLDER / "LICENSE").read_text()
    for split, per_class in (("train", 1100), ("test", 200)):
        images, labels = read_split(FOLDER, EMBEDDED, split)
        assert np.bincount(labels).tolist() == [per_class] * 10
        assert images.shape == (10 * per_class, 28, 28)
        assert len(np.unique(labels[:100])) == 10  # mixed, not sorted by class


@needs_debian
@pytest.mark.slow
def test_the_embedded_subset_is_what_its_maker_makes(tmp_path, capsys):
    make_fashion_mnist(DEBIAN, tmp_path)
    for split, per_class in (("train", 1100), ("test", 200)):
        images, labels = read_split(FOLDER, EMBEDDED, split)
        again, labels_again = read_split(tmp_path, EMBEDDED, split)
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
        full_images, full_labels = read_split(DEBIAN, FULL, split)
        for k in range(10):
            firsts = full_images[full_labels == k][:per_class]
            np.testing.assert_array_equal(images[labels == k], firsts)
    assert EMBEDDED.splits["train"].images_sha256 in capsys.readouterr().out


# Preparing and reading


def test_the_prepared_set_is_the_files_in_their_order(embedded_dir):
    splits = load_splits(
        "fashion_mnist", data="embedded", data_dir=embedded_dir, announce=lambda line: None
    )
    assert list(splits) == ["train", "test"]
    for split, dataset in splits.items():
        images, labels = read_split(FOLDER, EMBEDDED, split)
        np.testing.assert_array_equal(dataset.images, images[..., None])
        np.testing.assert_array_equal(dataset.labels, labels)
        assert dataset.class_names == CLASS_NAMES
        assert (dataset.name, dataset.split) == ("fashion_mnist", split)
        assert dataset.source == "embedded subset, 11,000 + 2,000 pictures inside the package"
    assert CLASS_NAMES[9] == "Ankle Boot"


def test_tfds_reads_the_same_examples(embedded_dir):
    """The decoder here is ours; TFDS's own is the oracle."""
    ours = load_dataset(
        "fashion_mnist", split="test", data="embedded", data_dir=embedded_dir, announce=print
    )
    builder = FashionMNIST(config="embedded", data_dir=embedded_dir)
    for i, example in enumerate(builder.as_data_source("test").__getitems__(range(50))):
        np.testing.assert_array_equal(ours.images[i], example["image"])
        assert ours.labels[i] == example["label"]
    assert builder.info.file_format.value == "array_record"
    assert builder.info.metadata["source"] == ours.source


def test_no_tensorflow_no_jax_and_a_light_import(tmp_path):
    code = """
        import sys, jaxvision.data
        loaded = {"tensorflow_datasets", "cv2", "requests", "PIL"} & set(sys.modules)
        assert not loaded, loaded
        splits = jaxvision.data.load_splits("fashion_mnist", data="embedded", data_dir=sys.argv[1])
        assert splits["train"].images.shape == (11000, 28, 28, 1)
        loaded = {"tensorflow", "torch", "jax"} & set(sys.modules)
        assert not loaded, loaded
        import tensorflow_datasets as tfds
        stock = tfds.core.registered.imported_builder_cls("fashion_mnist")
        assert stock.__module__.startswith("tensorflow_datasets"), stock
    """
    ran = run(code, tmp_path)
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("fashion_mnist: preparing the embedded subset")
    assert lines[1].endswith(f"(prepared in {tmp_path}/fashion_mnist/embedded/1.0.0)")


@needs_debian
@pytest.mark.slow
def test_the_full_set(tmp_path):
    announced = Announced()
    splits = load_splits("fashion_mnist", data_dir=tmp_path, announce=announced)
    assert {split: len(dataset) for split, dataset in splits.items()} == {
        "train": 60_000,
        "test": 10_000,
    }
    assert splits["train"].source == f"full set, local files in {DEBIAN}"
    assert announced[-1].startswith(f"fashion_mnist: {splits['train'].source} (prepared in ")
    # The first ten labels of the official training set, in its order.
    assert splits["train"].labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


# Which source is taken


def test_auto_takes_what_was_prepared_before(tmp_path, tiny_full, monkeypatch):
    first, second = Announced(), Announced()
    load_splits("fashion_mnist", data_dir=tmp_path, source=tiny_full, announce=first)
    shutil.rmtree(tiny_full)
    monkeypatch.setattr(sources, "prepare", None)
    dataset = load_dataset("fashion_mnist", data_dir=tmp_path, announce=second)
    assert dataset.source == f"full set, local files in {tiny_full}"
    (line,) = second
    assert f"{dataset.source} (prepared earlier in {tmp_path}" in line
    metadata = tmp_path / "fashion_mnist" / "full" / "1.0.0" / "metadata.json"
    assert json.loads(metadata.read_text())["source"] == dataset.source


def test_auto_takes_the_systems_folder(tmp_path, tiny_full, monkeypatch):
    monkeypatch.setattr(recipes, "FASHION_MNIST_FOLDER", tiny_full)
    dataset = load_dataset("fashion_mnist", data_dir=tmp_path, announce=lambda line: None)
    assert (len(dataset), dataset.source) == (30, f"full set, local files in {tiny_full}")


def test_auto_downloads(tmp_path, tiny_full, serve, monkeypatch):
    served = serve(files={file.name: file.read_bytes() for file in tiny_full.iterdir()})
    monkeypatch.setattr(recipes, "FASHION_MNIST_URLS", (served.url,))
    dataset = load_dataset("fashion_mnist", data_dir=tmp_path / "d", announce=lambda line: None)
    assert (len(dataset), dataset.source) == (30, "full set, the official files downloaded")
    assert len(served.requests) == 4


def test_auto_falls_back_to_the_subset_and_says_why(tiny_full, embedded_dir):
    announced = Announced()
    dataset = load_dataset("fashion_mnist", data_dir=embedded_dir, announce=announced)
    assert len(dataset) == 11_000
    no_folder, offline, chosen = announced
    assert "no full set here: no folder" in no_folder
    assert "JAXVISION_OFFLINE=1" in offline
    assert chosen.startswith("fashion_mnist: embedded subset")


def test_auto_goes_past_a_broken_system_folder_and_a_wrong_download(
    tmp_path, tiny_full, embedded_dir, serve, monkeypatch
):
    files = {file.name: file.read_bytes() for file in tiny_full.iterdir()}
    files["train-labels-idx1-ubyte.gz"] = gzip.compress(b"other")
    monkeypatch.setattr(recipes, "FASHION_MNIST_URLS", (serve(files=files).url,))
    (tiny_full / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(recipes, "FASHION_MNIST_FOLDER", tiny_full)
    shutil.copytree(embedded_dir, tmp_path / "d")
    announced = Announced()
    dataset = load_dataset("fashion_mnist", data_dir=tmp_path / "d", announce=announced)
    assert len(dataset) == 11_000
    assert "t10k-labels-idx1-ubyte.gz or t10k-labels-idx1-ubyte in this folder" in announced[0]
    assert re.search("train-labels-idx1-ubyte.gz as downloaded: expected sha256", announced[1])
    downloads = tmp_path / "d" / "downloads" / "fashion_mnist"
    assert not (downloads / "train-labels-idx1-ubyte.gz").exists()


def test_full_never_falls_back_and_lists_what_was_tried(tmp_path, tiny_full):
    message = fails(data="full", data_dir=tmp_path)
    for part in (str(tmp_path), "no folder", "JAXVISION_OFFLINE=1", "embedded"):
        assert part in message


@pytest.mark.parametrize("prepared_before", [False, True])
@pytest.mark.parametrize("fault", ["missing", "truncated", "another set"])
def test_a_named_source_that_is_wrong_is_an_error(tmp_path, tiny_full, fault, prepared_before):
    if prepared_before:
        load_splits("fashion_mnist", data_dir=tmp_path, source=tiny_full, announce=print)
    file = tiny_full / "train-images-idx3-ubyte.gz"
    if fault == "missing":
        shutil.rmtree(tiny_full)
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        data = bytearray(gzip.decompress(file.read_bytes()))
        data[-1] ^= 1
        file.write_bytes(gzip.compress(data))
    expected = {"missing": "no such folder", "truncated": "truncated", "another set": "sha256"}
    message = fails(source=tiny_full, data_dir=tmp_path)
    assert message.startswith(str(tiny_full))
    assert expected[fault] in message


def test_wrong_names_and_choices(tmp_path):
    with pytest.raises(UserError, match=r"data sets fashion_mnist, mnist, .*, got 'minst'"):
        load_dataset("minst", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"\(train, test\), got 'val'"):
        load_dataset("fashion_mnist", split="val", data_dir=tmp_path)
    assert "leave one of the two out" in fails(data="embedded", source=tmp_path)


def test_the_default_data_dir(monkeypatch):
    monkeypatch.delenv("JAXVISION_DATA", raising=False)
    assert prepared.default_data_dir() == Path.home() / ".cache" / "jaxvision" / "datasets"
    monkeypatch.setenv("JAXVISION_DATA", "/elsewhere")
    assert prepared.default_data_dir() == Path("/elsewhere")


# Damage, interruption, full and read-only disks


def shard(folder):
    (file,) = folder.glob("*-train.array_record-*")
    return file


def forget_decoded(folder):
    kept = sorted(folder.glob("*.npy"))
    assert [path.name for path in kept] == [
        *("test-images.npy", "test-labels.npy"),
        *("train-images.npy", "train-labels.npy"),
    ]
    for path in kept:
        path.unlink()


def flip_a_byte(folder):
    data = bytearray(shard(folder).read_bytes())
    data[len(data) // 2] ^= 255
    shard(folder).write_bytes(data)


DAMAGE = {
    "shard deleted": lambda folder: shard(folder).unlink(),
    "shard emptied": lambda folder: shard(folder).write_bytes(b""),
    "shard cut": lambda folder: os.truncate(shard(folder), 70_000),
    "byte flipped": flip_a_byte,
    "no description": lambda folder: (folder / "dataset_info.json").unlink(),
    "bad description": lambda folder: (folder / "dataset_info.json").write_text("{"),
    "another split's shard": lambda folder: shutil.copy(
        next(folder.glob("*-test.array_record-*")), shard(folder)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_prepared_data_says_which_folder_to_delete(tmp_path, tiny_full, damage):
    options = {"data_dir": tmp_path, "announce": lambda line: None}
    load_splits("fashion_mnist", source=tiny_full, **options)
    folder = tmp_path / "fashion_mnist" / "full" / "1.0.0"
    forget_decoded(folder)
    DAMAGE[damage](folder)
    message = fails(**options)
    assert message.startswith(f"{folder}: expected a prepared data set, but it is damaged")
    assert "delete this folder" in message
    shutil.rmtree(folder)
    assert len(load_dataset("fashion_mnist", source=tiny_full, **options)) == 30


def test_prepared_data_with_other_pictures_is_damaged(tmp_path, tiny_full, monkeypatch):
    from jaxvision.data.builders import fashion_mnist

    options = {"data_dir": tmp_path, "announce": lambda line: None}
    load_splits("fashion_mnist", source=tiny_full, **options)
    # What is kept decoded is not believed either.
    monkeypatch.setitem(fashion_mnist.EDITIONS, "full", FULL)  # the real set's sha256
    assert "train holds other pictures or labels" in fails(**options)


PREPARE = """
    import sys
    from jaxvision.data import load_splits
    print(len(load_splits("fashion_mnist", data="embedded", data_dir=sys.argv[1])["train"]))
"""


@pytest.mark.slow
def test_a_killed_preparation_leaves_nothing_that_looks_prepared(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PREPARE), str(tmp_path)]
    parent = tmp_path / "fashion_mnist" / "embedded"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(parent.glob("incomplete.*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    (leftover,) = parent.iterdir()
    assert leftover.name.startswith("incomplete.")
    os.utime(leftover, (0, 0))
    assert len(load_dataset("fashion_mnist", data="embedded", data_dir=tmp_path)) == 11_000
    assert [folder.name for folder in parent.iterdir()] == ["1.0.0"]  # and an old leftover is gone


@pytest.mark.slow
def test_two_processes_that_prepare_at_once_both_get_the_data(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PREPARE), str(tmp_path)]
    parent = tmp_path / "fashion_mnist" / "embedded"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        # This process has imported all it needs: it would be done before the other begins.
        while other.poll() is None and not list(parent.glob("incomplete.*")):
            time.sleep(0.005)
        assert len(load_dataset("fashion_mnist", data="embedded", data_dir=tmp_path)) == 11_000
        assert other.communicate()[0].endswith("11000\n")
    assert [f.name for f in parent.iterdir()] == ["1.0.0"]


def test_losing_the_race_is_no_error(tmp_path, tiny_full, monkeypatch):
    """The same, made certain: the other process finishes between the start and the rename."""
    original = FashionMNIST._split_generators

    def split_generators(self, dl_manager):
        winner = tmp_path / "fashion_mnist" / "full" / "1.0.0"
        if not winner.exists():
            shutil.copytree(tmp_path / "other" / "fashion_mnist" / "full" / "1.0.0", winner)
        return original(self, dl_manager)

    options = {"source": tiny_full, "announce": lambda line: None}
    load_splits("fashion_mnist", data_dir=tmp_path / "other", **options)
    monkeypatch.setattr(FashionMNIST, "_split_generators", split_generators)
    assert len(load_dataset("fashion_mnist", data_dir=tmp_path, **options)) == 30
    assert [f.name for f in (tmp_path / "fashion_mnist" / "full").iterdir()] == ["1.0.0"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        message = fails(data="embedded", data_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"{tmp_path}: the disk is full")
    assert not list((tmp_path / "fashion_mnist" / "embedded").iterdir())


def test_a_data_dir_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    message = fails(data="embedded", data_dir=tmp_path / "file" / "data")
    assert "choose another data folder (JAXVISION_DATA)" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_data_dir_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o555)
    assert "Permission denied" in fails(data="embedded", data_dir=tmp_path)
