"""Work in parallel processes, with the results in order."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from jaxvision.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")
AHEAD_PER_PROCESS = 2


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], *, processes: int
) -> Iterator[Result]:
    """Yields `function(item)` of each item, in order, computed in `processes` processes.

    The processes are started afresh, because forking a process that has JAX's threads may hang it.
    `function` can be pickled and is sent once to each, so it may hold large arrays. With one
    process, this one does the work. Where the caller's process is killed, the others end too.

    >>> list(map_in_processes(abs, [1, -2], processes=1))
    [1, 2]
    """
    if processes < 1:
        raise UserError(f"expected at least 1 process, got {processes}")
    if processes == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start, initargs=(function,)
    )
    try:
        waiting = deque()
        for item in items:
            with _without_main_module():  # a process may be started with any item
                waiting.append(pool.submit(_call, item))
            if len(waiting) > AHEAD_PER_PROCESS * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {processes} processes ended before its work was done, perhaps for want of "
            "memory: use fewer processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[Any], Any] | None = None


def _start(function: Callable[[Any], Any]) -> None:
    import cv2

    global _function
    _function = function
    cv2.setNumThreads(0)  # each process has a core; OpenCV's own threads would fight for them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(item: Any) -> Any:
    assert _function is not None, "set when the process starts"
    return _function(item)


def _end_with_parent() -> None:
    """A pool's processes wait for work without end when the one that started them is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Starts processes that do not run the user's script again.

    They need nothing of it, and a script without `if __name__ == "__main__"` would start processes
    in each of them; one that is read from standard input can't be run again at all.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
