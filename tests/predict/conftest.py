"""Runs whose weights are set by hand."""

import pytest

from jaxvision.models import detection, zoo

from .bright_boxes import CLASSES, SIDE, BrightBoxes, BrightMaps, find_bright, save_run


@pytest.fixture(scope="package")
def bright_models():
    """The two modules where the library's own are, for as long as the tests last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, "bright_boxes", BrightBoxes)
        patch.setitem(zoo.MODELS, "bright_maps", BrightMaps)
        patch.setitem(detection.DETECTORS, BrightBoxes, find_bright)
        yield


@pytest.fixture(scope="package")
def detector_run(bright_models, tmp_path_factory):
    letterbox = {"kind": "letterbox", "size": [SIDE, SIDE], "fill": 114}
    meta = {"model": "bright_boxes", "task": "detection", "class_names": list(CLASSES)}
    meta["preprocessing"] = {**letterbox, "center": True}
    return save_run(tmp_path_factory.mktemp("bright") / "run", meta)


@pytest.fixture(scope="package")
def segmenter_run(bright_models, tmp_path_factory):
    meta = {"model": "bright_maps", "task": "segmentation"}
    meta["class_names"] = ["background", *CLASSES]
    meta["preprocessing"] = {"kind": "shorter_side", "shortest": 64, "longest": 256}
    meta["preprocessing"] |= {"multiple": 32, "antialias": True}
    return save_run(tmp_path_factory.mktemp("bright_maps") / "run", meta)
