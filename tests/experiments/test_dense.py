"""experiments/dense.py end to end, tiny; what its flags make of each model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.errors import UserError
from jaxvision.metrics.errors import ERROR_KINDS
from jaxvision.models import abstract_variables, get_model
from jaxvision.predict import Predictor
from jaxvision.report import read_records
from jaxvision.train import create_state, make_train_step
from jaxvision.train.checkpoint import CheckpointStore, load_checkpoint
from jaxvision.train.optim import sgd
from jaxvision.weights import to_torch, write_safetensors

pytestmark = pytest.mark.slow

TERMS = ("classification", "bbox_regression")


@pytest.fixture(scope="module")
def dense(experiment):
    return experiment("dense")


@pytest.fixture(scope="module")
def config(dense, data_dir, tmp_path_factory):
    return dense.Config(
        size=64,
        width=8,
        fpn_features=8,
        head_depth=1,
        optimizer="sgd",  # the least to compile
        ema_decay=None,
        num_train=16,
        num_val=1,
        num_test=1,
        score_threshold=0.001,
        epochs=2,
        batch_size=8,
        garments="embedded",
        data_dir=data_dir,
        run_dir=tmp_path_factory.mktemp("dense") / "run",
    )


@pytest.fixture(scope="module")
def result(dense, config):
    return dense.main(config)


def test_a_run_leaves_its_files_and_every_term(config, result):
    assert json.loads((config.run_dir / "result.json").read_text()) == result
    assert 0 <= result["mAP50"] <= 1
    assert set(result["errors"]) == set(ERROR_KINDS)
    records = read_records(config.run_dir / "metrics.jsonl")
    validated = [r for r in records if "val/mAP50" in r]
    assert [r["step"] for r in validated] == [2, 4]
    for term in TERMS:
        assert all(np.isfinite(r[f"val/{term}"]) for r in validated)
        assert any(f"train/{term}" in r for r in records)
    assert "Classification by step" in (config.run_dir / "report.html").read_text()


def test_its_checkpoint_predicts(config, result):
    thresholds = {
        "score_threshold": config.score_threshold,
        "max_detections": config.max_detections,
    }
    predictor = Predictor.from_checkpoint(config.run_dir, **thresholds)
    assert len(predictor.class_names) == 10
    found = predictor(np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8))
    assert len(found)
    assert (found.boxes <= [60, 90, 60, 90]).all()


def test_a_run_or_a_file_is_a_start(dense, config, result, tmp_path):
    """A run's weights as they are; of a file with other classes all but the last layer."""
    again = dataclasses.replace(config, init=str(config.run_dir))
    again = dataclasses.replace(again, width=None, fpn_features=None, head_depth=None)
    options = dense.options_of(again, 10)
    assert options == load_checkpoint(config.run_dir)[2]["options"]
    given = dense.first_weights(again, options)
    assert (given.mean, given.std) == (dense.MEAN, dense.STD)
    slim = {"width": 8, "fpn_features": 8, "head_depth": 1}
    model = get_model(config.model, num_classes=4, **slim)
    like = abstract_variables(model, (64, 64, 3))
    variables = jax.tree.map(lambda x: np.full(x.shape, 2, x.dtype), like)
    write_safetensors(
        tmp_path / "three.safetensors", to_torch(config.model, variables, num_classes=4, **slim)
    )
    other = dataclasses.replace(config, init=str(tmp_path / "three.safetensors"))
    started = dense.first_weights(other, dense.options_of(other, 10))
    params = started.variables["params"]
    assert params["head"]["classification_head"]["cls_logits"]["kernel"].shape[-1] == 9 * 11
    assert (params["backbone"]["body"]["conv1"]["kernel"] == 2).all()
    assert started.mean == pytest.approx((0.485, 0.456, 0.406))


def test_runs_of_other_models_give_their_backbones(dense, config, tmp_path):
    for name, slim in {"resnet18": {}, "fasterrcnn_resnet18_fpn": {"fpn_features": 8}}.items():
        options = {"num_classes": 3, "width": 8, **slim}
        variables = random_variables(get_model(name, **options), (32, 32, 3))
        meta = {"model": name, "options": options, "class_names": ["a", "b"], "mean": 0.4}
        with CheckpointStore(tmp_path / name) as store:
            meta["input_shape"] = (32, 32, 3)
            store.save(create_state(variables, sgd(0.1)), meta=meta)
        started = dataclasses.replace(config, init=str(tmp_path / name))
        start = dense.first_weights(started, dense.options_of(started, 10))
        assert (start.mean, start.std) == (0.4, 1.0)
        body = start.variables["params"]["backbone"]["body"]
        expected = variables["params"].get("backbone", {"body": variables["params"]})["body"]
        jax.tree.map(np.testing.assert_array_equal, body["layer1"], expected["layer1"])


def test_another_model_is_a_flag(dense, config, monkeypatch):
    """Without compiling anything, which takes long: tests/losses and tests/models do."""
    monkeypatch.setattr(
        dense,
        "drawn_variables",
        lambda name, options, seed: abstract_variables(get_model(name, **options), (64, 64, 3)),
    )
    config = dataclasses.replace(config, model="fcos_resnet18_fpn")
    pictures = dense.pictures_of(config)
    training = dense.make_training(config, dense.load_splits(config), pictures)
    model = get_model(training.model, **training.options)
    find = pictures.finder(model, training.batches.dataset, 0.5, 0.25)
    step = make_train_step(training.make_loss(model), training.tx)

    def train_and_detect(initial, batch):
        state, metrics = step(create_state(initial, training.tx), batch)
        return metrics, find.detect(state.variables, batch["image"], batch["size"])

    batch = training.batches(0)
    assert batch["image"].shape[1:] == training.input_shape
    metrics, found = jax.eval_shape(train_and_detect, training.initial, batch)
    assert {*TERMS, "bbox_ctrness"} <= set(metrics)
    assert found.boxes.shape == (8, 100, 4)


def test_ssds_have_sizes_of_their_own(dense, config):
    slim = dict.fromkeys(("width", "fpn_features", "head_depth", "size"))
    config = dataclasses.replace(config, model="ssd300_vgg16", **slim)
    assert dense.pictures_of(config).input_shape == (300, 300, 3)
    assert dense.options_of(config, 10) == {"num_classes": 11}
    dense.check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 100}, "multiple of 32, got 100"),
        ({"anchor_sizes": (8, 16)}, "expected five --anchor-sizes"),
        ({"model": "fcos_resnet18_fpn", "anchor_sizes": (8,) * 5}, "RetinaNet's: fcos_resnet18"),
        ({"model": "ssd300_vgg16"}, "--width, --fpn-features, --head-depth: ssd300_vgg16 has none"),
        ({"colors": -1.0}, "expected --colors from 0 to 5"),
        ({"num_train": 0}, "expected at least one picture, got --num-train 0"),
    ],
)
def test_a_wrong_flag_is_one_line(dense, config, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        dense.main(dataclasses.replace(config, run_dir=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
