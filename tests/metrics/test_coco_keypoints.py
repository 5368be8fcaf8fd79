"""COCO's average precision of keypoints against pycocotools' own."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxvision.errors import UserError
from jaxvision.metrics import coco_scores

COLUMNS = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR_20")


def made_up(points, pictures=12, classes=2):
    rng = np.random.default_rng(points)
    found, there = [], []
    for _ in range(pictures):
        count = int(rng.integers(1, 5))
        corner = rng.uniform(0, 100, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(20, 150, (count, 2))], axis=1)
        sides = boxes[:, None, 2:] - boxes[:, None, :2]
        xy = boxes[:, None, :2] + rng.random((count, points, 2)) * sides
        seen = rng.integers(0, 3, (count, points, 1))
        labels = rng.integers(0, classes, count)
        keypoints = np.concatenate([np.where(seen > 0, xy, 0), seen], axis=2)
        there.append({"boxes": boxes, "labels": labels, "keypoints": keypoints})
        there[-1]["difficult"] = rng.random(count) < 0.1
        order = rng.permutation(np.repeat(np.arange(count), 2))
        off = xy[order] + rng.normal(0, 0.06, (len(order), points, 2)) * sides[order]
        found.append({"boxes": boxes[order], "labels": labels[order], "keypoints": off})
        found[-1]["scores"] = rng.random(len(order))
    return found, there


def by_pycocotools(found, there, classes, sigmas):
    sides = []
    for each, truth in ((there, True), (found, False)):
        rows = []
        for i, picture in enumerate(each):
            for j, box in enumerate(picture["boxes"]):
                points = picture["keypoints"][j]
                if not truth:
                    points = np.pad(points, ((0, 0), (0, 1)), constant_values=1)
                x1, y1, x2, y2 = box.tolist()
                area = (x2 - x1) * (y2 - y1)
                row = {"id": len(rows) + 1, "image_id": i + 1, "area": area}
                row |= {"category_id": int(picture["labels"][j]) + 1}
                row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "keypoints": points.ravel().tolist()}
                row["num_keypoints"] = int((points[:, 2] > 0).sum())
                row["iscrowd"] = int(truth and picture["difficult"][j])
                rows.append(row if truth else {**row, "score": float(picture["scores"][j])})
        sides.append(COCO())
        sides[-1].dataset = {
            "images": [{"id": i + 1, "height": 300, "width": 300} for i in range(len(each))],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
            "annotations": rows,
        }
        sides[-1].createIndex()
    evaluation = COCOeval(*sides, iouType="keypoints")
    evaluation.params.kpt_oks_sigmas = np.array(sigmas)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


COCOS = COCOeval(iouType="keypoints").params.kpt_oks_sigmas


@pytest.mark.parametrize(
    ("points", "sigmas", "given"),
    [(17, COCOS, None), (4, [0.05] * 4, None), (3, [0.1, 0.02, 0.07], [0.1, 0.02, 0.07])],
)
def test_equals_pycocotools(points, sigmas, given):
    found, there = made_up(points)
    ours = coco_scores(found, there, ["a", "b"], ("bbox", "keypoints"), sigmas=given)
    with contextlib.redirect_stdout(io.StringIO()):
        stats = by_pycocotools(found, there, 2, sigmas)
    summary = ours["keypoints"].summary
    got = [summary[name] for name in COLUMNS]
    np.testing.assert_allclose(got, stats[[0, 1, 2, 3, 4, 5]], rtol=1e-6)
    assert 0.05 < summary["AP"] < 0.95
    assert summary["AP_medium"] != summary["AP_large"]


def test_classes_and_pictures_without_objects_count_too():
    found, there = made_up(4, pictures=2, classes=1)
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
    there.append({**nothing, "keypoints": np.zeros((0, 4, 3))})
    found.append({**nothing, "scores": np.zeros(0), "keypoints": np.zeros((0, 4, 2))})
    scores = coco_scores(found, there, ["a", "b", "c"], ("keypoints",))["keypoints"]
    assert np.isnan(scores.per_class).tolist() == [False, True, True]
    assert scores.summary["AP"] == pytest.approx(scores.per_class[0])


def test_wrong_keypoints_are_one_line():
    found, there = made_up(4, pictures=2)
    with pytest.raises(UserError, match=r"the objects of picture 1: expected keypoints .* none"):
        coco_scores(found, [there[0], {**there[1], "keypoints": None}], "ab", ("keypoints",))
    fewer = [{**each, "keypoints": each["keypoints"][:, :3]} for each in found]
    with pytest.raises(UserError, match=r"as many keypoints everywhere, got \[3, 4\]"):
        coco_scores(fewer, there, "ab", ("keypoints",))
