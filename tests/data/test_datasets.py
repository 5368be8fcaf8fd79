"""MNIST, CIFAR-10, ants and bees: files of exactly their formats, prepared, read and downloaded."""

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import Batches, classification_eval, load_dataset, load_splits, recipes
from jaxvision.data.builders import cifar10, hymenoptera, idx_files, mnist
from jaxvision.data.idx import idx_bytes, idx_sha256
from jaxvision.errors import UserError


def quiet(line):
    pass


def fails(name, **options):
    with pytest.raises(UserError) as caught:
        load_splits(name, **{"announce": quiet, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# MNIST


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A folder with four files that count as MNIST in this test, and their arrays."""
    folder, arrays, splits = tmp_path / "digits", {}, {}
    folder.mkdir()
    rng = np.random.default_rng(1)
    for split, prefix, size in (("train", "train", 25), ("test", "t10k", 7)):
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        stems = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        for stem, array in zip(stems, (images, labels), strict=True):
            (folder / f"{stem}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        shas = idx_sha256(images), idx_sha256(labels)
        splits[split] = idx_files.SplitFiles(size, *stems, *shas)
        arrays[split] = images, labels
    monkeypatch.setitem(mnist.EDITIONS, "full", idx_files.Edition("full", splits))
    return folder, arrays


def check_digits(splits, arrays):
    assert list(splits) == ["train", "test"]
    for split, (images, labels) in arrays.items():
        np.testing.assert_array_equal(splits[split].images, images[..., None])
        np.testing.assert_array_equal(splits[split].labels, labels)
        assert splits[split].class_names == tuple("0123456789")


def test_mnist_from_a_folder_and_prepared_earlier(tmp_path, digits):
    folder, arrays = digits
    check_digits(load_splits("mnist", source=folder, data_dir=tmp_path, announce=quiet), arrays)
    shutil.rmtree(folder)
    lines = []
    check_digits(load_splits("mnist", data_dir=tmp_path, announce=lines.append), arrays)
    assert f"mnist: full set, local files in {folder} (prepared earlier" in lines[0]


def test_mnist_is_downloaded_from_the_first_mirror_that_has_it(
    tmp_path, digits, serve, monkeypatch
):
    folder, arrays = digits
    empty, full = serve(files={}), serve(files={f.name: f.read_bytes() for f in folder.iterdir()})
    monkeypatch.setattr(recipes, "MNIST_URLS", (empty.url, full.url))
    splits = load_splits("mnist", data_dir=tmp_path / "d", announce=quiet)
    check_digits(splits, arrays)
    assert splits["train"].source == "full set, the official files downloaded"
    assert len(full.requests) == 4


def test_without_a_source_it_says_what_was_tried(tmp_path, digits):
    message = fails("mnist", data_dir=tmp_path)
    assert "found no full mnist" in message
    assert "JAXVISION_OFFLINE=1" in message
    assert "embedded" not in message


# CIFAR-10


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with cifar-10-binary.tar.gz of 20 pictures a file, and what is in it."""
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    rng = np.random.default_rng(2)
    folder, expected = tmp_path / "cifar", {}
    folder.mkdir()
    with tarfile.open(folder / cifar10.ARCHIVE, "w:gz") as archive:
        for split, names in cifar10.SPLITS.items():
            records = rng.integers(0, 256, (20 * len(names), 3073), dtype=np.uint8)
            records[:, 0] %= 10
            expected[split] = records
            for name, part in zip(names, np.split(records, len(names)), strict=True):
                add(archive, f"cifar-10-batches-bin/{name}", part.tobytes())
        add(archive, "cifar-10-batches-bin/batches.meta.txt", b"airplane\n")
    data = (folder / cifar10.ARCHIVE).read_bytes()
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(data).hexdigest())
    return folder, expected


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def check_cifar(splits, expected):
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 100, "test": 20}
    for split, records in expected.items():
        np.testing.assert_array_equal(splits[split].labels, records[:, 0])
        for channel in range(3):
            plane = records[:, 1 + 1024 * channel :][:, :1024].reshape(-1, 32, 32)
            np.testing.assert_array_equal(splits[split].images[..., channel], plane)
        assert splits[split].class_names[3] == "cat"


def test_cifar10_from_its_archive_or_unpacked(tmp_path, cifar):
    folder, expected = cifar
    options = {"announce": quiet}
    check_cifar(load_splits("cifar10", source=folder, data_dir=tmp_path / "a", **options), expected)
    with tarfile.open(folder / cifar10.ARCHIVE) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    for number, place in enumerate(("unpacked", "unpacked/cifar-10-batches-bin")):
        root = tmp_path / f"root{number}"
        splits = load_splits("cifar10", source=tmp_path / place, data_dir=root, **options)
        check_cifar(splits, expected)


def test_cifar10_is_downloaded(tmp_path, cifar, serve, monkeypatch):
    folder, expected = cifar
    served = serve(files={cifar10.ARCHIVE: (folder / cifar10.ARCHIVE).read_bytes()})
    monkeypatch.setattr(recipes, "CIFAR10_URLS", (served.url + cifar10.ARCHIVE,))
    check_cifar(load_splits("cifar10", data_dir=tmp_path / "d", announce=quiet), expected)
    assert len(served.requests) == 1


def test_cifar10_of_the_wrong_size_is_damaged(tmp_path, cifar, monkeypatch):
    folder, _ = cifar
    load_splits("cifar10", source=folder, data_dir=tmp_path, announce=quiet)
    monkeypatch.setattr(cifar10, "RECORDS", 10_000)
    assert "train holds 100 of 50,000 pictures" in fails("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("fault", ["missing", "empty", "other", "short", "label", "no batch"])
def test_faults_of_cifar10s_files(tmp_path, cifar, fault, monkeypatch):
    folder, expected = cifar
    archive = folder / cifar10.ARCHIVE
    if fault == "missing":
        shutil.rmtree(folder)
    elif fault == "empty":
        archive.unlink()
    elif fault == "other":
        archive.write_bytes(gzip.compress(pickle.dumps({"data": 1})))
    else:
        data = bytearray(expected["test"].tobytes())
        data = data[:-1] if fault == "short" else data
        data[0] = 10 if fault == "label" else data[0]
        with tarfile.open(archive, "w:gz") as opened:
            for name in cifar10.SPLITS["train"]:
                add(opened, name, bytes(data))
            if fault != "no batch":
                add(opened, "test_batch.bin", bytes(data))
        sha = hashlib.sha256(archive.read_bytes()).hexdigest()
        monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", sha)
    message = fails("cifar10", source=folder, data_dir=tmp_path / "d")
    assert str(folder) in message
    expected = {
        "missing": "no such folder",
        "empty": "found neither",
        "other": "sha256",
        "short": "expected 61,460 bytes in data_batch_1.bin, got 61,459",
        "label": "labels below 10 in data_batch_1.bin, got 10",
        "no batch": "expected test_batch.bin in it",
    }
    assert expected[fault] in message


# Ants and bees

COUNTS = {"train/ants": 4, "train/bees": 3, "val/ants": 2, "val/bees": 2}


@pytest.fixture
def insects(tmp_path, write_pictures, monkeypatch):
    """A folder with hymenoptera_data.zip as it is laid out, but of 7 + 4 pictures."""
    root = tmp_path / "made" / "hymenoptera_data"
    write_pictures(root, COUNTS)
    Image.new("L", (30, 20), 128).save(root / "train" / "ants" / "0.jpg")  # one is grey there too
    (root / "train" / "ants" / "imageNotFound.gif").write_bytes(b"GIF89a")
    folder = tmp_path / "insects"
    folder.mkdir()
    with zipfile.ZipFile(folder / hymenoptera.ARCHIVE, "w") as archive:
        for path in [root, *sorted(root.rglob("*"))]:
            archive.write(path, path.relative_to(root.parent).as_posix())
    data = (folder / hymenoptera.ARCHIVE).read_bytes()
    monkeypatch.setattr(hymenoptera, "SIZES", {"train": 7, "val": 4})
    monkeypatch.setattr(hymenoptera, "ARCHIVE_SHA256", hashlib.sha256(data).hexdigest())
    return folder, root


def check_insects(splits, root):
    assert list(splits) == ["train", "val"]
    for split, (ants, bees) in {"train": (4, 3), "val": (2, 2)}.items():
        dataset = splits[split]
        assert dataset.class_names == ("ants", "bees")
        assert dataset.labels.tolist() == [0] * ants + [1] * bees
        paths = [*sorted((root / split / "ants").glob("*.jpg"))]
        paths += [*sorted((root / split / "bees").glob("*.jpg"))]
        assert dataset.files == tuple(path.read_bytes() for path in paths)


def test_hymenoptera_is_downloaded_unpacked_and_prepared_once(
    tmp_path, insects, serve, monkeypatch
):
    folder, root = insects
    served = serve(files={hymenoptera.ARCHIVE: (folder / hymenoptera.ARCHIVE).read_bytes()})
    monkeypatch.setattr(hymenoptera, "URL", served.url + hymenoptera.ARCHIVE)
    data_dir, lines = tmp_path / "d", []
    check_insects(load_splits("hymenoptera", data_dir=data_dir, announce=lines.append), root)
    assert "preparing the full set, the official files downloaded" in lines[0]
    # Of what was unpacked nothing is left.
    downloads = data_dir / "downloads" / "hymenoptera"
    assert [path.name for path in downloads.iterdir()] == [hymenoptera.ARCHIVE]
    shutil.rmtree(data_dir / "downloads")
    splits = load_splits("hymenoptera", data_dir=data_dir, announce=quiet)
    check_insects(splits, root)
    assert len(served.requests) == 1

    transform = lambda example, rng: {  # noqa: E731
        **example,
        "image": classification_eval(20, 16)(example["image"]),
    }
    batch = Batches(splits["train"], batch_size=7, shuffle=False, transform=transform)(0)
    assert batch["image"].shape == (7, 16, 16, 3)
    assert (batch["image"][0] == 128).all()
    assert splits["val"].names[3].endswith("full/1.0.0: val/bees/1.jpg")


@pytest.mark.parametrize("place", ["zip", "parent", "folder"])
def test_hymenoptera_from_local_files(tmp_path, insects, place):
    folder, root = insects
    source = {"zip": folder, "parent": root.parent, "folder": root}[place]
    val = load_dataset(
        "hymenoptera", split="val", source=source, data_dir=tmp_path / "d", announce=quiet
    )
    assert val.labels.tolist() == [0, 0, 1, 1]
    assert val.source == f"full set, local files in {source}"


def test_faults_of_hymenopteras_files(tmp_path, insects):
    folder, root = insects
    options = {"data_dir": tmp_path / "d"}
    assert "found neither" in fails("hymenoptera", source=tmp_path, **options)
    (root / "val" / "bees" / "1.jpg").write_bytes(b"")
    assert "1.jpg: expected a picture (JPEG" in fails("hymenoptera", source=root, **options)
    (root / "val" / "bees" / "1.jpg").unlink()
    assert "expected the 4 pictures" in fails("hymenoptera", source=root, **options)
    archive = folder / hymenoptera.ARCHIVE
    archive.write_bytes(archive.read_bytes()[:-1])
    assert "expected sha256" in fails("hymenoptera", source=folder, **options)
    assert not (tmp_path / "d" / "hymenoptera").exists()


def test_damaged_prepared_pictures_say_which_folder_to_delete(tmp_path, insects):
    _, root = insects
    options = {"data_dir": tmp_path / "d", "announce": quiet}
    load_splits("hymenoptera", source=root, **options)
    prepared = tmp_path / "d" / "hymenoptera" / "full" / "1.0.0"
    (shard,) = prepared.glob("*-train.array_record-*")
    (other,) = prepared.glob("*-val.array_record-*")
    shutil.copy(other, shard)
    message = fails("hymenoptera", **options)
    assert message.startswith(f"{prepared}: expected a prepared data set, but it is damaged")
    shard.write_bytes(b"junk")
    assert "delete this folder" in fails("hymenoptera", **options)
