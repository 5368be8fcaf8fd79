"""Killed anywhere, nothing lost: kill -9 at random moments and inside checkpoint writes."""

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TARGET = Path(__file__).with_name("kill_target.py")
KILLS, STEPS = 10, 420


@contextmanager
def running(run_dir: Path):
    """The target, past its start: it is about to take its first step."""
    command = [sys.executable, str(TARGET), str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("from ")
        yield process


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


def being_written(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def test_ten_kills_end_bit_identical_to_none(tmp_path):
    rng = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with running(whole) as process:
        assert process.wait() == 0

    inside_a_write, deaths = 0, 0
    for attempt in range(KILLS):
        with running(killed) as process:
            if attempt % 2:
                wait_for(lambda: being_written(killed), process)
            else:
                time.sleep(rng.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
            deaths += process.wait() == -signal.SIGKILL
        inside_a_write += being_written(killed)
    assert deaths == KILLS, "the run must be long enough to be killed every time"
    assert inside_a_write >= 2, "some kills must have hit a checkpoint while it was written"
    with running(killed) as process:
        assert process.wait() == 0

    with np.load(whole / "final.npz") as expected, np.load(killed / "final.npz") as found:
        assert set(expected) == set(found)
        assert len(expected) == 14  # step, six parameters, six momenta, the schedule's count
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)

    lines = (killed / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps), "the log is in order, each step once for each kind"
    validation = [json.loads(line) for line in lines if "val/loss" in line]
    whole_lines = (whole / "metrics.jsonl").read_text().splitlines()
    assert validation == [json.loads(line) for line in whole_lines if "val/loss" in line]


def test_sigterm_finishes_the_step_saves_and_resumes(tmp_path):
    with running(tmp_path) as process:
        log = tmp_path / "metrics.jsonl"
        wait_for(lambda: log.exists() and log.stat().st_size, process)  # training is under way
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved, "the state was saved when the signal came"
    assert max(saved) < STEPS
    with running(tmp_path) as process:
        assert process.wait() == 0
    with np.load(tmp_path / "final.npz") as final:
        assert final[".step"] == STEPS
