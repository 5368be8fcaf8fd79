"""COCO's scores against pycocotools, which is called here on its own, with its own format."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxvision.errors import UserError
from jaxvision.metrics import coco_scores

from .scenes import found, nothing, random_pictures, there

NAMES = ["a", "b", "c"]
ORDER = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
ORDER += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


def pycocotools_scores(predictions, targets, kind):
    """Returns pycocotools' 12 numbers and each class's AP, -1 where there is nothing to score."""
    results, annotations = [], []
    for i, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        for j in range(len(prediction["labels"])):
            x1, y1, x2, y2 = (float(v) for v in prediction["boxes"][j])
            row = {"image_id": i + 1, "category_id": int(prediction["labels"][j]) + 1}
            row |= {"score": float(prediction["scores"][j])}
            if kind == "bbox":
                row["bbox"] = [x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0)]
            else:
                pixels = np.asfortranarray(prediction["masks"][j].astype(np.uint8))
                row["segmentation"] = run_length.encode(pixels)
            results.append(row)
        for j in range(len(target["labels"])):
            x1, y1, x2, y2 = (float(v) for v in target["boxes"][j])
            row = {"id": len(annotations) + 1, "image_id": i + 1}
            row |= {"category_id": int(target["labels"][j]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            row |= {"iscrowd": int(target["difficult"][j]), "area": (x2 - x1) * (y2 - y1)}
            if "masks" in target:
                pixels = np.asfortranarray(target["masks"][j].astype(np.uint8))
                row["segmentation"] = run_length.encode(pixels)
                row["area"] = float(target["masks"][j].sum())
            annotations.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1, "height": 200, "width": 200} for i in range(len(targets))],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = [
        precision[:, :, k][precision[:, :, k] > -1].mean()
        if (precision[:, :, k] > -1).any()
        else -1
        for k in range(len(NAMES))
    ]
    return evaluation.stats, np.array(per_class)


def with_masks(pictures, side=200, seed=0):
    """Gives every box an ellipse in it for a mask, cut off at the picture's border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] + 0.5
    masked = []
    for picture in pictures:
        boxes = picture["boxes"].astype(np.float64).reshape(-1, 4)
        masks = np.zeros((len(boxes), side, side), bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            width, height = max(x2 - x1, 1e-6) / 2, max(y2 - y1, 1e-6) / 2
            across = ((x - (x1 + x2) / 2) / width) ** 2 + ((y - (y1 + y2) / 2) / height) ** 2
            mask[:] = across <= rng.uniform(0.6, 1.2)
        masked.append({**picture, "masks": masks})
    return masked


def as_pycocotools(scores):
    values = [scores.summary[name] for name in ORDER]
    return np.nan_to_num(values, nan=-1.0), np.nan_to_num(scores.per_class, nan=-1.0)


@pytest.mark.parametrize("integer", [False, True])
def test_boxes_equal_pycocotools(integer, capsys):
    compared = 0
    for seed in range(15):
        predictions, targets = random_pictures(seed, pictures=12, side=200, integer=integer)
        scores = coco_scores(predictions, targets, NAMES)["bbox"]
        assert capsys.readouterr().out == ""
        ours, expected = as_pycocotools(scores), pycocotools_scores(predictions, targets, "bbox")
        np.testing.assert_allclose(ours[0], expected[0], atol=1e-6)
        np.testing.assert_allclose(ours[1], expected[1], atol=1e-6)
        compared += int((expected[0] > 0).sum())
    assert compared > 100


def test_masks_and_boxes_together_equal_pycocotools():
    predictions, targets = random_pictures(1, pictures=15, side=200)
    predictions, targets = with_masks(predictions), with_masks(targets, seed=1)
    scores = coco_scores(predictions, targets, NAMES, ("bbox", "segm"))
    for kind in ("bbox", "segm"):
        ours, expected = (
            as_pycocotools(scores[kind]),
            pycocotools_scores(predictions, targets, kind),
        )
        np.testing.assert_allclose(ours[0], expected[0], atol=1e-6)
        np.testing.assert_allclose(ours[1], expected[1], atol=1e-6)
    assert scores["segm"].summary["AP"] != pytest.approx(scores["bbox"].summary["AP"], abs=1e-3)


def test_more_detections_than_count_and_no_objects_of_a_class():
    rng = np.random.default_rng(0)
    rows = [(0, rng.random(), x, x, x + 30, x + 30) for x in rng.uniform(0, 150, 140)]
    predictions, targets = [found(*rows)], [there((0, 40, 40, 70, 70), (1, 0, 0, 99, 99))]
    ours = as_pycocotools(coco_scores(predictions, targets, NAMES)["bbox"])
    expected = pycocotools_scores(predictions, targets, "bbox")
    np.testing.assert_allclose(ours[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(ours[1], expected[1], atol=1e-6)
    assert ours[1][2] == -1
    assert ours[1][1] == 0


def test_run_lengths_are_masks_too():
    predictions, targets = random_pictures(2, pictures=4, side=200)
    predictions, targets = with_masks(predictions), with_masks(targets)
    expected = coco_scores(predictions, targets, NAMES, ("segm",))["segm"]
    for picture in (*predictions, *targets):
        pixels = np.asfortranarray(picture["masks"].transpose(1, 2, 0).astype(np.uint8))
        picture["masks"] = run_length.encode(pixels)
    scores = coco_scores(predictions, targets, NAMES, ("segm",))["segm"]
    assert scores.summary == pytest.approx(expected.summary, nan_ok=True)


def test_nothing_found_scores_zero_and_nothing_there_scores_nan():
    found_nothing = coco_scores([nothing()], [there((0, 0, 0, 40, 40))], NAMES)["bbox"]
    assert found_nothing.summary["AP"] == found_nothing.summary["AR_100"] == 0.0
    assert np.isnan(found_nothing.summary["AP_small"])
    np.testing.assert_array_equal(found_nothing.per_class, [0.0, np.nan, np.nan])
    masked = with_masks([nothing()])
    assert coco_scores(masked, masked_truth(), NAMES, ("segm",))["segm"].summary["AP"] == 0.0
    for targets in ([], [there()], [there((0, 0, 0, 9, 9), difficult=[0])]):
        predictions = [found((0, 0.9, 0, 0, 9, 9))] * len(targets)
        scores = coco_scores(predictions, targets, NAMES)["bbox"]
        assert np.isnan([*scores.summary.values(), *scores.per_class]).all()


def masked_truth():
    return with_masks([there((0, 0, 0, 40, 40))])


def test_a_targets_own_areas_and_other_numbers_of_detections():
    target = {**there((0, 0, 0, 40, 40)), "area": np.array([100.0])}
    prediction = found((0, 0.9, 100, 0, 140, 40), (0, 0.8, 0, 0, 40, 40))
    scores = coco_scores([prediction], [target], NAMES, max_dets=(1, 2))["bbox"]
    assert list(scores.summary)[6:8] == ["AR_1", "AR_2"]
    assert (scores.summary["AR_1"], scores.summary["AR_2"]) == (0.0, 1.0)
    # The wrong detection is of medium size by its own area, and so not counted among the small.
    assert scores.summary["AP_small"] == 1.0
    assert np.isnan(scores.summary["AP_medium"])


def test_masks_that_do_not_fit_are_named():
    prediction, target = found((0, 0.9, 0, 0, 4, 4)), there((0, 0, 0, 4, 4))
    with pytest.raises(UserError, match='objects of picture 0: expected masks, which the "segm"'):
        coco_scores([prediction], [target], NAMES, ("segm",))
    masked = with_masks([target])
    with pytest.raises(UserError, match="predictions of picture 0: expected masks"):
        coco_scores([prediction], masked, NAMES, ("segm",))
    smaller = with_masks([prediction], side=100)
    with pytest.raises(UserError, match=r"picture 0: expected masks of one size, got \(200, 200\)"):
        coco_scores(smaller, masked, NAMES, ("segm",))
    wrong = {**prediction, "masks": np.ones((1, 200, 200))}
    with pytest.raises(UserError, match=r"expected masks bool .* got float64 \[1, 200, 200\]"):
        coco_scores([wrong], masked, NAMES, ("segm",))
    with pytest.raises(ValueError, match='expected iou_types of "bbox", "segm" and "keypoints"'):
        coco_scores([], [], NAMES, ("boxes",))
    with pytest.raises(ValueError, match=r"growing numbers of detections, got \[10, 1\]"):
        coco_scores([], [], NAMES, max_dets=(10, 1))
