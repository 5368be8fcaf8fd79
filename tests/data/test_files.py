"""Folders of pictures, checked, split, decoded and batched."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import (
    Batches,
    FileDataset,
    classification_eval,
    classification_train,
    compose,
    every_picture,
    load_dataset,
    load_image_folder,
    load_splits,
    mixup,
    prefetch,
    read_image,
    to_arrays,
)
from jaxvision.data.image_folder import in_validation
from jaxvision.errors import UserError

GIVEN = {"train/bees": 5, "train/ants": 4, "val/ants": 2, "val/bees": 3}


def quiet(line):
    pass


def fails(root, **options):
    with pytest.raises(UserError) as caught:
        load_image_folder(root, announce=quiet, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def given(tmp_path, write_pictures):
    write_pictures(tmp_path / "given", GIVEN)
    return tmp_path / "given"


# Which files are in which split


def test_given_splits_have_the_sorted_classes_of_train(given):
    (given / "train" / "ants" / "notes.txt").write_text("not a picture")
    (given / "train" / "ants" / "imageNotFound.gif").write_bytes(b"GIF89a")
    (given / "train" / ".cache").mkdir()
    (given / "val" / "ants" / "._0.jpg").write_bytes(b"")
    lines = []
    splits = load_splits("image_folder", source=given, announce=lines.append)
    assert list(splits) == ["train", "val"]
    train, val = splits.values()
    assert train.class_names == val.class_names == ("ants", "bees")
    assert train.labels.tolist() == [0] * 4 + [1] * 5
    assert val.labels.tolist() == [0] * 2 + [1] * 3
    assert train.labels.dtype == np.int32
    assert [path.name for path in train.files] == [f"{i}.jpg" for i in [*range(4), *range(5)]]
    assert (train.name, train.split) == ("image_folder", "train")
    assert train.source == f"pictures in {given}"
    assert lines == [f"image_folder: 9 train, 5 val pictures of 2 classes in {given} (as given)"]
    bees = load_dataset("image_folder", split="val", source=given, announce=quiet)
    assert len(bees) == 5


def test_a_test_folder_is_a_split_and_a_class_may_be_missing_there(given):
    shutil.copytree(given / "val" / "bees", given / "test" / "bees")
    (given / "val").rename(given / "valid")
    splits = load_image_folder(given, announce=quiet)
    assert list(splits) == ["train", "val", "test"]
    assert splits["test"].labels.tolist() == [1, 1, 1]


def test_folders_below_a_class_count_and_links_in_circles_end(given):
    deep = given / "train" / "ants" / "more" / "deep"
    deep.mkdir(parents=True)
    shutil.copy(given / "train" / "ants" / "0.jpg", deep / "9.JPEG")
    (deep / "up").symlink_to(given / "train" / "ants")
    train = load_image_folder(given, announce=quiet)["train"]
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    assert train.files[4] == deep / "9.JPEG"


def test_a_split_by_hash_is_stable_and_depends_on_the_path_below_the_root_only(
    tmp_path, write_pictures
):
    write_pictures(tmp_path / "one", {"ants": 40, "bees": 60})

    def sides(root):
        splits = load_image_folder(root, val_fraction=0.3, announce=quiet)
        return {
            split: {path.relative_to(root).as_posix() for path in dataset.files}
            for split, dataset in splits.items()
        }

    before = sides(tmp_path / "one")
    assert list(before) == ["train", "val"]
    assert not before["train"] & before["val"]
    assert len(before["train"] | before["val"]) == 100
    assert before["val"] == {
        name for name in before["train"] | before["val"] if in_validation(name, 0.3)
    }
    (tmp_path / "one").rename(tmp_path / "other")
    write_pictures(tmp_path / "other", {"wasps": 30})
    after = sides(tmp_path / "other")
    for split in before:
        assert before[split] == {name for name in after[split] if "wasps" not in name}


def test_the_hash_never_changes_and_keeps_its_fraction():
    names = [f"class/{i}.jpg" for i in range(5000)]
    assert [i for i, name in enumerate(names[:20]) if in_validation(name, 0.2)] == [
        2,
        5,
        11,
        15,
        19,
    ]
    for fraction in (0.1, 0.5):
        held = sum(in_validation(name, fraction) for name in names)
        assert abs(held - 5000 * fraction) < 5 * np.sqrt(5000 * fraction * (1 - fraction))


def test_faults_of_a_folder(given, tmp_path, write_pictures):
    assert "no such folder" in fails(tmp_path / "missing")
    assert "between 0 and 1, got 1" in fails(given, val_fraction=1.0)
    (tmp_path / "empty").mkdir()
    assert "got no folder" in fails(tmp_path / "empty")
    (tmp_path / "empty" / "ants").mkdir()
    assert "expected pictures (.bmp" in fails(tmp_path / "empty")
    shutil.copytree(given / "val", given / "validation")
    assert "val and validation" in fails(given)
    shutil.rmtree(given / "validation")
    shutil.copytree(given / "val" / "ants", given / "val" / "wasps")
    assert "got also wasps" in fails(given)
    shutil.rmtree(given / "val")
    assert "a folder val or test beside train" in fails(given)
    write_pictures(tmp_path / "few", {"ants": 1})
    assert "expected pictures in val" in fails(tmp_path / "few", val_fraction=1e-6)
    assert "all 1 became" in fails(tmp_path / "few", val_fraction=1 - 1e-6)


def test_options_that_do_not_fit(given, tmp_path):
    for options, message in [
        ({"name": "image_folder"}, "give it as the source"),
        ({"name": "image_folder", "source": given, "data": "embedded"}, "no subset"),
        ({"name": "mnist", "check": "decode"}, "for image_folder: mnist"),
        ({"name": "mnist", "data": "embedded"}, "no subset in this package"),
    ]:
        with pytest.raises(UserError, match=message):
            load_splits(**{"data_dir": tmp_path, "announce": quiet, **options})
    with pytest.raises(UserError, match=r"\(train, val\), got 'test'"):
        load_dataset("image_folder", split="test", source=given, announce=quiet)


# Broken pictures


@pytest.fixture
def broken(given):
    (given / "train" / "ants" / "1.jpg").write_text("no picture at all")
    truncated = given / "train" / "bees" / "2.jpg"
    data = truncated.read_bytes()
    truncated.write_bytes(data[: len(data) * 3 // 4])
    return given


def test_a_file_that_is_no_picture_is_found_before_anything_runs(broken):
    message = fails(broken)
    assert "got 1 broken of 9" in message
    assert str(broken / "train" / "ants" / "1.jpg") in message
    assert "check='decode'" in message


def test_a_truncated_file_is_named_where_its_batch_would_come(broken):
    (broken / "train" / "ants" / "1.jpg").unlink()
    train = load_image_folder(broken, announce=quiet)["train"]
    batches = Batches(train, batch_size=2, shuffle=False, transform=classification_train(16))
    steps = prefetch(batches, 0, batches.steps_per_epoch)
    for _ in range(2):
        next(steps)
    with pytest.raises(UserError, match=r"bees.2\.jpg: expected a complete picture"):
        next(steps)


def test_checking_by_decoding_leaves_broken_files_out_and_says_so(broken):
    lines = []
    splits = load_image_folder(broken, check="decode", announce=lines.append)
    assert len(splits["train"]) == 7
    assert splits["train"].labels.tolist() == [0] * 3 + [1] * 4
    assert "2.jpg" not in [path.name for path in splits["train"].files[3:]]
    assert len(splits["val"]) == 5
    assert "image_folder, train: left out 2 of 9, which are broken" in lines[0]
    for name in ("1.jpg", "2.jpg"):
        assert name in lines[0]
    for path in (broken / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="at least one picture that can be read"):
        load_image_folder(broken, check="decode", announce=quiet)


def test_a_long_list_of_broken_files_is_cut(given):
    for path in (given / "train").rglob("*.jpg"):
        path.write_bytes(b"")
    message = fails(given)
    assert message.count("expected a picture (JPEG") == 5
    assert "and 4 more" in message


# Batches


def test_batches_decode_and_depend_on_seed_and_step_only(given):
    train = load_image_folder(given, announce=quiet)["train"]
    transform = classification_train(24, auto_augment="trivial_augment_wide", erase=0.5)

    def make(**options):
        return Batches(train, batch_size=4, seed=3, transform=transform, **options)

    expected = [make()(step) for step in range(6)]
    assert expected[0]["image"].shape == (4, 24, 24, 3)
    assert expected[0]["image"].dtype == np.uint8
    assert expected[2]["valid"].tolist() == [True, False, False, False]
    assert sorted(np.concatenate([b["label"] for b in expected[:3]])[:9]) == [0] * 4 + [1] * 5
    got = list(prefetch(make(), 0, 6, workers=4, depth=6))
    for one, other in zip(expected, got, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    again = Batches(train, batch_size=4, seed=4, transform=transform)(0)
    assert not np.array_equal(again["image"], expected[0]["image"])


def test_a_transform_of_ones_own_gets_an_array_among_ours(given):
    seen = []

    def look(example, rng):
        seen.append(example["image"])
        return {**example, "image": example["image"][::2]}

    val = load_image_folder(given, announce=quiet)["val"]
    for transform in (look, compose(classification_train(24), look, every_picture(small))):
        Batches(val.subset(np.array([0])), batch_size=1, transform=transform)(0)
        assert isinstance(seen[-1], np.ndarray)
        assert seen[-1].dtype == np.uint8
    assert seen[0].shape == read_image(val.files[0]).shape
    assert seen[1].shape == (24, 24, 3)


def small(picture):
    return classification_eval(10, 8)(picture)


def test_pictures_of_many_sizes_need_a_transform(given):
    val = load_image_folder(given, announce=quiet)["val"]
    with pytest.raises(UserError, match=r"one size in a batch, got .* give a transform"):
        Batches(val, batch_size=3)(0)


def test_the_batch_transform_comes_last_and_has_draws_of_its_own(given):
    train = load_image_folder(given, announce=quiet)["train"]
    plain = Batches(train, batch_size=3, transform=classification_train(16))
    mixed = Batches(
        train, batch_size=3, transform=classification_train(16), batch_transform=mixup(2)
    )
    batches = [mixed(step) for step in range(6)]
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch["label"], plain(step)["label"])
        assert batch["soft_label"].shape == (3, 2)
        np.testing.assert_allclose(batch["soft_label"].sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(batch["image"], mixed(step)["image"])
        assert not np.array_equal(batch["image"], plain(step)["image"])
    drawing = Batches(
        train,
        batch_size=3,
        transform=classification_train(16),
        batch_transform=lambda batch, rng: {**batch, "drawn": rng.random(2)},
    )
    assert len({drawing(step)["drawn"].tobytes() for step in range(6)}) == 6  # two epochs


def test_to_arrays_decodes_once_at_the_preset(given):
    val = load_image_folder(given, announce=quiet)["val"]
    evaluate = classification_eval(20, 16)
    arrays = to_arrays(val, evaluate, workers=3)
    assert arrays.images.shape == (5, 16, 16, 3)
    for i, path in enumerate(val.files):
        np.testing.assert_array_equal(arrays.images[i], evaluate(read_image(path)))
    np.testing.assert_array_equal(arrays.labels, val.labels)
    assert (arrays.class_names, arrays.split) == (val.class_names, "val")
    batch = Batches(val, batch_size=5, shuffle=False, transform=every_picture(evaluate))(0)
    np.testing.assert_array_equal(batch["image"], arrays.images)
    with pytest.raises(ValueError, match="pictures of one size"):
        to_arrays(val, np.asarray)


def test_files_may_be_bytes_and_grey(given):
    path = given / "val" / "ants" / "0.jpg"
    labels = np.zeros(2, np.int32)
    files, names = (path.read_bytes(), b"junk"), ("one", "two")
    dataset = FileDataset(files, names, labels, ("ants",), "n", "s", "", channels=1)
    picture = dataset.picture(0)
    np.testing.assert_array_equal(np.asarray(picture), read_image(path, channels=1)[..., 0])
    with pytest.raises(UserError, match=r"^two: expected a picture"):
        dataset.picture(1)
    with pytest.raises(ValueError, match="1 names"):
        FileDataset(files, ("one",), labels, ("ants",), "n", "s", "")


def test_names_that_are_not_text_are_split_too(tmp_path):
    """A file system may hold names that are no UTF-8."""
    for folder in ("ants", "bees"):
        (tmp_path / folder).mkdir()
        for i in range(6):
            name = os.fsdecode(b"%d-\xff.png" % i)
            try:
                Image.new("RGB", (4, 4)).save(tmp_path / folder / name)
            except OSError:
                pytest.skip("this file system takes UTF-8 only")
    splits = load_image_folder(tmp_path, val_fraction=0.5, announce=quiet)
    assert sum(map(len, splits.values())) == 12
