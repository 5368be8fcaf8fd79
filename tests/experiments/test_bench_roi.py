"""The benchmark of RoIAlign, tiny: with the real PyTorch, and without."""

import json
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "roi.py"


@pytest.fixture
def run_bench(run_script):
    return partial(run_script, BENCH)


@pytest.mark.slow
@pytest.mark.parity
def test_both_sides_compute_the_same(run_bench, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    flags = ["--boxes", 60, "--size", 96, 128, "--channels", 8, "--repeats", 2]
    flags += ["--seconds", 0.01, "--json", file, "--torch-python", sys.executable]
    done = run_bench(*flags)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(file.read_text())
    assert numbers["pytorch"]["compiled"] in (True, False)
    kinds = [result["kind"] for result in numbers["results"]]
    assert kinds == ["pool", "pool_with_gradient", "paste"]
    for result in numbers["results"]:
        means = result["mean"]
        assert means["jaxvision"] == pytest.approx(means["pytorch"], abs=1e-6)
        assert abs(means["pytorch"]) > 1e-5
        for seconds in result["seconds_per_step"].values():
            assert len(seconds) == 2
            assert all(0 < s < 10 for s in seconds)


def test_without_pytorch_and_bad_flags_are_one_line(run_bench, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    for flags, message in (
        (["--torch-python", bare], "No module named 'torch'"),
        (["--boxes", 0], "must be at least 1"),
    ):
        done = run_bench(*flags)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
