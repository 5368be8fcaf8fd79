"""Objects with masks or keypoints: chosen, drawn, and written in COCO's format."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from jaxvision.cli.inputs import Frame
from jaxvision.cli.outputs import to_record, write_coco, write_json
from jaxvision.errors import UserError
from jaxvision.metrics.coco import coco_scores, masks_of
from jaxvision.models import get_model
from jaxvision.ops import BoxMasks
from jaxvision.predict import Detections, Predictor

SIZE = (48, 64)
BOXES = np.array([[4.0, 6.0, 30.0, 40.0], [32.0, 8.0, 60.0, 44.0]], np.float32)
POINTS = np.array([[[10.0, 20.0], [20.0, 30.0]], [[40.0, 20.0], [50.0, 25.0]]], np.float32)


def found(**more):
    scores, labels = np.array([0.9, 0.4], np.float32), np.array([0, 1])
    return Detections(BOXES, scores, labels, ("a", "b"), SIZE, **more)


@pytest.fixture
def with_masks():
    halves = np.zeros((2, 28, 28), np.float32)
    halves[:, :14] = 1
    return found(masks=BoxMasks(halves, BOXES, SIZE))


@pytest.fixture
def with_keypoints():
    return found(keypoints=POINTS, keypoint_scores=np.ones((2, 2), np.float32))


def frame():
    return Frame(Path("7.png"), 0, np.full((*SIZE, 3), 90, np.uint8))


def test_the_best_keep_their_masks_and_keypoints(with_masks, with_keypoints):
    best = with_masks.above(0.5)
    assert len(best) == len(best.masks) == 1
    np.testing.assert_array_equal(best.masks[0], with_masks.masks[0])
    best = with_keypoints.above(0.5)
    np.testing.assert_array_equal(best.keypoints, POINTS[:1])
    assert best.keypoint_scores.shape == (1, 2)


def test_predictions_of_masks_are_run_lengths_that_metrics_take(with_masks):
    prediction = with_masks.as_prediction()
    np.testing.assert_array_equal(masks_of(prediction), np.stack(list(with_masks.masks)))
    assert masks_of({"masks": []}) is masks_of({}) is None
    scores = coco_scores([prediction], [prediction], ("a", "b"), ("bbox", "segm"))
    assert scores["segm"].summary["AP"] == pytest.approx(1)
    assert "keypoints" not in prediction


def test_they_are_drawn(with_masks, with_keypoints):
    image = frame().image
    scale = with_masks.draw(image).shape[0] // SIZE[0]
    masked, pointed, plain = (x.draw(image) for x in (with_masks, with_keypoints, found()))
    changed = (masked != plain).any(axis=-1)
    inside = changed[8 * scale : 20 * scale, 6 * scale : 28 * scale]
    assert inside.mean() > 0.7  # the upper half is tinted
    assert not changed[26 * scale : 38 * scale, 8 * scale : 28 * scale].any()
    changed = np.argwhere((pointed != plain).any(axis=-1))
    assert len(changed)
    places = POINTS.reshape(-1, 2)[:, ::-1] * scale
    away = np.abs(changed[:, None] - places[None]).max(axis=2).min(axis=1)
    assert away.max() <= 5


def test_cocos_results_have_them(with_masks, with_keypoints, tmp_path):
    assert "mask" not in to_record(frame(), with_masks)["objects"][0]
    record = to_record(frame(), with_masks, masks=True)
    write_json(tmp_path / "all.json", [record])
    write_coco(tmp_path / "coco.json", [record], ("a", "b"))
    rows = json.loads((tmp_path / "coco.json").read_text())
    assert [row["image_id"] for row in rows] == [7, 7]
    assert [row["category_id"] for row in rows] == [1, 2]
    areas = coco.area([row["segmentation"] for row in rows])
    np.testing.assert_array_equal(areas, [mask.sum() for mask in with_masks.masks])
    write_coco(tmp_path / "points.json", [to_record(frame(), with_keypoints)], ("a", "b"))
    rows = json.loads((tmp_path / "points.json").read_text())
    assert rows[0]["keypoints"] == [10.0, 20.0, 1, 20.0, 30.0, 1]
    assert "segmentation" not in rows[0]


def test_flip_is_for_detectors_without_keypoints():
    meta = {"class_names": ["a"], "input_shape": (64, 64, 3)}
    with pytest.raises(UserError, match="flip is for detection, got a model for classification"):
        Predictor(get_model("lenet"), {}, meta, flip=True)
    model, meta = get_model("keypointrcnn_resnet50_fpn"), {**meta, "task": "detection"}
    with pytest.raises(UserError, match="a KeypointRCNN cannot look at mirror images"):
        Predictor(model, {}, meta, flip=True)
