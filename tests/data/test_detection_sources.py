"""Finding a detection data set by name, with options of its own."""

import pytest

from jaxvision.data import DETECTION_DATASETS, detection_sources, load_detection
from jaxvision.errors import UserError


def fails(name, **options):
    with pytest.raises(UserError) as caught:
        load_detection(name, announce=lambda line: None, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_names():
    assert list(DETECTION_DATASETS) == [
        *("garment_scenes", "voc2007", "voc2012", "voc0712", "penn_fudan", "coco"),
        *("coco_json", "voc_xml", "yolo_txt"),
    ]


def test_an_unknown_name_lists_those_that_there_are():
    message = fails("garment_scene")
    assert message.startswith("expected one of the detection data sets garment_scenes, voc2007")
    assert message.endswith("got 'garment_scene'")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("garment_scenes", {"sizes": 128}, "has no option sizes: expected any of size, counts"),
        ("voc2007", {"size": 128}, "voc2007 has no option size: expected any of segmentation"),
        ("penn_fudan", {"masks": True}, "no option masks: expected any of (it has none)"),
        ("coco", {"classes": ["person"], "split": "val"}, "no option split: expected any of"),
        # Handed on by the recipe to the reader of the format, whose options these are.
        ("coco_json", {"size": 1}, "has no option size: expected any of classes, limit, masks"),
    ],
)
def test_an_unknown_option_lists_those_that_there_are(name, options, message):
    assert message in fails(name, **options)


@pytest.mark.parametrize("name", DETECTION_DATASETS)
def test_what_is_for_all_is_no_option_of_one(name):
    options = detection_sources._options(DETECTION_DATASETS[name])
    assert len(set(options)) == len(options)
    assert not {"source", "data_dir", "announce", "name"} & set(options)


def test_everything_is_handed_on(monkeypatch, tmp_path):
    seen = {}

    def load(*, source, data_dir, announce, limit=None):
        seen.update(source=source, data_dir=data_dir, limit=limit)
        announce("here")
        return {}

    monkeypatch.setitem(DETECTION_DATASETS, "mine", load)
    lines = []
    options = {"source": tmp_path, "data_dir": "d", "limit": 3}
    assert load_detection("mine", announce=lines.append, **options) == {}
    assert seen == options
    assert lines == ["here"]


def test_a_folder_of_ones_own_must_be_given():
    for name in ("coco_json", "voc_xml", "yolo_txt"):
        assert f"{name} is a folder of your own: give it as the source" in fails(name)
