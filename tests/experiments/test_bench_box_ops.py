"""The benchmark of the box operators, tiny: with the real PyTorch, and without."""

import json
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "box_ops.py"


@pytest.fixture
def run_bench(run_script):
    return partial(run_script, BENCH)


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_keep_the_same(run_bench, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    flags = ["--counts", 40, "--repeats", 2, "--seconds", 0.001, "--json", file]
    done = run_bench(*flags, "--torch-python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("crowded") == 3
    numbers = json.loads(file.read_text())
    assert numbers["pytorch"]["compiled_nms"] in (True, False)
    cases = [(result["kind"], result["scene"]) for result in numbers["results"]]
    suppressions = [("nms", "crowded"), ("nms", "sparse"), ("batched_nms", "crowded")]
    assert cases == [*suppressions, ("match", "crowded")]
    for result in numbers["results"]:
        assert result["results"]["jaxvision"] == result["results"]["pytorch"] > 0
        for seconds in result["seconds_per_step"].values():
            assert len(seconds) == 2
            assert all(0 < s < 10 for s in seconds)


def test_without_pytorch_and_bad_flags_are_one_line(run_bench, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    for flags, message in (
        (["--torch-python", bare], "No module named 'torch'"),
        (["--counts", 0], "must be at least 1"),
    ):
        done = run_bench(*flags)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
