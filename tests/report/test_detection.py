"""report.html of a detection run, read back: runs that went well, badly, or nowhere."""

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.report import write_detection_report
from jaxvision.report.detection_drawings import draw_mistake, draw_truth_and_found
from jaxvision.report.overlay import class_colors

from .test_classification import Texts, after

NAMES = ["Coat", "<b>Shirt</b>", "$x$ & y"]
RECORDS = [
    {"step": 50, "epoch": 0.5, "train/loss": 1.5, "train/box_loss": 0.5, "train/grad_norm": 2.0},
    {"step": 100, "epoch": 1, "val/loss": 0.75, "val/mAP": 0.5, "val/box_loss": 0.25},
]


def scene(boxes, labels, difficult=None, size=40):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    masks = np.zeros((len(boxes), size, size), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    target = {"boxes": boxes, "labels": np.array(labels, np.int32), "masks": masks}
    target["difficult"] = np.zeros(len(boxes), bool) if difficult is None else np.array(difficult)
    return target


def found(scores, boxes, labels):
    prediction = scene(boxes, labels)
    del prediction["difficult"]
    return {**prediction, "scores": np.array(scores, np.float32)}


TARGETS = [
    scene([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1]),
    scene([[5, 5, 15, 15], [20, 0, 30, 10]], [0, 2], difficult=[False, True]),
    scene([], []),
]
PREDICTIONS = [
    found([0.9, 0.8], [[0, 0, 10, 10], [20, 20, 30, 24]], [0, 1]),
    found([0.7], [[30, 30, 39, 39]], [0]),
    found([], [], []),
]
OTHER = [found([0.9], [[0, 0, 10, 10]], [1]), found([], [], []), found([], [], [])]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)


def write(folder, **changes):
    arguments = {
        "title": "A run",
        "config": {"model": "yolo"},
        "records": RECORDS,
        "class_names": NAMES,
        "predictions": PREDICTIONS,
        "targets": TARGETS,
        "image_at": lambda i: IMAGES[i],
    }
    path = write_detection_report(folder, **arguments | changes)
    document = path.read_text("utf-8")
    assert "<script" not in document
    assert 'src="http' not in document
    return document, Texts(document)


def test_a_run_that_went_well(tmp_path):
    document, page = write(tmp_path, others={"other": OTHER}, name="ours", notes=["a <note>"])
    # One coat of two is found at rank 1, the other detection of coats is wrong.
    assert after(page, "mAP at IoU 0.5") == ["25.00 %"]
    assert after(page, "Final validation loss", 2) == ["0.7500", "step 100, epoch 1"]
    assert "COCO mask AP" in page.words
    assert {"boxes", "masks"} <= set(page.words)
    assert "a <note>" in page.words
    row = page.words.index("Coat")
    assert page.words[row + 1 : row + 3] == ["2", "50.0 %"]
    place = page.words.index("Detector")
    row = page.words.index("ours", place)
    assert page.words[row : row + 7] == ["ours", "25.0 %", "50.0 %", *["0.0 %"] * 2,
                                         "25.0 %", "75.0 %"]  # fmt: skip
    for label in ("Loss by step", "Box loss by step", "mAP by step", "Kinds of errors"):
        assert f'aria-label="{label}"' in document
    assert [alt for _, alt in page.pictures] == [
        "picture 0",
        "picture 1",
        "picture 2",
        "picture 0, IoU 0.40",
        "picture 1",
        "picture 0",
        "picture 1",
    ]
    assert "None." in page.words  # of similar ones, for instance


def test_boxes_alone_and_no_pictures(tmp_path):
    def bare(pictures):
        return [{k: v for k, v in picture.items() if k != "masks"} for picture in pictures]

    arguments = {"predictions": bare(PREDICTIONS), "targets": bare(TARGETS)}
    _, page = write(tmp_path, **arguments)
    assert "COCO mask AP" not in page.words
    assert len(page.pictures) == 7
    _, page = write(tmp_path, image_at=None, **arguments)
    assert page.pictures == []


def test_nothing_found_nothing_there_and_nothing_evaluated(tmp_path):
    empty = found([], [], [])
    _, page = write(tmp_path, predictions=[empty] * 3)
    assert after(page, "mAP at IoU 0.5") == ["0.00 %"]
    assert "no detections" in page.words
    _, page = write(tmp_path, predictions=[empty] * 3, targets=[scene([], [])] * 3)
    assert after(page, "mAP at IoU 0.5") == ["not finite"]
    _, page = write(tmp_path, predictions=[], targets=[])
    assert "No picture was evaluated." in page.words
    _, page = write(tmp_path, predictions=None, records=[])
    assert "Nothing was recorded: the run stopped before its first record." in page.words
    assert "Average precision" not in page.words


def test_a_diverged_run_says_so(tmp_path):
    _, page = write(tmp_path, records=[*RECORDS, {"step": 120, "train/loss": float("nan")}])
    assert "The run diverged: train/loss was first not finite at step 120." in page.words


def test_what_does_not_fit_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="for each of 3 pictures, got 2"):
        write(tmp_path, predictions=PREDICTIONS[:2])
    with pytest.raises(ValueError, match="other names than 'ours'"):
        write(tmp_path, others={"ours": OTHER}, name="ours")
    assert list(tmp_path.iterdir()) == []


def test_only_confident_detections_are_drawn_and_truth_stands_on_the_left():
    arguments = (IMAGES[0], TARGETS[0], PREDICTIONS[0], NAMES)
    all_of_them = draw_truth_and_found(*arguments, 0.1)
    assert all_of_them.shape == (22 + 360, 360 + 8 + 360, 3)
    none = draw_truth_and_found(*arguments, 0.95)
    right = (slice(22, None), slice(368, None))
    np.testing.assert_array_equal(none[right], IMAGES[0].repeat(9, axis=0).repeat(9, axis=1))
    np.testing.assert_array_equal(none[:, :360], all_of_them[:, :360])
    assert (all_of_them[right] != none[right]).any()


def test_a_mistake_shows_the_detection_and_what_decided_it():
    coat, shirt = class_colors(3)[:2]
    drawn = draw_mistake(IMAGES[0], TARGETS[0], 0, PREDICTIONS[0], 1, NAMES)
    assert (drawn == coat).all(axis=-1).any()
    assert (drawn == shirt).all(axis=-1).any()
    alone = draw_mistake(IMAGES[0], TARGETS[0], -1, PREDICTIONS[0], 1, NAMES)
    assert not (alone == coat).all(axis=-1).any()
    assert (alone == shirt).all(axis=-1).any()


def test_curves_are_called_what_people_call_their_metrics(tmp_path):
    names = {"coco_ap": "COCO AP", "mask_ap50": "Mask AP50", "mAP50_voc07": "mAP50 VOC07"}
    names |= {"loss_rpn_box_reg": "Loss RPN box reg", "iou": "IoU"}
    records = [*RECORDS, {"step": 50, "epoch": 1, **{f"val/{key}": 0.5 for key in names}}]
    document, _ = write(tmp_path, records=records)
    for name in names.values():
        assert f'aria-label="{name} by step"' in document
