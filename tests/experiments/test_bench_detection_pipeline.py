"""The benchmark of augmentation for detection, tiny: alone, and with the real PyTorch."""

import json
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "detection_pipeline.py"
TINY = ("--pictures", 6, "--size", 24, "--batch-size", 3, "--batches", 2, "--repeats", 2)


@pytest.fixture
def run_bench(run_script):
    return partial(run_script, BENCH)


def check_results(file, workers, sides):
    numbers = json.loads(file.read_text())
    expected = [(work, n) for work in ("augmented", "plain") for n in workers]
    assert [(result["work"], result["workers"]) for result in numbers["results"]] == expected
    for result in numbers["results"]:
        assert list(result["seconds_per_step"]) == sides
        assert result["batches"] == dict.fromkeys(sides, 2)
        for seconds in result["seconds_per_step"].values():
            assert len(seconds) == 2
            assert all(0 < s < 10 for s in seconds)
    return numbers


def test_without_pytorch(run_bench, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    file, python = tmp_path / "numbers.json", tmp_path / "bare" / "bin" / "python"
    done = run_bench(*TINY, "--workers", 0, 2, "--json", file, "--torch-python", python)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not installed") == 5  # in the heading, and in each row
    numbers = check_results(file, [0, 2], ["jaxvision"])
    assert numbers["environment"]["pytorch"] is None


@pytest.mark.slow
@pytest.mark.parity
def test_with_pytorch(run_bench, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    done = run_bench(*TINY, "--workers", 1, "--json", file, "--torch-python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert "not installed" not in done.stdout
    check_results(file, [1], ["jaxvision", "pytorch"])


def test_a_bad_flag_is_one_line(run_bench):
    done = run_bench("--pictures", 5, "--batch-size", 6)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "at least --batch-size, 6" in done.stderr
    assert done.stderr.count("\n") == 1
