"""Run folders: never overwritten, resumed only as they were, locked."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxvision.errors import UserError
from jaxvision.train.run import Run, newest_run, read_config, write_json


@dataclass(frozen=True)
class Config:
    model: str = "lenet"
    widths: tuple[int, ...] = (6, 16)
    epochs: int = 5
    run_dir: Path | None = None


def test_a_new_run_has_its_config_on_disk(tmp_path):
    with Run("demo", Config(), root=tmp_path) as run:
        run.write_config(data_source="embedded", train_pictures=11_000)
    assert run.path.parent == tmp_path / "demo"
    assert not run.resumed
    assert read_config(run.path) == {
        "model": "lenet",
        "widths": [6, 16],
        "epochs": 5,
        "run_dir": None,
        "data_source": "embedded",
        "train_pictures": 11_000,
    }


def finished_run(path, config=None):
    with Run("demo", config or Config(), run_dir=path) as run:
        run.write_config(data_source="embedded", train_pictures=11_000)


def test_an_existing_run_is_not_overwritten(tmp_path):
    finished_run(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match="holds a run already; use --resume"):
        Run("demo", Config(), run_dir=tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_resumed_run_may_change_only_what_is_harmless(tmp_path):
    finished_run(tmp_path)
    longer = Run("demo", Config(epochs=9, run_dir=tmp_path), run_dir=tmp_path, resume=True)
    assert longer.resumed
    longer.write_config(data_source="elsewhere", train_pictures=11_000)
    longer.close()
    assert read_config(tmp_path)["epochs"] == 9
    with pytest.raises(UserError, match=r"model was 'lenet', now 'mlp'; widths was \[6, 16\], now"):
        Run("demo", Config(model="mlp", widths=(9,)), run_dir=tmp_path, resume=True)
    other_data = Run("demo", Config(), run_dir=tmp_path, resume=True)
    with pytest.raises(UserError, match="train_pictures was 11000, now 60000"):
        other_data.write_config(data_source="full", train_pictures=60_000)
    other_data.close()
    assert read_config(tmp_path)["train_pictures"] == 11_000


def test_resume_takes_the_newest_run(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        Run("demo", Config(), resume=True, root=tmp_path)
    for age, name in enumerate(["c", "a", "b"]):
        finished_run(tmp_path / "demo" / name)
        os.utime(tmp_path / "demo" / name / "config.json", (age, age))
    assert newest_run("demo", tmp_path).name == "b"
    run = Run("demo", Config(), resume=True, root=tmp_path)
    assert run.path.name == "b"
    run.close()
    with pytest.raises(UserError, match="cannot resume: there is no run in"):
        Run("demo", Config(), run_dir=tmp_path / "none", resume=True)


def test_two_processes_cannot_write_to_one_run(tmp_path):
    run = Run("demo", Config(), run_dir=tmp_path)
    run.write_config()
    with pytest.raises(UserError, match="another process is writing"):
        Run("demo", Config(), run_dir=tmp_path, resume=True)
    run.close()
    Run("demo", Config(), run_dir=tmp_path, resume=True).close()


def test_a_file_system_without_locks_has_runs_all_the_same(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    number = errno.ENOLCK
    Run("demo", Config(), run_dir=tmp_path / "a").close()
    number = errno.EIO
    with pytest.raises(UserError, match=r"cannot lock the run folder .*: Input/output error"):
        Run("demo", Config(), run_dir=tmp_path / "b")


def test_what_was_written_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"mAP50": 0.5})
    assert json.loads(path.read_text()) == {"mAP50": 0.5}

    def full(*names):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*result.json: No space left on device"):
        write_json(path, {"mAP50": 0.6})
    assert json.loads(path.read_text()) == {"mAP50": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_and_missing_configs_are_named(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_config(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to the run folder .*: Not a directory"):
        Run("demo", Config(), run_dir=tmp_path / "file" / "run")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount read-only")
def test_a_read_only_run_folder_is_one_line(tmp_path):
    script = (
        "from dataclasses import make_dataclass\n"
        "from jaxvision.errors import exit_on_user_error\n"
        "from jaxvision.train.run import Run\n"
        "with exit_on_user_error():\n"
        f"    Run('demo', make_dataclass('Config', [])(), run_dir={str(tmp_path)!r})"
    )
    mount = f'mount -t tmpfs -o ro none {tmp_path} || exit 77; {sys.executable} -c "$SCRIPT"'
    result = subprocess.run(
        ["unshare", "--map-root-user", "--user", "--mount", "sh", "-c", mount],
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        text=True,
    )
    if result.returncode == 77:
        pytest.skip("this machine does not let an ordinary user mount a tmpfs")
    assert result.returncode == 1
    assert result.stderr == (
        f"error: cannot write to the run folder {tmp_path}: Read-only file system\n"
    )


def test_the_resume_command_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/x.py", "--epochs", "3"])
    run = Run("demo", Config(), run_dir=tmp_path / "my run")
    command = run.resume_command()
    run.close()
    assert command == f"python experiments/x.py --epochs 3 --run-dir '{tmp_path}/my run' --resume"
    with Run("demo", Config(), run_dir=tmp_path / "whole") as run:
        for name in ("first", "second"):
            with Run("part", Config(), run_dir=tmp_path / "whole" / name) as part:
                assert part.resume_command() == run.resume_command()
    assert str(tmp_path / "whole") in run.resume_command()
