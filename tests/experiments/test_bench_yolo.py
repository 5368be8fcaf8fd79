"""The benchmark of YOLO v1, tiny: with the real PyTorch, and without."""

import json
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "yolo.py"
TINY = ["--size", 32, "--batch-size", 2, "--check-steps", 3, "--repeats", 2, "--seconds", 0.01]


@pytest.fixture
def run_bench(run_script):
    return partial(run_script, BENCH)


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_have_the_same_losses(run_bench, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    done = run_bench(*TINY, "--json", file, "--torch-python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout
    assert done.stdout.count("jaxvision / PyTorch") == 2
    numbers = json.loads(file.read_text())
    assert 0 < numbers["largest_difference"] < 1e-4
    assert [len(row) for row in numbers["losses"]] == [5, 5, 5]
    for seconds in numbers["seconds_per_step"].values():
        assert {side: len(values) for side, values in seconds.items()} == {
            "jaxvision": 2,
            "pytorch": 2,
        }


def test_bad_flags_are_one_line_and_come_before_any_work(run_bench, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    for flags, message in (
        (["--repeats", 0], "must be at least 1"),
        ([*TINY, "--torch-python", tmp_path / "nothing"], "expected a Python interpreter"),
        ([*TINY, "--torch-python", bare], "expected a Python with PyTorch"),
    ):
        done = run_bench(*flags)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
