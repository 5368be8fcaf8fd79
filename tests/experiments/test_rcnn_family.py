"""R-CNN's three stages and experiments/rcnn_family.py end to end, tiny: files, resuming, mistakes.

R-CNN is trained by the family's experiment. Of Fast and Faster R-CNN, which have a test of their
own, the folders that it is given are of networks as they are drawn.
"""

import dataclasses
import json
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision import cli
from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.report import read_records
from jaxvision.train import TrainState
from jaxvision.train.checkpoint import CheckpointStore, load_checkpoint
from jaxvision.train.linear import fit_ridge, fit_svms
from jaxvision.train.run import Run

pytestmark = pytest.mark.slow

STEPS = {"proposals", "network", "heads", "NMS", "total", "without proposals"}


@pytest.fixture(scope="module")
def rcnn(experiment):
    return experiment("rcnn")


@pytest.fixture(scope="module")
def family(experiment):
    return experiment("rcnn_family")


@pytest.fixture(scope="module")
def training(rcnn, data_dir):
    return rcnn.Config(
        width=8,
        size=64,
        fpn_features=8,
        representation_size=8,
        pre_nms_top_n=20,
        post_nms_top_n=10,
        num_proposals=24,
        search_workers=1,
        num_train=8,
        num_val=4,
        num_test=4,
        epochs=1,
        batch_size=4,
        frozen_norm=True,
        ema_decay=None,
        garments="embedded",
        data_dir=data_dir,
        crop_size=32,
        crops=16,
        svm_rounds=3,
        svm_pictures=8,
    )


def drawn_run(rcnn, config, save_predictions):
    """A run folder as training would leave it, of random weights, and nothing found."""
    splits = rcnn.load_splits(config)
    pictures = rcnn.Pictures(config, config, with_proposals=config.model == "fast")
    name, options = rcnn.network_of(config, len(splits["train"].class_names))
    variables = jax.tree.map(jnp.asarray, random_variables(get_model(name, **options), (64, 64, 3)))
    meta = {
        "model": name,
        "options": options,
        "input_shape": pictures.input_shape,
        "class_names": list(splits["train"].class_names),
        "task": "detection",
        "mean": 0.5,
        "std": 0.25,
        **pictures.meta,
    }
    folder, test = config.run_dir, splits["test"]
    with Run("rcnn", config, run_dir=folder) as run, CheckpointStore(folder) as store:
        run.write_config(train_pictures=len(splits["train"]))
        store.save(
            TrainState(jnp.int32(1), variables["params"], variables["batch_stats"], ()), meta=meta
        )
        nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
        save_predictions(folder / "predictions.npz", [nothing] * len(test), test)
    return folder


@pytest.fixture(scope="module")
def config(rcnn, family, experiment, training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    given = {
        name: drawn_run(
            rcnn,
            dataclasses.replace(training, model=name, run_dir=folder / name),
            experiment("detection").save_predictions,
        )
        for name in ("fast", "faster")
    }
    return family.Config(
        training=training,
        timed=2,
        repeats=1,
        num_proposals=12,
        drawn=3,
        run_dir=folder / "run",
        **given,
    )


@pytest.fixture(scope="module")
def result(family, config):
    return family.main(config)


def test_the_family_has_its_tables_and_what_every_step_sees(config, result):
    stored = json.loads((config.run_dir / "result.json").read_text())
    assert stored == result
    assert set(result["milliseconds"]) == set(result["accuracy"]) == {"rcnn", "fast", "faster"}
    for times in result["milliseconds"].values():
        assert set(times) == STEPS
        assert all(value > 0 for value in times.values())
        of_steps = sum(times[step] for step in ("proposals", "network", "heads", "NMS"))
        assert times["total"] == pytest.approx(of_steps)
    own = json.loads((config.run_dir / "rcnn" / "result.json").read_text())
    assert result["accuracy"]["rcnn"]["mAP50"] == pytest.approx(own["mAP50"], nan_ok=True)
    page = (config.run_dir / "report.html").read_text()
    assert "look at the first 12 boxes" in page  # and not at as many as R-CNN was trained with
    headings = ("Time a picture", "Accuracy", "Proposals", "Objectness by anchor")
    headings += ("Features of regions", "Boxes before and after regression")
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)
    # The truth and two kinds of proposals; a row of anchors for each level; each detector thrice.
    levels, detectors = 4, 3
    assert page.count("data:image/") == 3 + levels + 3 * detectors


def test_rcnn_leaves_its_three_stages(config, result):
    run = config.run_dir / "rcnn"
    own = json.loads((run / "result.json").read_text())
    assert own["model"] == "rcnn"
    assert own["best_step"] == 2
    assert len(own["svm_rows"]) <= 3
    assert own["box_pairs"] > 0
    records = read_records(run / "metrics.jsonl")
    assert any("train/accuracy" in record for record in records)
    assert [r["step"] for r in records if "val/loss" in r] == [2]
    assert [r["step"] for r in records if "val/mAP50" in r] == [2]
    assert not list(run.glob("regions-*"))
    network, inner, meta = load_checkpoint(run / "finetuning")
    assert network.num_classes == 11
    assert meta["class_names"][0] == "background"
    model, variables, meta = load_checkpoint(run)
    assert (model.crop_size, model.padding, model.grid) == (32, 2, 4)
    assert meta["proposals"] == {"mode": "fast", "count": 24}
    # The detector's network is the fine-tuned one, and what is behind it was solved for.
    kernel = variables["params"]["backbone"]["layer4"]["0"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, inner["params"]["layer4"]["0"]["conv2"]["kernel"])
    assert variables["params"]["svms"]["kernel"].shape == (64, 10)
    assert np.abs(variables["params"]["svms"]["kernel"]).max() > 0
    assert np.abs(variables["params"]["box_regressors"]["bias"]).max() > 0


def test_predict_searches_for_proposals_itself(config, result, tmp_path):
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:40, 30:60] = 255
    cv2.imwrite(str(tmp_path / "one.png"), picture)
    flags = ["--threshold", "0.001", "--json", str(tmp_path / "found.json")]
    cli.main(["predict", str(config.run_dir / "rcnn"), str(tmp_path / "one.png"), *flags])
    (record,) = json.loads((tmp_path / "found.json").read_text())
    boxes = np.array([found["box"] for found in record["objects"]])
    assert len(boxes)
    assert (boxes >= 0).all()
    assert (boxes <= [80, 60, 80, 60]).all()


def test_stages_go_on_where_they_ended(rcnn, experiment, config, result, tmp_path, monkeypatch):
    run, first = tmp_path / "again", config.run_dir / "rcnn"
    shutil.copytree(first, run)
    shutil.rmtree(run / "checkpoints")
    again = dataclasses.replace(config.training, model="rcnn", run_dir=run, resume=True)

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # when all features are there
        patch.setattr(experiment("rcnn_stages"), "solve", killed)
        with pytest.raises(KeyboardInterrupt):
            rcnn.main(again)
    assert [path.name for path in run.glob("regions-2/*")] == ["000000.npz"]
    with monkeypatch.context() as patch:  # which are not computed again, and nothing is trained
        patch.setattr(experiment("rcnn_regions"), "chosen_rows", killed)
        patch.setattr(experiment("rcnn_stages"), "make_train_step", lambda *args, **options: killed)
        figures = rcnn.main(again)
        stored = json.loads((first / "result.json").read_text())
        assert figures["svm_rows"] == stored["svm_rows"]
    with monkeypatch.context() as patch:  # and of what is finished, only the test is done again
        patch.setattr(experiment("rcnn_stages"), "learn_behind", killed)
        assert rcnn.main(again)["mAP50"] == figures["mAP50"] == stored["mAP50"]


def test_what_is_solved_is_for_features_as_they_are(experiment, tmp_path):
    """The solvers see them scaled; of two files, and of a class without any region."""
    regions, rng = experiment("rcnn_regions"), np.random.default_rng(0)
    parts = []
    for i in range(2):
        arrays = {
            "features": rng.random((150, 6)).astype(np.float16),
            "targets": rng.choice([-1, 1], (150, 3), p=[0.9, 0.1]).astype(np.int8),
            "cells": rng.random((30, 5)).astype(np.float16),
            "pair_labels": rng.choice([0, 2], 30).astype(np.int32),
            "deltas": rng.normal(size=(30, 4)).astype(np.float32),
        }
        np.savez(tmp_path / f"{i}.npz", **arrays)
        parts.append(arrays)
    paths = [tmp_path / "0.npz", tmp_path / "1.npz"]
    options = {"c": 0.01, "max_rounds": 9, "box_penalty": 10.0, "seed": 0}
    solved = regions.solve(paths, 3, **options, announce=lambda line: None)
    features, targets, cells, labels, deltas = (
        np.concatenate([part[name] for part in parts]) for name in parts[0]
    )
    features, cells = features.astype(np.float32), cells.astype(np.float32)
    scale = 20 / np.linalg.norm(features, axis=1).mean()
    svms = fit_svms(features * scale, targets.astype(np.int32), c=0.01, positive_weight=2)
    np.testing.assert_allclose(
        features @ np.asarray(solved.svms.kernel) + np.asarray(solved.svms.bias),
        features * scale @ np.asarray(svms.kernel) + np.asarray(svms.bias),
        atol=2e-3,
    )
    scale = 20 / np.linalg.norm(cells, axis=1).mean()
    rows = labels == 2
    line = fit_ridge(cells[rows] * scale, deltas[rows], penalty=10.0)
    told = cells @ solved.box_regressors.kernel + solved.box_regressors.bias
    assert told.shape == (60, 12)
    np.testing.assert_allclose(told[:, 8:], cells * scale @ line.kernel + line.bias, atol=1e-4)
    assert not told[:, 4:8].any()


def test_another_classifier_may_be_the_start(experiment, config, result, training):
    stages = experiment("rcnn_stages")
    options = stages.model_options(training, 10)
    other = stages.model_options(dataclasses.replace(training, width=16), 10)
    for init in (config.run_dir / "rcnn" / "finetuning", config.run_dir / "rcnn"):
        started = dataclasses.replace(training, init=str(init))
        start = stages.first_classifier(started, options)
        _, given, _ = load_checkpoint(init)
        inner = given["params"].get("backbone", given["params"])
        np.testing.assert_array_equal(
            start.variables["params"]["conv1"]["kernel"], inner["conv1"]["kernel"]
        )
        assert start.variables["params"]["fc"]["kernel"].shape == (64, 11)
        assert (start.mean, start.std) == (0.5, 0.25)
        with pytest.raises(UserError, match="expected a classifier of the same kind"):
            stages.first_classifier(started, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "mobilenet_v3_large"}, "--backbone of resnet18, resnet50, vgg16 for R-CNN"),
        ({"crops": 0}, "--crops of at least 1"),
        ({"svm_pictures": 0}, "--svm-pictures of at least 1"),
        ({"svm_c": 0.0}, "--svm-c above 0"),
        ({"crop_context": 16}, "--crop-context below half of the crop's 32, got 16"),
    ],
)
def test_a_wrong_flag_is_one_line(rcnn, training, tmp_path, changes, message):
    wrong = dataclasses.replace(training, model="rcnn", run_dir=tmp_path / "run", **changes)
    with pytest.raises(UserError, match=message):
        rcnn.main(wrong)
    assert not (tmp_path / "run").exists()


def test_runs_that_do_not_belong_together_are_refused(family, config, tmp_path):
    """Before those that are not given are trained."""
    with pytest.raises(UserError, match="expected a run of Fast R-CNN, got one of faster"):
        family.main(dataclasses.replace(config, fast=config.faster, run_dir=tmp_path / "a"))
    narrow = tmp_path / "narrow"
    shutil.copytree(config.fast, narrow)
    stored = json.loads((narrow / "config.json").read_text())
    (narrow / "config.json").write_text(json.dumps({**stored, "width": 4}))
    with pytest.raises(UserError, match="with the same --width: R-CNN has 8, Fast R-CNN has 4"):
        family.main(dataclasses.replace(config, fast=narrow, run_dir=tmp_path / "b"))
    with pytest.raises(UserError, match="expected --timed of at least 1, got 0"):
        family.main(dataclasses.replace(config, timed=0, run_dir=tmp_path / "c"))
    assert not any((tmp_path / name).exists() for name in "abc")
