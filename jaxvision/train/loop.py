"""The one training loop: every task brings its steps, its batches and its evaluation."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.data.pipeline import prefetch
from jaxvision.errors import UserError
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.log import RunLog
from jaxvision.train.state import TrainState
from jaxvision.types import Batch

SHORT_EPOCH = 5.0
"""Seconds. After a shorter epoch the next checkpoint would wait for this one anyway; until then
writing it would only slow down the steps."""


class DivergedError(UserError):
    """The loss, the gradients or the parameters are no longer finite numbers."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` ended with: the state, and the signal that stopped it early, if one did."""

    state: TrainState
    stopped_by: signal.Signals | None = None


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]],
    batch_at: Callable[[int], Batch],
    *,
    steps: int,
    steps_per_epoch: int,
    batch_size: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    schedule: Callable[[int], Any] | None = None,
    log: RunLog | None = None,
    store: CheckpointStore | None = None,
    meta: Mapping[str, Any] | None = None,
    log_every: int = 100,
    checkpoint_every: int | None = None,
    workers: int = 0,
) -> FitResult:
    """Trains from `state.step` up to step `steps` and returns the last state.

    `batch_at(n)` is the batch of step n and must be a pure function of n: then a run that is
    stopped anywhere and restored goes on exactly as if nothing had happened. With `workers` threads
    batches are made, and put on the device, ahead of their step.

    At the end of each epoch, and of the run, `evaluate(state)` gives validation metrics (logged as
    `val/…`) and `store` saves a checkpoint that competes for best by them; every `checkpoint_every`
    steps it saves one that does not. Ctrl-C and SIGTERM finish the step, save and return; a second
    Ctrl-C interrupts at once. Where loss, gradients or parameters are not finite, `DivergedError`
    says at which step, and the checkpoints stay as they were.

    The loop never waits for the device within an epoch: metrics are read one interval late.
    """
    if min(steps, steps_per_epoch, log_every, checkpoint_every or 1) < 1:
        raise ValueError(
            "steps, steps_per_epoch, log_every and checkpoint_every must be at least 1"
        )
    start = int(state.step)
    log = log or RunLog(None, quiet=True)
    recorder = _Recorder(log, steps_per_epoch, batch_size, schedule, store)

    def save(metrics: Mapping[str, float] | None) -> None:
        if store is None:
            return
        if not _all_finite({"params": state.params, "batch_stats": state.batch_stats}):
            raise DivergedError(recorder.diverged_message("the parameters", int(state.step)))
        store.save(state, metrics=metrics, meta=meta)

    log.start(total=steps, done=start)
    stopped_by = None
    epoch_began = time.perf_counter()
    with _stop_on_signal() as stop_signal:
        batches = _batches(batch_at, start, steps, workers)
        for step, batch in enumerate(batches, start=start + 1):
            state, metrics = train_step(state, batch)
            recorder.add(step, metrics)
            log.advance(step)
            stopped_by = stop_signal() if step < steps else None
            epoch_ends = step % steps_per_epoch == 0 or step == steps
            if step % log_every == 0 or epoch_ends or stopped_by:
                recorder.end_interval(wait=epoch_ends)
            if epoch_ends:
                recorder.flush()
                with recorder.clock_stopped():
                    scores = None
                    if evaluate is not None:
                        scores = {f"val/{k}": float(v) for k, v in evaluate(state).items()}
                        recorder.write_validation(step, scores)
                    save(scores)
                    if store is not None and time.perf_counter() - epoch_began < SHORT_EPOCH:
                        store.wait()
                epoch_began = time.perf_counter()
            elif stopped_by or (checkpoint_every and step % checkpoint_every == 0):
                recorder.flush()  # so that no line of an earlier step is missing after a kill
                with recorder.clock_stopped():
                    save(None)
            if stopped_by:
                batches.close()
                break
        stopped_by = stopped_by or stop_signal()  # also while the last step was evaluated and saved
    if store is not None:
        store.wait()
    return FitResult(state, stopped_by)


def evaluate(
    eval_step: Callable[[TrainState, Any], dict[str, Any]],
    state: TrainState,
    batches: Iterable[Any],
) -> dict[str, float]:
    """Returns the mean of each metric over all valid examples of `batches`.

    `eval_step` returns sums and `count`, as `make_eval_step` makes it. They are added on the device
    and read once, at the end.
    """
    total = None
    for batch in batches:
        sums = eval_step(state, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = jax.device_get(total)
    if not total or not total["count"]:
        raise UserError("nothing to evaluate: the data set has no valid example")
    return {k: float(v) / float(total["count"]) for k, v in total.items() if k != "count"}


class _Recorder:
    """Collects each step's metrics on the device and reads them an interval later."""

    def __init__(self, log: RunLog, steps_per_epoch, batch_size, schedule, store):
        self._log = log
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._schedule = schedule
        self._store = store
        self._current: list[tuple[int, dict[str, Any]]] = []
        self._finished: list[tuple[list, float]] = []
        self._interval_start = time.perf_counter()

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        self._current.append((step, metrics))

    def end_interval(self, *, wait: bool) -> None:
        """Sets the interval aside and reads the one before, which the device finished long ago.

        Before something that takes the device away from training, `wait` makes the time right.
        """
        if wait:
            jax.block_until_ready(self._current[-1][1])
        now = time.perf_counter()
        self._finished.append((self._current, now - self._interval_start))
        self._current, self._interval_start = [], now
        while len(self._finished) > 1:
            self._write(*self._finished.pop(0))

    def flush(self) -> None:
        """Waits for all that was dispatched, and writes the intervals that have ended."""
        if self._current:
            jax.block_until_ready(self._current[-1][1])
        while self._finished:
            self._write(*self._finished.pop(0))

    @staticmethod
    def _read(interval) -> dict[str, np.ndarray]:
        values = jax.device_get([metrics for _, metrics in interval])
        return {name: np.array([v[name] for v in values], np.float64) for name in values[0]}

    def _write(self, interval, seconds: float) -> None:
        values = self._read(interval)
        last = interval[-1][0]
        for name in ("loss", "grad_norm"):
            bad = np.flatnonzero(~np.isfinite(values.get(name, np.zeros(1))))
            if bad.size:
                step = interval[bad[0]][0]
                what = f"the {name.replace('_', ' ')} ({values[name][bad[0]]})"
                raise DivergedError(self.diverged_message(what, step))
        record = {"step": last, "epoch": self._epoch(last)}
        record |= {f"train/{name}": float(v.mean()) for name, v in values.items()}
        if self._schedule is not None:
            record["train/learning_rate"] = float(self._schedule(last - 1))
        if self._batch_size is not None and seconds > 0:
            record["train/examples_per_second"] = self._batch_size * len(interval) / seconds
        self._log.write(record)

    def write_validation(self, step: int, values: Mapping[str, float]) -> None:
        if not all(math.isfinite(v) for v in values.values()):
            raise DivergedError(self.diverged_message(f"the validation metrics ({values})", step))
        record = {"step": step, "epoch": self._epoch(step)}
        self._log.write(record | dict(values))

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Evaluation and checkpoints do not count in examples per second."""
        since = time.perf_counter()
        yield
        self._interval_start += time.perf_counter() - since

    def diverged_message(self, what: str, step: int) -> str:
        rate = ""
        if self._schedule is not None:
            rate = f", learning rate {float(self._schedule(step - 1)):.3g}"
        kept = "no checkpoint had been saved"
        if self._store is not None and self._store.steps():
            kept = f"the checkpoint of step {self._store.steps()[-1]} is kept"
        return (
            f"{what} is not finite at step {step} (epoch {self._epoch(step)}{rate}); training "
            f"stopped, {kept}. Lower the learning rate, clip gradients, or look for NaN in the data"
        )

    def _epoch(self, step: int) -> int:
        """The epoch, counted from 1, to which the `step`-th update belongs."""
        return -(-step // self._steps_per_epoch)


def _batches(batch_at, start: int, stop: int, workers: int) -> Iterator[Batch]:
    if workers:
        # At least two for each worker: one that waits while the other is made.
        options = {"workers": workers, "depth": max(4, 2 * workers)}
        yield from prefetch(lambda n: jax.device_put(batch_at(n)), start, stop, **options)
    else:
        for step in range(start, stop):
            yield batch_at(step)


def _all_finite(tree: Any) -> bool:
    """On the host, where what is saved goes anyway: no program to compile for each network."""
    return all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(tree)))


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], signal.Signals | None]]:
    """Remembers the first SIGINT or SIGTERM instead of dying; a second one acts as usual."""
    received: list[signal.Signals] = []
    previous = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: Any) -> None:
        received.append(signal.Signals(number))
        restore()

    if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, on_signal)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()
