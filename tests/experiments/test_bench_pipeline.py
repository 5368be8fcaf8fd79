"""The pipeline's benchmark, tiny: without PyTorch everywhere, and with the real one."""

import json
import sys
import venv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "pipeline.py"
TINY = ("--pictures", 6, "--batch-size", 3, "--batches", 2, "--repeats", 2)


@pytest.fixture
def run_bench(run_script):
    return partial(run_script, BENCH)


def test_without_pytorch(run_bench, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    file = tmp_path / "numbers.json"
    python = tmp_path / "bare" / "bin" / "python"
    done = run_bench(*TINY, "--workers", 0, 2, "--json", file, "--torch-python", python)
    assert done.returncode == 0, done.stderr
    # In the heading, and for both outputs at both numbers of workers.
    assert done.stdout.count("not installed") == 5
    numbers = json.loads(file.read_text())
    assert numbers["environment"]["pytorch"] is None
    assert [result["workers"] for result in numbers["results"]] == [0, 2]
    for result in numbers["results"]:
        assert result["batches"] == {"jaxvision": 2}
        seconds = result["seconds_per_step"]["jaxvision"]
        assert len(seconds) == 2
        assert all(0 < s < 10 for s in seconds)


@pytest.mark.slow
@pytest.mark.parity
def test_with_pytorch(run_bench, tmp_path):
    pytest.importorskip("torch")
    file = tmp_path / "numbers.json"
    done = run_bench(*TINY, "--workers", 1, "--json", file, "--torch-python", sys.executable)
    assert done.returncode == 0, done.stderr
    assert "not installed" not in done.stdout
    (result,) = json.loads(file.read_text())["results"]
    sides = ["jaxvision", "pytorch, float", "pytorch, bytes"]
    assert list(result["seconds_per_step"]) == sides
    assert [len(seconds) for seconds in result["seconds_per_step"].values()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batches", 0], "must be at least 1"),
        (["--workers", -1], "--workers at least 0"),
        (["--pictures", 5, "--batch-size", 6], "at least --batch-size, 6"),
        ([*TINY, "--torch-python", "/nowhere/python"], "expected a Python interpreter"),
    ],
)
def test_a_bad_flag_is_one_line(run_bench, flags, message):
    done = run_bench(*flags)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_its_pictures_compress_as_photographs_do(run_script, tmp_path):
    # As a script, because two modules here are called `classifier`.
    program = f"import sys\nsys.path.insert(0, {str(BENCH.parent)!r})\n"
    program += "import pathlib, pipeline\n"
    program += "print(pipeline.write_pictures(pathlib.Path(sys.argv[1]), 4))"
    (tmp_path / "write.py").write_text(program)
    done = run_script(tmp_path / "write.py", tmp_path)
    assert done.returncode == 0, done.stderr
    size = int(done.stdout)
    paths = sorted(tmp_path.rglob("*.jpg"))
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        *("train/ants/0.jpg", "train/ants/2.jpg", "train/bees/1.jpg", "train/bees/3.jpg"),
        "val/ants/4.jpg",
    ]
    assert size == sum(path.stat().st_size for path in paths)
    assert 40_000 < size / 5 < 150_000
    with Image.open(paths[0]) as picture:
        assert picture.size == (500, 375)
        assert 20 < np.asarray(picture).std() < 100
