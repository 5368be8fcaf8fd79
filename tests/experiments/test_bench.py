"""The benchmark, end to end and tiny: without PyTorch everywhere, and with the real one."""

import json
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "classifier.py"


@pytest.fixture
def python_without_torch(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    return tmp_path / "bare" / "bin" / "python"


@pytest.fixture
def run_bench(run_script, data_dir):
    small = ("--data", "embedded", "--data-dir", data_dir, "--repeats", 2, "--startups", 1)
    return partial(run_script, BENCH, *small)


@pytest.mark.slow
def test_without_pytorch(run_bench, tmp_path, python_without_torch):
    file = tmp_path / "numbers.json"
    flags = ["--batch-sizes", 4, 50, "--steps", 5, "--json", file]
    done = run_bench(*flags, "--torch-python", python_without_torch)
    assert done.returncode == 0, done.stderr
    assert "PyTorch: not installed" in done.stdout
    # In the heading, for both batch sizes, and for the start-up.
    assert done.stdout.count("not installed") == 4

    numbers = json.loads(file.read_text())
    assert numbers["environment"]["pytorch"] is None
    assert [r["batch_size"] for r in numbers["training"]] == [4, 50]
    for result, steps_per_epoch in zip(numbers["training"], (2750, 220), strict=True):
        assert result["steps_per_epoch"] == steps_per_epoch
        assert result["block_steps"] == {"jaxvision": 5}
        seconds = result["seconds_per_step"]["jaxvision"]
        assert len(seconds) == 2
        assert all(0 < s < 60 for s in seconds)
    assert set(numbers["startup"]) == {"jaxvision, cold", "jaxvision, warm"}
    for (run,) in numbers["startup"].values():
        phases = [run[phase] for phase in ("imports", "data", "build", "step")]
        assert min(phases) > 0
        assert sum(phases) < run["total"]  # which has the interpreter's own start as well
    assert all(0 < s < 10 for s in numbers["import_jaxvision"])


@pytest.mark.slow
@pytest.mark.parity
def test_with_pytorch(run_bench, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    flags = ["--batch-sizes", 4, "--steps", 5, "--json", file, "--torch-python", sys.executable]
    done = run_bench(*flags)
    assert done.returncode == 0, done.stderr
    assert "not installed" not in done.stdout.replace("torchvision is not installed", "")

    numbers = json.loads(file.read_text())
    assert numbers["environment"]["pytorch"]["threads"] >= 1
    (result,) = numbers["training"]
    assert result["block_steps"] == {"pytorch": 5, "jaxvision": 5}
    assert [len(s) for s in result["seconds_per_step"].values()] == [2, 2]
    assert numbers["loader_starts"]
    assert numbers["startup"]["PyTorch"][0]["step"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "must be at least 1"),
        (["--batch-sizes", "0"], "must be at least 1"),
        (["--torch-python", "/nowhere/python"], "expected a Python interpreter"),
    ],
)
def test_a_bad_flag_is_one_line(run_script, data_dir, flags, message):
    done = run_script(BENCH, "--data", "embedded", "--data-dir", data_dir, *flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
