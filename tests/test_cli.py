"""The command line: predict, evaluate, info and their refusals."""

import json
import os
import runpy
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def jaxvision(monkeypatch, capsys):
    """Runs the command as `python -m jaxvision` would, within this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxvision", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        capsys.readouterr()
        try:
            runpy.run_module("jaxvision", run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


def test_predict_classifies_the_sample_pictures_in_a_process_of_its_own(trained_run, tmp_path):
    out = tmp_path / "predictions.json"
    words = ["predict", trained_run, trained_run / "samples", "--json", out]
    result = subprocess.run(
        [sys.executable, "-m", "jaxvision", *map(str, words)],
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    predictions = json.loads(out.read_text())
    assert len(predictions) == 10
    right = 0
    for p in predictions:
        assert p["class"] in result.stdout
        assert p["probability"] == pytest.approx(max(p["probabilities"].values()))
        name = p["class"].lower().replace("/", "-").replace(" ", "-")
        right += p["picture"].endswith(f"-{name}.png")
    assert right >= 6


@pytest.mark.parametrize("words", [["predict", "--help"], ["info", "--help"]])  # long and short
def test_a_reader_that_has_read_enough_is_no_error(words):
    command = [sys.executable, "-m", "jaxvision", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_bad_picture_is_named_and_the_others_still_predicted(jaxvision, trained_run, tmp_path):
    good = next((trained_run / "samples").glob("*.png")).read_bytes()
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "b.png").write_bytes(good[:100])
    result = jaxvision("predict", trained_run, tmp_path)
    assert result.returncode == 1
    assert "a.png" in result.stdout
    assert "b.png" in result.stderr
    assert "error: 1 of 2 pictures could not be read" in result.stderr
    assert "Traceback" not in result.stderr


def test_evaluate_gives_the_figures_of_training(jaxvision, trained_run):
    result = jaxvision("evaluate", trained_run)  # on the pictures that its config names
    assert result.returncode == 0, result.stderr
    records = [json.loads(s) for s in (trained_run / "metrics.jsonl").read_text().splitlines()]
    best = min((r for r in records if "val/loss" in r), key=lambda r: r["val/loss"])
    expected = f"test: loss {best['val/loss']:.4f}, accuracy {best['val/accuracy']:.2%} of 2,000"
    assert expected in result.stdout
    assert "Ankle Boot" in result.stdout


def test_info_names_model_and_checkpoints(jaxvision, trained_run):
    result = jaxvision("info", trained_run)
    assert result.returncode == 0, result.stderr
    assert "lenet" in result.stdout
    assert "Ankle Boot" in result.stdout
    assert "best" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{tmp}", "{run}/samples"], "error: no checkpoints in"),
        (["predict", "{run}", "{tmp}/nothing.png"], "error: no such file or folder"),
        (["predict", "{run}", "{tmp}"], "error: no pictures in"),
        (["predict", "{run}", "{run}/samples", "--which", "77"], "error: no checkpoint 77"),
        (["info", "{tmp}"], "is not a run folder"),
    ],
)
def test_mistakes_are_one_line(jaxvision, trained_run, tmp_path, arguments, message):
    words = [a.format(run=trained_run, tmp=tmp_path) for a in arguments]
    result = jaxvision(*words)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_help_names_every_command(jaxvision):
    result = jaxvision("--help")
    assert result.returncode == 0
    for command in ("predict", "evaluate", "info", "convert"):
        assert command in result.stdout
