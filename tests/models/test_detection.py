"""`make_detector`: a network's outputs, decoded, chosen, clipped, in one compiled function."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from jaxvision.models import abstract_variables, get_model
from jaxvision.models.detection import make_detector
from jaxvision.models.equal import one_for_equal
from jaxvision.models.proposal_detection import make_proposal_detector
from jaxvision.ops import decode_yolov1, decode_yolox, select_detections

SMALL = {"backbone": "resnet18", "neck": (), "num_classes": 3}
SMALL["backbone_options"] = {"stem": "small", "width": 4, "stage_sizes": (1,)}
MEAN, STD = 0.5, 0.25


def yolov1():
    model = get_model("yolov1", **SMALL)
    return model, True, lambda x, size: decode_yolov1(x, size, 3, bounded=True)


def yolox():
    model = get_model("yolox_s", num_classes=3, width=0.125, depth=0.1, stem="small")
    return model, False, lambda x, size: decode_yolox(x, (4, 8, 16))


@pytest.mark.parametrize("make", [yolov1, yolox])
def test_what_is_found_is_decoded_chosen_and_clipped(make):
    model, multi_label, decode = make()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    sizes = np.array([[32, 32], [9, 20]], np.int32)
    normalized = ((images / 255.0 - MEAN) / STD).astype(np.float32)
    # Boxes of all sizes and places, also beyond the picture. (Compiling `init` takes long.)
    shapes = abstract_variables(model, (32, 32, 3))
    variables = jax.tree.map(
        lambda leaf: rng.normal(0.02, 0.1, leaf.shape).astype(leaf.dtype), shapes
    )
    variables["batch_stats"] = jax.tree.map(lambda x: np.abs(x) + 0.5, variables["batch_stats"])
    options = {"score_threshold": 0.0, "iou_threshold": 0.4, "max_detections": 12}
    detect = make_detector(model, mean=MEAN, std=STD, **options)
    found = jax.tree.map(np.asarray, detect(variables, images, sizes))

    boxes, scores = jax.jit(lambda v, x: decode(model.apply(v, x), (32, 32)))(variables, normalized)
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    select = jax.jit(partial(select_detections, multi_label=multi_label, **options))
    for i, (h, w) in enumerate(sizes.tolist()):
        most = np.array([w, h, w, h], np.float32)
        clipped = boxes[i].clip(0, most)
        inside = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        # One without an area is no candidate.
        expected = select(boxes[i], np.where(inside[:, None], scores[i], -1))
        assert found.valid[i].sum() == np.asarray(expected.valid).sum() > 0
        np.testing.assert_array_equal(found.labels[i], expected.labels)
        np.testing.assert_allclose(found.scores[i], expected.scores, atol=1e-5)
        wanted = np.asarray(expected.boxes).clip(0, most)
        np.testing.assert_allclose(found.boxes[i], wanted, atol=1e-3)
    detect(variables, images[::-1], sizes[::-1])
    assert detect._cache_size() == 1


def test_equal_detectors_are_one_function():
    """What validation has compiled, the test of a restored checkpoint does not compile again."""
    options = {"mean": [0.4, 0.5, 0.6], "std": 0.25}
    first = make_detector(get_model("yolov1", **SMALL), **options)
    again = get_model("yolov1", **json.loads(json.dumps(SMALL)))
    assert make_detector(again, mean=np.array([0.4, 0.5, 0.6]), std=np.array(0.25)) is first
    for other in ({"std": 0.5}, {"score_threshold": 0.5}, {"flip": True}):
        assert make_detector(again, **{**options, **other}) is not first
    proposals = [get_model("fastrcnn_vgg16", num_classes=k) for k in (3, 3, 4)]
    of_three, same, of_four = map(make_proposal_detector, proposals)
    assert of_three is same is not of_four


def test_what_has_no_hash_is_not_shared():
    make = one_for_equal(lambda layers: lambda: layers)
    assert make((8, 8)) is make((8, 8))
    assert make([8, 8]) is not make([8, 8])


def test_what_detects_nothing_is_refused():
    with pytest.raises(ValueError, match=r"a detector \(.*YOLOX.*\), got LeNet"):
        make_detector(get_model("lenet"))
