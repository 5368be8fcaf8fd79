"""experiments/yolo.py and error_analysis.py end to end, tiny: both kinds of YOLO, their errors."""

import dataclasses
import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from jaxvision import cli
from jaxvision.data import load_detection, write_yolo_txt
from jaxvision.errors import UserError
from jaxvision.metrics.errors import ERROR_KINDS
from jaxvision.models import abstract_variables, get_model
from jaxvision.report import read_records
from jaxvision.train import create_state, make_train_step
from jaxvision.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

TERMS = ("center_loss", "size_loss", "object_loss", "no_object_loss", "class_loss")


@pytest.fixture(scope="module")
def yolo(experiment):
    return experiment("yolo")


@pytest.fixture(scope="module")
def config(yolo, data_dir, tmp_path_factory):
    return yolo.Config(
        size=64,
        num_train=24,
        num_val=16,
        num_test=16,
        epochs=2,
        batch_size=8,
        garments="embedded",
        data_dir=data_dir,
        run_dir=tmp_path_factory.mktemp("yolo") / "v1",
    )


@pytest.fixture(scope="module")
def result(yolo, config):
    return yolo.main(config)


def test_a_run_leaves_its_files_and_every_term(config, result):
    run = config.run_dir
    stored = json.loads((run / "result.json").read_text())
    assert stored == result
    assert 0 <= result["mAP50"] <= 1
    assert set(result["errors"]) == set(ERROR_KINDS)
    records = read_records(run / "metrics.jsonl")
    validated = [r for r in records if "val/mAP50" in r]
    assert [r["step"] for r in validated] == [3, 6]
    for term in TERMS:
        assert all(np.isfinite(r[f"val/{term}"]) for r in validated)
        assert any(f"train/{term}" in r for r in records)
    page = (run / "report.html").read_text()
    assert all(f"{term.replace('_', ' ').capitalize()} by step" in page for term in TERMS)
    model, variables, meta = load_checkpoint(run)
    assert meta["task"] == "detection"
    assert meta["preprocessing"]["size"] == [64, 64]
    assert variables["params"]
    assert model.num_classes == 10


def test_a_finished_run_gives_the_same_again(yolo, config, result, capsys):
    again = yolo.main(dataclasses.replace(config, resume=True))
    assert "going on from step 6" in capsys.readouterr().out
    assert {k: v for k, v in again.items() if k != "ms_per_step"} == {
        k: v for k, v in result.items() if k != "ms_per_step"
    }


def test_evaluate_and_predict_take_the_run(config, result, capsys, tmp_path):
    flags = ["--data-dir", str(config.data_dir)]
    cli.main(["evaluate", str(config.run_dir), *flags])
    printed = capsys.readouterr().out
    assert f"VOC12 mAP@0.5 {result['mAP50']:.4f}" in printed
    assert f"COCO AP {result['coco_ap']:.4f} of 16 pictures" in printed
    picture = tmp_path / "one.png"
    cv2.imwrite(str(picture), np.zeros((90, 120, 3), np.uint8))
    flags = ["--threshold", "0.001", "--json", str(tmp_path / "found.json")]
    cli.main(["predict", str(config.run_dir), str(picture), *flags])
    (record,) = json.loads((tmp_path / "found.json").read_text())
    boxes = np.array([found["box"] for found in record["objects"]])
    assert len(boxes)
    assert (boxes >= 0).all()
    assert (boxes <= [120, 90, 120, 90]).all()


def test_error_analysis_of_two_runs(experiment, config, result, tmp_path):
    error_analysis = experiment("error_analysis")
    other = tmp_path / "another"
    shutil.copytree(config.run_dir, other)
    runs = (config.run_dir, other)
    shares = error_analysis.main(error_analysis.Config(runs, out=tmp_path / "errors.html"))
    assert list(shares) == ["yolov1_tiny (v1)", "yolov1_tiny (another)"]
    first, second = shares.values()
    assert first == second
    assert {kind: first[kind] for kind in ERROR_KINDS} == pytest.approx(
        result["errors"], nan_ok=True
    )
    page = (tmp_path / "errors.html").read_text()
    assert "Mistakes of yolov1_tiny (another)" in page
    assert json.loads((tmp_path / "errors.json").read_text()) == shares

    # Of as many scenes with the same numbers, but others.
    with np.load(other / "predictions.npz") as file:
        stored = dict(file)
    np.savez(other / "predictions.npz", **{**stored, "labels_digest": "0" * 16})
    with pytest.raises(UserError, match="or other ones"):
        error_analysis.main(error_analysis.Config(runs, out=tmp_path / "no.html"))
    (other / "predictions.npz").unlink()
    with pytest.raises(UserError, match=r"another has no predictions\.npz"):
        error_analysis.main(error_analysis.Config(runs, out=tmp_path / "no.html"))
    with pytest.raises(UserError, match="expected a name for each of the 2 runs, got 1"):
        error_analysis.main(error_analysis.Config(runs, names=("one",)))


def test_a_folder_of_ones_own(yolo, config, tmp_path):
    scenes = load_detection(
        "garment_scenes",
        counts={"train": 9, "val": 4, "test": 1},
        data="embedded",
        data_dir=config.data_dir,
    )
    for split in ("train", "val"):
        write_yolo_txt(scenes[split], tmp_path / "mine")
    own = dataclasses.replace(
        config,
        data="yolo_txt",
        source=tmp_path / "mine",
        num_train=8,
        num_val=None,
        num_test=None,
        epochs=1,
        mosaic=0.5,
        run_dir=tmp_path / "run",
    )
    assert yolo.main(own)["seed"] == 0
    (validated,) = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if "val/mAP50" in r]
    assert validated["step"] == 1
    _, _, meta = load_checkpoint(tmp_path / "run")
    assert meta["class_names"] == list(scenes["train"].class_names)


def test_to_overfit_is_to_be_measured_by_the_training_pictures(yolo, config):
    splits = yolo.load_splits(dataclasses.replace(config, overfit=True))
    assert set(splits) == {"train", "val", "test"}
    assert all(split is splits["train"] for split in splits.values())
    apart = yolo.load_splits(config)
    assert len(apart["train"]) == len(splits["train"]) == config.num_train
    assert len(apart["val"]) == config.num_val


def test_yolox_is_another_flag(yolo, config):
    """Without compiling it, which takes a minute: tests/losses and tests/models do."""
    config = dataclasses.replace(config, model="yolox_tiny", width=0.1875)
    training = yolo.make_training(config, yolo.load_splits(config))
    model = get_model(training.model, **training.options)
    find = yolo.make_finder(config, model, training.batches.dataset)
    step = make_train_step(training.make_loss(model), training.tx, ema_decay=training.ema_decay)

    def train_and_detect(variables, batch):
        state, metrics = step(create_state(variables, training.tx, ema=True), batch)
        return metrics, find.detect(state.variables, batch["image"], batch["size"])

    batch = training.batches(0)
    metrics, found = jax.eval_shape(train_and_detect, abstract_variables(model, (64, 64, 3)), batch)
    assert {"iou_loss", "objectness_loss", "class_loss", "l1_loss"} <= set(metrics)
    assert found.boxes.shape == (8, 100, 4)


def test_pictures_are_normalised_as_the_first_weights_want_it(yolo, config):
    def of(**changes):
        return yolo.normalization(dataclasses.replace(config, **changes))

    assert of() == (0.5, 0.25)
    assert of(model="yolov1", init="yolov1.weights") == (0.0, 1.0)
    mean, std = of(model="yolox_s", init="COCO")
    assert mean == (0.0, 0.0, 0.0)
    np.testing.assert_allclose(std, 1 / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet18"}, "expected a YOLO as --model"),
        ({"model": "yolox_nano", "size": 100}, "multiple of 32 for YOLOX, got 100"),
        ({"width": 0.5}, "--width and --stem are YOLOX's"),
        ({"scale": (1.2, 0.8)}, "the lower bound first, got 1.2 0.8"),
        ({"colors": -1.0}, "expected --colors from 0 to 5"),
        ({"num_train": 0}, "expected at least one picture, got --num-train 0"),
    ],
)
def test_a_wrong_flag_is_one_line(yolo, config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        yolo.main(dataclasses.replace(config, run_dir=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
