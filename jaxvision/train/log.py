"""What a run says of itself: metrics.jsonl, TensorBoard events, a progress bar or plain lines."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxvision.errors import UserError, describe_os_error
from jaxvision.train.events import EventFile

SHOWN_METRICS = ("loss", "accuracy", "learning_rate", "examples_per_second")


class RunLog:
    """Writes records of metrics to the run folder and shows them.

    A record is a flat dictionary with `step`, `epoch` and keys such as `train/loss`. Each is one
    line of metrics.jsonl, flushed as it is written, and its numbers are TensorBoard scalars.
    `start_step` is where the run goes on: lines of later steps, left by a run that was killed, are
    dropped. With `run_dir` None nothing is written, with `quiet` nothing is shown. `line` makes the
    text that is shown of a record, or None for a record that is not worth one.
    """

    def __init__(
        self,
        run_dir: str | Path | None,
        *,
        start_step: int = 0,
        quiet: bool = False,
        line: Callable[[dict[str, Any]], str | None] | None = None,
    ):
        self._format = line
        self._file = self._events = None
        self._progress: Progress | None = None
        self._task = None
        self._quiet = quiet
        self._console = Console()
        if run_dir is not None:
            run_dir = Path(run_dir)
            try:
                self._path = run_dir / "metrics.jsonl"
                _drop_records_after(self._path, start_step)
                self._file = self._path.open("a", encoding="utf-8")
                purge_step = start_step + 1 if start_step else None
                self._events = EventFile(run_dir / "tensorboard", purge_step=purge_step)
            except OSError as error:
                raise UserError(f"cannot write to {run_dir}: {describe_os_error(error)}") from error

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def start(self, total: int, done: int, what: str = "training") -> None:
        """Shows a progress bar of `total` steps, of which `done` are behind us, on a terminal."""
        if self._quiet or not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total, completed=done, note="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def write(self, record: dict[str, Any]) -> None:
        """Writes and shows one record. Numbers that are not finite are written as null."""
        if self._file is not None:
            plain = {k: _json_number(v) for k, v in record.items()}
            try:
                self._file.write(json.dumps(plain) + "\n")
                self._file.flush()
                metrics = {k: v for k, v in plain.items() if "/" in k and v is not None}
                self._events.write(metrics, record["step"])
            except OSError as error:
                raise UserError(
                    f"cannot write to {self._path}: {describe_os_error(error)}"
                ) from error
        validation = any(name.startswith("val/") for name in record)
        if self._format is not None:
            text = self._format(record)
            if text is not None:
                self.say(text)
        elif self._progress is not None and not validation:
            self._progress.update(self._task, note=_line(record, with_step=False))
        else:
            self.say(_line(record))

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._quiet:
            return
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Closes the files and takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if self._file is not None:
            try:
                self._events.close()
                self._file.close()
            except OSError as error:
                if sys.exc_info()[0] is None:  # never hide the error that got us here
                    raise UserError(
                        f"cannot write to {self._path}: {describe_os_error(error)}"
                    ) from error
            self._file = self._events = None


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: dict[str, Any], *, with_step: bool = True) -> str:
    parts = [f"epoch {record['epoch']}  step {record['step']}"] if with_step else []
    for name, value in record.items():
        prefix, _, metric = name.partition("/")
        if metric not in SHOWN_METRICS or value is None:
            continue
        label = "val " if prefix == "val" else ""
        if metric == "examples_per_second":
            parts.append(f"{value:,.0f} examples/s")
        else:
            parts.append(f"{label}{metric.replace('_', ' ')} {value:.4g}")
    return "  ".join(parts)


def _drop_records_after(path: Path, step: int) -> None:
    """Keeps the lines of a killed run up to `step`; the last one may be half written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
