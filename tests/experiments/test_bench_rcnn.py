"""The benchmark of Faster R-CNN, tiny: with the real torchvision, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "rcnn.py"
TINY = ["--size", 64, 64, "--batch-size", 2, "--repeats", 1, "--seconds", 0.01]


@pytest.mark.parity
@pytest.mark.slow
def test_both_sides_train_and_are_timed(data_dir, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    flags = [*TINY, "--train-scenes", 4, "--num-train", 4, "--num-test", 3, "--json", file]
    flags += ["--garments", "embedded", "--data-dir", data_dir, "--torch-python", sys.executable]
    command = [sys.executable, str(BENCH), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("jaxvision / torchvision") == 2
    assert "mAP@0.5 of 3 test scenes after 4 scenes seen: jaxvision 0." in done.stdout
    numbers = json.loads(file.read_text())
    ours, theirs = numbers["losses"]["jaxvision"], numbers["losses"]["torchvision"]
    assert len(ours) == len(theirs) == 2
    # The same weights and pictures, but each draws its own anchors and RoIs.
    np.testing.assert_allclose(ours, theirs, rtol=0.2)
    for seconds in numbers["seconds_per_step"].values():
        assert {side: len(values) for side, values in seconds.items()} == {
            "jaxvision": 1,
            "torchvision": 1,
        }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", 0], "must be at least 1"),
        ([*TINY, "--torch-python", "nowhere/python"], "expected a Python interpreter"),
    ],
)
def test_bad_flags_are_one_line_and_come_before_any_work(run_script, flags, message):
    done = run_script(BENCH, *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
