"""Penn-Fudan: an archive of its layout, boxes and instances from its masks."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import detection_recipes
from jaxvision.data.detection_recipes import DETECTION_RECIPES
from jaxvision.data.formats import penn_fudan
from jaxvision.errors import UserError

from .detection_files import PEDESTRIANS, make_penn_fudan, pack


def quiet(line):
    pass


def load(**options):
    return DETECTION_RECIPES["penn_fudan"](
        **{"source": None, "data_dir": None, "announce": quiet, **options}
    )


def fails(**options):
    with pytest.raises(UserError) as caught:
        load(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(penn_fudan, "PICTURES", 5)
    monkeypatch.setattr(penn_fudan, "TEST_PICTURES", 2)
    return make_penn_fudan(tmp_path / "made" / "PennFudanPed")


@pytest.fixture
def archive(tmp_path, folder, monkeypatch):
    path = tmp_path / "local" / "PennFudanPed.zip"
    sha256 = pack(folder, path, "PennFudanPed")
    official = detection_recipes.PENN_FUDAN_ARCHIVE
    assert official.file == path.name
    genuine = dataclasses.replace(official, sha256=sha256)
    monkeypatch.setattr(detection_recipes, "PENN_FUDAN_ARCHIVE", genuine)
    return path


def check(splits):
    stems = {"train": list(PEDESTRIANS)[:3], "test": list(PEDESTRIANS)[3:]}
    assert list(splits) == ["train", "test"]
    number = 0
    for split, dataset in splits.items():
        assert dataset.class_names == ("pedestrian",)
        assert (dataset.name, dataset.split) == ("penn_fudan", split)
        assert len(dataset) == len(stems[split])
        for i, stem in enumerate(stems[split]):
            number += 1
            example = dataset.example(i, masks=True)
            _, boxes = PEDESTRIANS[stem]
            assert dataset.names[i].endswith(f"{stem}.png")
            assert example["image_id"] == number
            np.testing.assert_array_equal(example["boxes"], boxes)
            assert example["labels"].tolist() == [0] * len(boxes)
            assert not example["difficult"].any()
            for mask, (x1, y1, x2, y2) in zip(example["masks"], boxes, strict=True):
                expected = np.zeros((30, 25), bool)
                expected[y1:y2, x1:x2] = True
                np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("place", ["made", "made/PennFudanPed"])
def test_an_unpacked_folder_is_read_where_it_is(tmp_path, folder, place):
    splits = load(source=tmp_path / place)
    check(splits)
    assert splits["train"].images[0] == folder / "PNGImages" / "FudanPed00001.png"
    assert splits["train"].source == f"read where they are, in {folder}"


def test_the_archive_is_downloaded_and_prepared_once(tmp_path, archive, folder, serve, monkeypatch):
    served = serve(files={archive.name: archive.read_bytes()})
    official = detection_recipes.PENN_FUDAN_ARCHIVE
    assert official.urls == ("https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip",)
    moved = dataclasses.replace(official, urls=(served.url + archive.name,))
    monkeypatch.setattr(detection_recipes, "PENN_FUDAN_ARCHIVE", moved)
    splits = load(data_dir=tmp_path / "d")
    check(splits)
    assert splits["train"].images[0] == (folder / "PNGImages" / "FudanPed00001.png").read_bytes()
    shutil.rmtree(tmp_path / "d" / "downloads")
    shutil.rmtree(folder)
    check(load(data_dir=tmp_path / "d"))
    assert len(served.requests) == 1


def test_the_archive_given_and_damaged(tmp_path, archive):
    options = {"source": archive.parent, "data_dir": tmp_path / "d"}
    splits = load(**options)
    check(splits)
    assert splits["test"].source == f"full set, local files in {archive.parent}"
    prepared = tmp_path / "d" / "penn_fudan" / "full" / "1.0.0"
    (shard,) = prepared.glob("*.array_record-*")
    shard.write_bytes(shard.read_bytes()[:-40])
    assert fails(**options).startswith(f"{prepared}: expected a prepared data set, but")
    shutil.rmtree(prepared)
    archive.write_bytes(archive.read_bytes()[:-1])
    assert "PennFudanPed.zip: expected sha256" in fails(**options)
    archive.unlink()
    assert "expected PennFudanPed.zip or the unpacked PennFudanPed in this" in fails(**options)


def test_faults_of_the_folder(folder):
    mask = folder / "PedMasks" / "FudanPed00002_mask.png"
    whole = mask.read_bytes()
    Image.new("L", (24, 30), 1).save(mask)
    message = fails(source=folder)
    assert "FudanPed00002.png: expected a picture of 30 x 25 pixels (h x w), but " in message
    assert "_mask.png has 30 x 24" in message
    Image.new("RGB", (25, 30)).save(mask)
    assert "_mask.png: expected a mask of 8 bits a pixel, got RGB" in fails(source=folder)
    mask.write_text("no picture")
    assert "_mask.png: expected a picture" in fails(source=folder)
    mask.unlink()
    assert f"FudanPed00002.png: expected its mask {mask}" in fails(source=folder)
    mask.write_bytes(whole)
    (folder / "PNGImages" / "PennPed00002.png").unlink()
    assert "expected the 5 pictures of Penn-Fudan, got 4" in fails(source=folder)


def test_a_picture_without_pedestrians_is_an_empty_scene(folder):
    Image.new("L", (25, 30)).save(folder / "PedMasks" / "PennPed00002_mask.png")
    example = load(source=folder)["test"].example(1, masks=True)
    assert example["boxes"].shape == (0, 4)
    assert example["masks"].shape == (0, 30, 25)
