"""The benchmark of COCO's evaluation, tiny."""

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "coco_eval.py"


def test_both_sides_give_the_same_numbers(run_script, tmp_path):
    file = tmp_path / "numbers.json"
    done = run_script(BENCH, "--pictures", 30, "--classes", 3, "--repeats", 2, "--json", file)
    assert done.returncode == 0, done.stderr
    answer = json.loads(file.read_text())
    assert answer["difference"] < 1e-6
    assert len(answer["numbers"]["jaxvision"]) == 12
    assert answer["numbers"]["pycocotools"][0] > 0.01
    assert [len(seconds) for seconds in answer["seconds"].values()] == [2, 2]
    assert "jaxvision / pycocotools" in done.stdout


@pytest.mark.parametrize("flag", ["--repeats", "--pictures"])
def test_a_bad_flag_is_one_line(run_script, flag):
    done = run_script(BENCH, flag, 0)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
