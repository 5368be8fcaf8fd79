"""Work in other processes: order, errors, and that nothing of it is left behind."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jaxvision.data.parallel import available_cores, map_in_processes
from jaxvision.errors import UserError


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_an_error_where_its_result_would(processes):
    results = map_in_processes(math.sqrt, [0, 1, 4, 9, 16, 25, 36, -1, 1], processes=processes)
    assert [next(results) for _ in range(7)] == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        next(results)


def test_a_process_that_dies_is_one_clear_error():
    with pytest.raises(UserError, match="2 processes ended before its work was done"):
        list(map_in_processes(os._exit, [3, 3], processes=2))


def test_the_number_of_processes():
    assert available_cores() >= 1
    with pytest.raises(UserError, match="at least 1 process, got 0"):
        list(map_in_processes(abs, [1], processes=0))


SCRIPT = """
import operator
from functools import partial
from jaxvision.data.parallel import map_in_processes
print(list(map_in_processes(partial(operator.add, 1), range(5), processes=2)))
"""


@pytest.mark.parametrize("place", ["file", "standard input"])
def test_a_script_needs_no_main_guard(tmp_path, place):
    """Processes that are started afresh would run it again, and those would start processes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py" if place == "file" else "-"]
    text = None if place == "file" else SCRIPT
    done = subprocess.run(
        command, input=text, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[1, 2, 3, 4, 5]\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_processes_end_with_the_one_that_started_them():
    program = """
        import os, time
        from jaxvision.data.parallel import map_in_processes
        results = map_in_processes(
            eval, ["__import__('os').getpid()", *["__import__('time').sleep(60)"] * 9], processes=2
        )
        print(next(results), flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(process):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False
