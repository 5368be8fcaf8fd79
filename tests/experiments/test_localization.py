"""experiments/localization.py end to end, tiny: files, going on, another backbone."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from jaxvision.cli import main
from jaxvision.errors import UserError
from jaxvision.report import read_records
from jaxvision.train.checkpoint import load_checkpoint

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
    outputs = model.apply(variables, jnp.zeros((2, 128, 128, 3)))
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
