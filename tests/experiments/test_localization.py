"""experiments/localization.py end to end, tiny: files, going on, another backbone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxvision.cli import main
from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model
from jaxvision.report import read_records
from jaxvision.train import create_state
from jaxvision.train.checkpoint import CheckpointStore, load_checkpoint
from jaxvision.train.optim import sgd

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def localization(experiment):
    return experiment("localization")


@pytest.fixture
def config(localization, data_dir, tmp_path):
    return localization.Config(
        stem="imagenet",
        width=4,
        stage_sizes=(1, 1),
        num_train=48,
        num_val=8,
        num_test=10,
        epochs=2,
        batch_size=16,
        data="embedded",
        data_dir=data_dir,
        run_dir=tmp_path / "run",
    )


def test_a_run_leaves_its_files_and_goes_on(localization, config, capsys):
    whole = localization.main(config)
    result = json.loads((config.run_dir / "result.json").read_text())
    assert 0 <= result["iou"] <= 1
    assert result["localization_error"] >= 1 - result["accuracy"]
    records = read_records(config.run_dir / "metrics.jsonl")
    assert [r["step"] for r in records if "val/iou" in r] == [3, 6]
    assert (config.run_dir / "report.html").stat().st_size > 5000
    model, variables, meta = load_checkpoint(config.run_dir)
    options = {"stem": "imagenet", "width": 4, "stage_sizes": [1, 1]}
    assert meta["options"]["backbone_options"] == options
    outputs = jax.eval_shape(model.apply, variables, jnp.zeros((2, 128, 128, 3)))
    assert outputs["box_deltas"].shape == (2, 4)
    assert set(whole) >= {"accuracy", "iou", "localization_error", "ms_per_step"}
    # The command line gives the experiment's figures, from the scenes as they were drawn.
    capsys.readouterr()
    main(["evaluate", str(config.run_dir)])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("test: ")]
    figures = [float(part.split()[-1]) for part in line.removesuffix(" of 10 pictures").split(",")]
    assert figures[1] == pytest.approx(result["iou"], abs=0.005)
    assert figures[0] == pytest.approx(result["accuracy"], abs=0.11)  # one of ten may turn
    again = localization.main(dataclasses.replace(config, resume=True))
    timed = {"ms_per_step"}
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in whole.items() if k not in timed
    }


@pytest.mark.parametrize(
    ("name", "options", "body"),
    [
        ("resnet18", {"num_classes": 10, "width": 4, "stage_sizes": [1], "stem": "small"}, ()),
        (
            "fasterrcnn_resnet18_fpn",
            {"num_classes": 11, "width": 4, "fpn_features": 4, "representation_size": 4},
            ("backbone", "body"),
        ),
    ],
)
def test_a_run_in_init_brings_the_backbone_its_options_and_its_normalisation(
    localization, config, tmp_path, name, options, body
):
    normal = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    shapes = abstract_variables(get_model(name, **options), (64, 64, 3))
    rng = np.random.default_rng(0)
    given = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    folder = tmp_path / "given"
    meta = {"model": name, "options": options, "input_shape": (64, 64, 3), **normal}
    meta |= {"class_names": ["x"] * 10, "task": "detection" if body else "classification"}
    with CheckpointStore(folder) as store:
        store.save(create_state(given, sgd(0.1)), meta=meta)
    config = dataclasses.replace(config, init=str(folder), backbone="vgg11")
    training = localization.make_training(config, localization.load_scenes(config))
    kept = {k: x for k, x in options.items() if k in ("width", "stage_sizes", "stem")}
    assert training.options == {
        "num_classes": 10,
        "backbone": "resnet18",
        "backbone_options": kept,
    }
    assert {k: training.meta[k] for k in normal} == normal
    for kind in ("params", "batch_stats"):
        found = flatten_dict(training.initial[kind]["backbone"])
        wanted = given[kind]
        for part in body:
            wanted = wanted[part]
        wanted = {path: x for path, x in flatten_dict(wanted).items() if path[0] != "fc"}
        assert found.keys() == wanted.keys()
        for path, x in wanted.items():
            np.testing.assert_array_equal(found[path], x)


def test_the_networks_below_detectors_have_names(localization):
    inside = {"params": {"backbone": {"body": {}}}}
    for detector, body in (
        ("fasterrcnn_resnet50_fpn_v2", "resnet50"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "mobilenet_v3_large"),
        ("retinanet_resnet18_fpn", "resnet18"),
        ("fasterrcnn_vgg16", "vgg16"),
    ):
        assert localization.body_of(detector, inside) == body
    with pytest.raises(UserError, match=r"a detector with a pyramid, .* got yolox_tiny"):
        localization.body_of("yolox_tiny", {"params": {"backbone": {"dark2": {}}}})


def test_mistakes_are_refused_before_anything_is_written(localization, config):
    for changes, message in (
        ({"scale": (1.2, 0.8)}, "the lower bound first, got 1.2 0.8"),
        ({"epochs": 0}, "at least 1 epoch, got 0"),
        ({"backbone": "lenet"}, "model 'lenet' has no option"),
        ({"batch_size": 49}, "batch size of at most 48"),
    ):
        with pytest.raises(UserError, match=message):
            localization.main(dataclasses.replace(config, **changes))
    assert not (config.run_dir / "config.json").exists()
