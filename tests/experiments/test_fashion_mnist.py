"""experiments/fashion_mnist.py end to end, small: its files read back, its flags, its refusals."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "fashion_mnist.py"
NETWORK = {"features": (4,), "kernel_sizes": (5,), "hidden": (16,)}  # which compiles sooner


@pytest.fixture(scope="module")
def fashion_mnist(experiment):
    return experiment("fashion_mnist")


@pytest.fixture
def small(fashion_mnist, data_dir, tmp_path, monkeypatch):
    """A configuration of eleven steps an epoch, of every tenth picture inside the package."""

    def load_splits(*arguments, **options):
        splits = load_all(*arguments, **options)
        return {name: split.subset(np.arange(0, len(split), 10)) for name, split in splits.items()}

    def config(**changes):
        values = {"epochs": 1, "batch_size": 100, "learning_rate": 0.05, "data": "embedded"}
        values |= {"data_dir": data_dir, "run_dir": tmp_path / "run", "log_every": 5}
        values |= {"report": False}  # `trained_run` has one
        return fashion_mnist.Config(**(values | changes))

    load_all = fashion_mnist.load_splits
    monkeypatch.setattr(fashion_mnist, "load_splits", load_splits)
    return config


def read_records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_all_its_files(trained_run):
    config = json.loads((trained_run / "config.json").read_text())
    assert config["batch_size"] == 50
    assert config["data_source"].startswith("embedded")
    assert config["class_names"][0] == "T-shirt/top"
    records = read_records(trained_run)
    assert [r["epoch"] for r in records if "val/loss" in r] == [1, 2]
    last = records[-1]
    assert last["step"] == 440
    assert last["val/accuracy"] > 0.7  # 0.1 is chance; two epochs of 11,000 pictures
    report = (trained_run / "report.html").read_text()
    assert "Ankle Boot" in report
    assert len(list((trained_run / "samples").glob("*.png"))) == 10
    assert any((trained_run / "tensorboard").iterdir())
    _, variables, meta = load_checkpoint(trained_run)
    assert set(variables["params"]) == {"conv1", "conv2", "fc1", "fc2", "fc3"}
    assert meta["mean"] == 0.5


def test_stopped_and_resumed_equals_a_whole_run(
    fashion_mnist, experiment, small, tmp_path, monkeypatch, capsys
):
    classifier, steps = experiment("classifier"), []
    evaluate = classifier.evaluate

    def seen(eval_step, state, batches):
        steps.append(int(state.step))
        return evaluate(eval_step, state, batches)

    monkeypatch.setattr(classifier, "evaluate", seen)
    options = {"augment": True, **NETWORK}
    whole = fashion_mnist.main(small(epochs=2, run_dir=tmp_path / "whole", **options))
    assert len(steps) == len(set(steps)) == 2  # nothing is validated twice
    fashion_mnist.main(small(**options))
    resumed = fashion_mnist.main(small(epochs=2, resume=True, **options))
    assert resumed == whole
    assert "--epochs was" not in capsys.readouterr().out  # the rate is the same at any step
    a, b = (load_checkpoint(tmp_path / name, "latest")[1] for name in ("whole", "run"))
    for layer in a["params"]:
        for name in a["params"][layer]:
            np.testing.assert_array_equal(a["params"][layer][name], b["params"][layer][name])
    steps = [r["step"] for r in read_records(tmp_path / "run") if "val/loss" in r]
    assert steps == [11, 22]


def test_the_exercise_other_widths_kernels_and_depths(fashion_mnist, small, tmp_path):
    fashion_mnist.main(small(features=(4, 8, 8), kernel_sizes=(3, 3, 3), padding=1, hidden=(16,)))
    model, _, _ = load_checkpoint(tmp_path / "run")
    assert model.features == (4, 8, 8)
    assert model.hidden == (16,)


def test_average_accumulation_and_schedule(
    experiment, fashion_mnist, small, tmp_path, monkeypatch, capsys
):
    classifier, given = experiment("classifier"), {}
    make = classifier.make_train_step

    def watched(*arguments, **options):
        given.update(options)
        return make(*arguments, **options)

    monkeypatch.setattr(classifier, "make_train_step", watched)
    options = {"model": "mlp", "hidden": (8,), "ema_decay": 0.9, "accumulate": 4, "cosine": True}
    fashion_mnist.main(small(**options))
    rates = [r["train/learning_rate"] for r in read_records(tmp_path / "run") if "train/loss" in r]
    assert rates[0] > rates[-1] > 0
    _, average, _ = load_checkpoint(tmp_path / "run")
    assert average["params"]["fc1"]["kernel"].shape == (784, 8)
    assert (given["accumulate"], given["ema_decay"]) == (4, 0.9)
    capsys.readouterr()
    fashion_mnist.main(small(**options, epochs=2, resume=True))
    assert "--epochs was 1, now 2: a rate that falls" in capsys.readouterr().out


def test_mistakes_are_refused_before_anything_is_written(fashion_mnist, small, tmp_path):
    with pytest.raises(UserError, match=r"convolution 3 .* does not fit: its input is 4x4"):
        fashion_mnist.main(small(features=(4, 4, 4), kernel_sizes=(5, 5, 5)))
    with pytest.raises(UserError, match=r"batch size of at most 1100.*got 2000"):
        fashion_mnist.main(small(batch_size=2000))
    with pytest.raises(UserError, match="at least 1 epoch, got 0"):
        fashion_mnist.main(small(epochs=0))
    for few in ({"epochs": 0, "cosine": True}, {"accumulate": 0}):
        with pytest.raises(UserError, match=r"at least 1|into 0 equal parts"):
            fashion_mnist.main(small(**few))
    with pytest.raises(UserError, match="a batch of 100 does not split into 3 equal parts"):
        fashion_mnist.main(small(accumulate=3))
    with pytest.raises(UserError, match="model 'mlp' has no option features"):
        fashion_mnist.main(small(model="mlp", features=(3,)))
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(UserError, match="expected --log-every and --checkpoint-every of at least"):
        fashion_mnist.main(small(log_every=-5, **NETWORK))


def test_another_models_run_folder_is_refused_and_untouched(fashion_mnist, small, tmp_path):
    fashion_mnist.main(small(**NETWORK))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="model was 'lenet', now 'mlp'"):
        fashion_mnist.main(small(model="mlp", resume=True))
    with pytest.raises(UserError, match="holds a run already"):
        fashion_mnist.main(small(model="mlp"))
    (tmp_path / "run" / "config.json").unlink()  # even when nothing but the checkpoint tells
    with pytest.raises(UserError, match="does not fit the model"):
        fashion_mnist.main(small(model="mlp", resume=True))
    after = {p: p.read_bytes() for p in before if p.exists()}
    assert {p: b for p, b in before.items() if p.name != "config.json"} == {
        p: b for p, b in after.items() if p.name != "config.json"
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "nowhere"], "error: .*nowhere"),
        (["--data", "embedded", "--batch-size", "0"], "error: .*batch size of at least 1"),
        (
            ["--data", "embedded", "--kernel-sizes", "9", "11"],
            "error: lenet: convolution 2.* does not fit",
        ),
        (
            ["--data", "embedded", "--resume", "--run-dir", "nowhere"],
            "error: cannot resume: there is no run in nowhere",
        ),
    ],
)
def test_the_command_line_says_one_line_and_fails(run_script, flags, message, data_dir, tmp_path):
    if "--run-dir" not in flags:
        flags = [*flags, "--run-dir", tmp_path / "run"]
    result = run_script(SCRIPT, *flags, "--data-dir", data_dir)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    [line] = result.stderr.strip().splitlines()
    assert re.search(message, line)


def test_unknown_flags_and_help(run_script):
    assert run_script(SCRIPT, "--epoch", "3").returncode == 2
    result = run_script(SCRIPT, "--help")
    assert result.returncode == 0
    for flag in (
        "--epochs",
        "--batch-size",
        "--seed",
        "--data",
        "--run-dir",
        "--resume",
        "--model",
    ):
        assert flag in result.stdout


def test_ctrl_c_saves_and_says_how_to_go_on(run_script, tmp_path, data_dir):
    run = tmp_path / "run"
    flags = ["--data", "embedded", "--data-dir", data_dir, "--run-dir", run, "--log-every", "20"]
    # Many steps of a small network: time enough for the signal, and soon at the end.
    flags += ["--epochs", "1", "--batch-size", "4", "--no-report", "--model", "mlp"]
    flags = [*map(str, flags), "--hidden", "8"]
    process = subprocess.Popen(
        [sys.executable, "-u", "experiments/fashion_mnist.py", *flags],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stdout:
            if line.startswith("epoch 1  step"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 128 + signal.SIGINT
    assert "stopped by SIGINT after step" in rest
    assert f"--run-dir {run}" in rest
    resume = rest.strip().splitlines()[-1].split()
    assert resume[:2] == ["python", "experiments/fashion_mnist.py"]
    assert resume[-1] == "--resume"
    result = run_script(SCRIPT, *resume[2:])
    assert result.returncode == 0, result.stderr
    assert "going on from step" in result.stdout
