"""report.html of a segmentation run, read back."""

import numpy as np
import pytest

from jaxvision.report import write_segmentation_report
from jaxvision.report.segmentation import draw_maps

from .test_classification import Texts, after

NAMES = ["background", "<b>Coat</b>", "Bag"]
RECORDS = [
    {"step": 50, "epoch": 0.5, "train/loss": 1.5},
    {"step": 100, "epoch": 1, "val/loss": 0.75, "val/mean_iou": 0.5, "val/pixel_accuracy": 0.875},
]
LABELS = np.zeros((3, 16, 16), np.uint8)
LABELS[:, 4:12, 4:12] = 1
LABELS[2, 0] = 255
PREDICTIONS = np.zeros((3, 16, 16), np.int32)
PREDICTIONS[:, 4:12, 2:8] = 1
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def write(folder, **changes):
    arguments = {
        "title": "A run",
        "config": {"model": "segnet"},
        "records": RECORDS,
        "class_names": NAMES,
        "labels": LABELS,
        "predictions": PREDICTIONS,
        "images": IMAGES,
    }
    path = write_segmentation_report(folder, **arguments | changes)
    return Texts(path.read_text("utf-8"))


def test_a_run_that_went_well(tmp_path):
    page = write(tmp_path)
    # In each picture half a coat of 64 pixels is missed and 16 are added; a bag is nowhere.
    background = (3 * 176 - 16) / (3 * 208 - 16 + 3 * 16)
    assert after(page, "Mean IoU") == [f"{100 * (background + 32 / 80) / 2:.2f} %"]
    assert after(page, "Pixel accuracy") == [f"{100 * (1 - 3 * 48 / 752):.2f} %"]
    assert after(page, "Final validation mean IoU", 2) == ["50.00 %", "step 100, epoch 1"]
    row = page.words.index("<b>Coat</b>")
    assert page.words[row + 1] == "40.0 %"
    assert page.words[page.words.index("Bag") + 1] == "-"
    assert {"1 px", "8 px"} <= set(page.words)
    assert [alt for _, alt in page.pictures] == ["legend", "picture 0", "picture 1", "picture 2"]


def test_several_networks_stand_side_by_side(tmp_path):
    page = write(tmp_path, others={"perfect": np.where(LABELS == 255, 0, LABELS)}, name="half")
    row = page.words.index("<b>Coat</b>")
    assert page.words[row + 1 : row + 3] == ["40.0 %", "100.0 %"]
    drawn = draw_maps(IMAGES[0], LABELS[0], {"a": LABELS[0], "b": LABELS[0]}, 3)
    side = 16 * 16  # a picture of 16 pixels is enlarged sixteenfold
    assert drawn.shape == (22 + side, 4 * side + 3 * 8, 3)
    np.testing.assert_array_equal(drawn[:, side + 8 : 2 * side + 8][22:], drawn[22:, -side:])


def test_nothing_evaluated_and_nothing_recorded(tmp_path):
    page = write(tmp_path, labels=LABELS[:0], predictions=PREDICTIONS[:0], images=IMAGES[:0])
    assert "No picture was evaluated." in page.words
    page = write(tmp_path, labels=None, predictions=None, records=[])
    assert "Nothing was recorded: the run stopped before its first record." in page.words
    page = write(tmp_path, images=None)
    assert page.pictures == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": PREDICTIONS[:2]}, r"one shape \[n, h, w\], got \[3, 16, 16\] and \[2"),
        ({"predictions": PREDICTIONS + 3}, "of this run from 0 to 2, got 3 to 4"),
        ({"images": IMAGES[:, :8]}, r"expected pictures \[3, 16, 16, 3\], got shape \[3, 8"),
        ({"others": {"this run": PREDICTIONS}}, "other names than 'this run'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []
