"""Detection, localisation and segmentation, from a checkpoint to a picture's own pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model
from jaxvision.predict import Detections, Localization, Predictor, Segmentation, published
from jaxvision.predict.preparation import prepare
from jaxvision.predict.published import load_published
from jaxvision.predict.tasks import TASKS
from jaxvision.train import create_state
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.optim import sgd
from jaxvision.weights import to_torch, write_torch
from jaxvision.weights.darknet_cfg import darknet_meta

from .bright_boxes import CLASSES, SELECTIONS, save_run, scene, tolerance, write_mixed_pictures


@pytest.fixture(scope="module")
def detector(detector_run):
    return Predictor.from_checkpoint(detector_run)


@pytest.fixture(scope="module")
def segmenter(segmenter_run):
    return Predictor.from_checkpoint(segmenter_run)


SMALL = {"num_classes": 3, "backbone_options": {"stem": "small", "width": 4, "stage_sizes": (1,)}}


@pytest.mark.parametrize(
    ("task", "name", "options"),
    [
        ("classification", "lenet", {"num_classes": 3}),
        ("localization", "localizer", SMALL),
        ("segmentation", "encoder_decoder", {"num_classes": 3, "widths": (4, 8)}),
    ],
)
def test_pictures_are_normalised_as_in_training(task, name, options):
    model, rng = get_model(name, **options), np.random.default_rng(0)
    variables = random_variables(model, (32, 32, 3))
    images, sizes = rng.integers(0, 256, (2, 32, 32, 3), np.uint8), np.full((2, 2), 32)
    mean, std = np.array([0.2, 0.4, 0.6]), np.array([0.1, 0.2, 0.4])
    meta = {"mean": mean.tolist(), "std": std.tolist(), "class_names": ["a", "b", "c"]}
    found = TASKS[task].make_infer(model, meta, {})(variables, images, sizes)
    normalized = np.float32((images / 255 - mean) / std)
    outputs = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, normalized)
    if task == "segmentation":
        expected = np.asarray(outputs["out"]).argmax(axis=-1)
        assert (np.asarray(found) == expected).mean() > 0.999  # but for ties
        return
    logits = outputs if task == "classification" else outputs["logits"]
    probabilities = found if task == "classification" else found["probabilities"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


# --------------------------------------------------------------------------------------- detection
def test_boxes_are_in_each_pictures_own_pixels(detector, tmp_path):
    good = write_mixed_pictures(tmp_path)
    results = detector([tmp_path / name for name in good])
    for (name, box), found in zip(good.items(), results, strict=True):
        assert isinstance(found, Detections)
        assert found.names()[0] == "bright", name
        off = np.abs(found.boxes[0] - np.array(box)).max()
        assert off <= tolerance(found.size), (name, found.boxes[0])
        assert (found.boxes >= 0).all()
    sizes = {name: found.size for name, found in zip(good, results, strict=True)}
    assert sizes["exif6.jpg"] == sizes["photo.jpg"] == (80, 120)
    assert sizes["large.jpg"] == (4000, 6000)
    assert sizes["dot.png"] == (1, 1)
    # All were letterboxed to one size: one compile a batch size, and no more for another picture.
    detector(scene())
    compiled = detector._infer._cache_size()
    detector([scene(30, 90), scene(200, 111)])
    detector(np.zeros((7, 5), np.uint8))
    assert detector._infer._cache_size() == compiled <= 2


def test_detections_read_well(detector):
    found = detector(scene())
    assert found.names() == list(CLASSES)
    assert found.class_names == CLASSES
    np.testing.assert_allclose(found.boxes[1], (70, 30, 110, 70), atol=tolerance(found.size))
    assert len(found) == 2
    assert found.scores[0] == pytest.approx(1, abs=0.01)
    weaker = Detections(
        found.boxes,
        np.array([0.9, 0.4]),
        found.labels,
        CLASSES,
        found.size,
        np.ones((2, 80, 120), bool),
    )
    assert weaker.above(0.5).names() == ["bright"]
    assert weaker.above(0.4).masks.shape == (2, 80, 120)
    assert set(weaker.above(1.0).as_prediction()) == {"boxes", "scores", "labels", "masks"}
    assert len(detector(np.zeros((50, 40, 3), np.uint8))) == 0
    assert detector([]) == []


def test_a_drawing_has_its_boxes(detector):
    image = scene()
    drawn = detector(image).draw(image)
    assert drawn.shape[0] % 80 == drawn.shape[1] % 120 == 0
    scale = drawn.shape[0] // 80
    enlarged = image.repeat(scale, 0).repeat(scale, 1)
    changed = np.argwhere((drawn != enlarged).any(axis=-1))
    assert changed[:, 1].min() // scale in range(7, 13)  # the white box begins at column 10
    large = np.zeros((3000, 4000, 3), np.uint8)
    assert max(detector(large).draw(large).shape) == 1920


def test_one_picture_or_many_give_the_same(detector):
    pictures = [scene(), scene(90, 200), scene(300, 120)]
    for one, many in zip(map(detector, pictures), detector(pictures), strict=True):
        np.testing.assert_array_equal(one.boxes, many.boxes)
        np.testing.assert_array_equal(one.labels, many.labels)
    on_device = detector(jnp.asarray(pictures[0]))
    np.testing.assert_array_equal(on_device.boxes, detector(pictures[0]).boxes)


def test_thresholds_come_from_the_caller(detector_run):
    strict = Predictor.from_checkpoint(detector_run, score_threshold=1.01)
    assert len(strict(scene())) == 0
    given = {"score_threshold": 0.2, "iou_threshold": 0.7, "max_detections": 5}
    assert len(Predictor.from_checkpoint(detector_run, **given, flip=True)(scene())) == 2
    assert vars(SELECTIONS[-1]) == given


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"kind": "letterbox", "size": [416, 640], "center": True},
        {"kind": "letterbox", "size": [640, 640], "center": False},
        {"kind": "shortest_side", "shortest": 64, "longest": 200, "multiple": 32},
        {"kind": "shorter_side", "shortest": 64, "longest": 200},
        {"kind": "resize", "size": [64, 96]},
    ],
)
def test_known_rectangles_survive_the_way_there_and_back(preprocessing):
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 5000), (3000, 2), (4000, 6000), *rng.integers(1, 900, (16, 2)).tolist()]
    for h, w in sizes:
        prepared = prepare(np.zeros((h, w, 3), np.uint8), preprocessing, (64, 64))
        corners = rng.uniform(0, 1, (20, 2, 2)) * np.array([w, h])
        boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
        placement = prepared.placement
        canvas = placement.to_canvas(boxes)
        np.testing.assert_allclose(placement.to_original(canvas), boxes, atol=0.01)
        assert prepared.image.shape[:2] == placement.canvas
        ends = np.array([prepared.size[1], prepared.size[0]] * 2)
        assert (canvas <= ends + 0.01).all()
        whole = preprocessing["kind"] in ("letterbox", "resize")
        assert prepared.size == (placement.canvas if whole else placement.resized)


def test_darknets_pictures_are_stretched_as_its_own_reader_says():
    meta, class_names = published._expected("yolov1", "yolov1.weights")
    assert meta == darknet_meta()
    assert len(class_names) == 20
    prepared = prepare(scene(160, 120), meta["preprocessing"], meta["input_shape"][:2])
    assert prepared.image.shape == (448, 448, 3)
    assert prepared.placement.resized == (448, 448)


def test_extremes_keep_to_a_bound():
    wide = {"kind": "shorter_side", "shortest": 520, "longest": 2080, "multiple": 32}
    assert prepare(np.zeros((1, 9000, 3), np.uint8), wide, (1, 1)).image.shape == (32, 2080, 3)
    assert prepare(np.zeros((375, 500, 3), np.uint8), wide, (1, 1)).image.shape == (544, 704, 3)
    with pytest.raises(UserError, match="'magic'"):
        prepare(np.zeros((4, 4, 3), np.uint8), {"kind": "magic"}, (4, 4))


# ------------------------------------------------------------------- segmentation and localisation
def test_maps_have_the_pictures_own_size(segmenter):
    pictures = [scene(), scene(160, 120), np.zeros((1, 1, 3), np.uint8)]
    for picture, result in zip(pictures, segmenter(pictures), strict=True):
        assert isinstance(result, Segmentation)
        assert result.labels.shape == picture.shape[:2]
    result = segmenter(scene())
    expected = np.zeros((80, 120), int)
    expected[20:50, 10:60], expected[30:70, 70:110] = 1, 2
    wrong = result.labels != expected
    assert wrong.mean() < 0.06
    assert not wrong[25:45, 15:55].any()
    assert not wrong[35:65, 75:105].any()
    shares = result.shares()
    assert list(shares) == ["background", "red", "bright"]
    assert sum(shares.values()) == pytest.approx(1)
    assert result.draw(scene()).ndim == 3


def test_sizes_of_maps_go_to_buckets(segmenter):
    segmenter(scene(100, 150))
    compiled = segmenter._infer._cache_size()
    segmenter(scene(100, 148))
    segmenter(scene(200, 300))
    assert segmenter._infer._cache_size() == compiled


def test_a_localizer_gives_its_box_in_own_pixels(tmp_path):
    backbone_options = {"stem": "small", "width": 4, "stage_sizes": (1,)}
    options = {"num_classes": 2, "backbone": "resnet18", "backbone_options": backbone_options}
    model = get_model("localizer", **options)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    meta = {"model": "localizer", "options": options, "input_shape": (16, 16, 3)}
    meta |= {"task": "localization", "class_names": ["a", "b"], "mean": 0.5, "std": 0.25}
    with CheckpointStore(tmp_path / "run") as store:
        store.save(create_state(variables, sgd(0.1)), meta=meta)
    predictor = Predictor.from_checkpoint(tmp_path / "run")
    results = predictor([scene(), scene(100, 300)])
    assert all(isinstance(result, Localization) for result in results)
    # Before training the box is the whole picture: of each in its own pixels.
    np.testing.assert_allclose(results[0].box, (0, 0, 120, 80), atol=0.01)
    np.testing.assert_allclose(results[1].box, (0, 0, 300, 100), atol=0.01)
    assert results[0].name in ("a", "b")
    assert results[0].draw(scene()).shape[2] == 3
    with pytest.raises(ValueError, match="got one for localization"):
        predictor.probabilities(np.zeros((1, 16, 16, 3), np.uint8))


# ---------------------------------------------------------------------------------- from weights
def weights_file(path, name, **options):
    model = get_model(name, **options)
    shapes = abstract_variables(model, (64, 64, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.2, leaf.shape).astype(leaf.dtype), shapes
    )
    write_torch(path, to_torch(name, variables, **options))
    return path


def test_published_detectors_come_with_their_letterbox(tmp_path):
    options = {"width": 0.125, "depth": 0.1}
    path = weights_file(tmp_path / "nano.pth", "yolox_nano", **options)
    _, _, meta = load_published("yolox_nano", path, None, options)
    assert meta["task"] == "detection"
    assert meta["input_shape"] == (416, 416, 3)
    assert meta["preprocessing"]["kind"] == "letterbox"
    assert meta["preprocessing"]["center"] is False
    assert len(meta["class_names"]) == 80
    assert meta["std"] == pytest.approx((1 / 255,) * 3)
    own = weights_file(tmp_path / "own.pth", "yolox_nano", num_classes=2, **options)
    _, _, meta = load_published("yolox_nano", own, ("cat", "dog"), options)
    assert meta["class_names"] == ("cat", "dog")


def test_published_segmenters_take_pictures_whole(tmp_path):
    path = weights_file(tmp_path / "fcn.pth", "fcn_resnet50", width=4, aux_loss=False)
    predictor = Predictor.from_weights("fcn_resnet50", path, width=4, aux_loss=False)
    assert predictor.task == "segmentation"
    assert predictor.class_names[0] == "__background__"
    # The shorter side becomes 520 pixels, and both are padded to multiples of 32.
    assert predictor.prepare(np.zeros((375, 500, 3), np.uint8)).shape == (544, 704, 3)
    assert predictor.prepare(np.zeros((640, 480, 3), np.uint8)).shape == (704, 544, 3)


def test_a_checkpoint_without_names_of_its_classes_is_refused(bright_models, tmp_path):
    folder = save_run(tmp_path / "a", {"model": "bright_maps"})
    with pytest.raises(UserError, match=r'says its "class_names" .*, got one with options, '):
        Predictor.from_checkpoint(folder)


def test_what_is_no_task_or_no_detector_is_refused(bright_models, tmp_path):
    meta = {"model": "bright_maps", "class_names": ["a"], "task": "detection"}
    with pytest.raises(UserError, match="a BrightMaps detects nothing"):
        Predictor.from_checkpoint(save_run(tmp_path / "a", meta))
    with pytest.raises(UserError, match="got one for 'poetry'"):
        Predictor.from_checkpoint(save_run(tmp_path / "b", {**meta, "task": "poetry"}))
