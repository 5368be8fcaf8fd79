"""The preview of garment_scenes and its benchmark, tiny."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvision.errors import UserError

BENCH = Path(__file__).parents[2] / "experiments" / "bench" / "scenes.py"


@pytest.fixture(scope="module")
def garment_scenes(experiment):
    return experiment("garment_scenes")


@pytest.fixture
def config(garment_scenes, data_dir, tmp_path):
    def make(**options):
        options = {"train": 12, "val": 3, "test": 2, "preview": 5, "columns": 3, **options}
        sheet = tmp_path / "sheets" / "sheet.png"
        return garment_scenes.Config(
            data="embedded", data_dir=data_dir, processes=1, sheet=sheet, **options
        )

    return make


def test_the_sheet_and_the_counts(garment_scenes, config, capsys):
    counts = garment_scenes.main(config())
    assert {split: found["scenes"] for split, found in counts.items()} == {
        "train": 12,
        "val": 3,
        "test": 2,
    }
    train = counts["train"]
    assert train["garments a scene"] == train["garments"] / 12
    assert 1 <= train["most in a scene"] <= 8
    assert 10 < train["longest side, 5 % below"] < train["longest side, 5 % above"] < 73
    shares = [train[f"{name}, %"] for name in ("T-shirt/top", "Sandal", "Bag", "Ankle Boot")]
    assert 0 < sum(shares) < 100
    printed = capsys.readouterr().out
    assert f"{train['garments']:,}" in printed
    assert "the first scenes of train:" in printed

    sheet = np.asarray(Image.open(config().sheet))
    # Two rows of three cells, each a scene of 256 above itself with its garments, and a gap.
    assert sheet.shape == (2 * (512 + 6) - 6, 3 * (256 + 6) - 6, 3)
    plain, drawn = sheet[:256, :256].astype(int), sheet[256:512, :256].astype(int)
    assert 0.01 < (np.abs(plain - drawn).max(-1) > 10).mean() < 0.9
    assert (sheet[-512:, -256:] == 255).all()  # the sixth cell is empty


def test_a_wrong_flag_is_one_line(garment_scenes, config):
    with pytest.raises(UserError, match="--preview and --columns must be at least 1"):
        garment_scenes.main(config(preview=0))
    with pytest.raises(UserError, match="counts of at least 1 for train, val, test, got val: 0"):
        garment_scenes.main(config(val=0))


@pytest.mark.slow
def test_the_benchmark(run_script, tmp_path):
    file = tmp_path / "numbers.json"
    flags = ["--sizes", 128, 224, "--processes", 1, "--scenes", 20, "--repeats", 1]
    flags += ["--data", "embedded", "--batch-size", 8, "--json", file]
    done = run_script(BENCH, *flags)
    assert done.returncode == 0, done.stderr
    assert "Preparing 20 scenes" in done.stdout
    numbers = json.loads(file.read_text())
    assert [(d["size"], d["processes"]) for d in numbers["drawing"]] == [(128, 1), (224, 1)]
    for drawing, reading in zip(numbers["drawing"], numbers["reading"], strict=True):
        assert 0 < drawing["load"] < drawing["prepare"] < 300
        assert reading["size"] == drawing["size"]
        ways = ("examples", "examples with masks", "batches of pictures")
        assert min(reading[way] for way in ways) > 10


def test_a_bad_flag_of_the_benchmark_is_one_line(run_script):
    done = run_script(BENCH, "--scenes", 0)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --scenes")
    assert done.stderr.count("\n") == 1
