"""The benchmarks of detectors, tiny: with the real torchvision, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
BENCH = EXPERIMENTS / "bench" / "detectors.py"
LEARNING = EXPERIMENTS / "bench" / "detector_learning.py"
TINY = ["--size", 64, 64, "--batch-size", 2, "--repeats", 1, "--seconds", 0.01]
SCENES = ["--garments", "embedded", "--num-train", 4, "--num-val", 2, "--num-test", 3]


def run_bench(script, *flags):
    command = [sys.executable, str(script), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("model", ["fasterrcnn_resnet18_fpn", "maskrcnn_resnet18_fpn"])
def test_both_sides_are_timed(model, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    flags = [*TINY, "--model", model, "--json", file, "--torch-python", sys.executable]
    assert run_bench(BENCH, *flags).count("jaxvision / torchvision") == 2
    for seconds in json.loads(file.read_text())["seconds_per_step"].values():
        assert {side: len(values) for side, values in seconds.items()} == {
            "jaxvision": 1,
            "torchvision": 1,
        }


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["rcnn", "mask_rcnn"])
def test_torchvision_learns_what_a_run_of_ours_did(experiment, data_dir, tmp_path, run_script):
    pytest.importorskip("torch")
    run, batch = tmp_path / "run", 2
    flags = [*SCENES, "--data-dir", data_dir, "--run-dir", run, "--epochs", 2]
    flags += ["--batch-size", batch, "--log-every", 1]
    flags += ["--width", 16] if experiment == "rcnn" else []
    done = run_script(EXPERIMENTS / f"{experiment}.py", *flags)
    assert done.returncode == 0, done.stderr
    told = run_bench(LEARNING, "--run", run, "--torch-python", sys.executable, "--save-every", 3)
    assert "3 test scenes, after 8 scenes seen by each" in told
    result = json.loads((run / "torchvision" / "result.json").read_text())
    ours = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ours = [record["train/loss"] for record in ours if "train/loss" in record]
    assert len(ours) == len(result["losses"]) == 4
    # The same weights and pictures, but each draws its own anchors and RoIs.
    np.testing.assert_allclose(ours, result["losses"], rtol=0.2)
    scores = json.loads((run / "result.json").read_text())
    assert result["scores"]["mAP50"]["jaxvision"] == scores["mAP50"]
    assert ("mask_ap" in result["scores"]) == (experiment == "mask_rcnn")
    again = run_bench(LEARNING, "--run", run, "--torch-python", sys.executable)
    assert " steps, loss" not in again  # it was all there
    assert json.loads((run / "torchvision" / "result.json").read_text()) == result


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (BENCH, ["--repeats", 0], "must be at least 1"),
        (BENCH, [*TINY, "--torch-python", "nowhere/python"], "expected a Python interpreter"),
        (LEARNING, ["--run", "nowhere"], "expected the folder of a finished run"),
    ],
)
def test_bad_flags_are_one_line_and_come_before_any_work(run_script, script, flags, message):
    done = run_script(script, *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
