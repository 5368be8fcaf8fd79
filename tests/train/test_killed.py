"""Killed anywhere, nothing lost: kill -9 at random moments and inside checkpoint writes."""

import json
import multiprocessing
import os
import random
import signal
import time
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import kill_target
import numpy as np
import pytest

pytestmark = pytest.mark.slow

KILLS, STEPS = 10, kill_target.STEPS

# A server that has imported JAX forks each process: a new Python would import it anew.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["jaxvision.losses", "jaxvision.models", "jaxvision.train.checkpoint", "jaxvision.train.log"]
)


@contextmanager
def running(run_dir: Path):
    """The target, past its start: it is about to take its first step."""
    started = CONTEXT.Event()
    process = CONTEXT.Process(target=kill_target.train, args=(str(run_dir), started))
    process.start()
    try:
        assert started.wait(timeout=60)
        yield process
    finally:
        process.kill()
        process.join()


def wait_for(condition, process: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)


def exit_of(process: BaseProcess) -> int | None:
    process.join(timeout=60)
    return process.exitcode


def being_written(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def test_ten_kills_end_bit_identical_to_none(tmp_path):
    rng = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with running(whole) as process:
        assert exit_of(process) == 0

    inside_a_write, deaths = 0, 0
    for attempt in range(KILLS):
        with running(killed) as process:
            if attempt % 2:
                wait_for(lambda: being_written(killed), process)
            else:
                time.sleep(rng.uniform(0.0, 0.4))
            os.kill(process.pid, signal.SIGKILL)
            deaths += exit_of(process) == -signal.SIGKILL
        inside_a_write += being_written(killed)
    assert deaths == KILLS, "the run must be long enough to be killed every time"
    assert inside_a_write >= 2, "some kills must have hit a checkpoint while it was written"
    with running(killed) as process:
        assert exit_of(process) == 0

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
        os.kill(process.pid, signal.SIGTERM)
        assert exit_of(process) == 0
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved, "the state was saved when the signal came"
    assert max(saved) < STEPS
    with running(tmp_path) as process:
        assert exit_of(process) == 0
    with np.load(tmp_path / "final.npz") as final:
        assert final[".step"] == STEPS
