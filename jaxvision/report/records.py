"""The lines of metrics.jsonl: read, and taken apart into one series a metric."""

import json
from collections.abc import Iterable, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvision.errors import UserError

Record = dict[str, Any]
"""One line: `step`, `epoch`, metrics such as `train/loss` or `val/accuracy`; any may be missing."""


class Point(NamedTuple):
    """A metric's `value` at `x`, a step (or an epoch where no record has a step)."""

    x: float
    value: float


def read_records(path: str | Path) -> list[Record]:
    """Returns the records of a metrics.jsonl file.

    A half-written last line, as a kill leaves it, is ignored; so are blank lines. Any other
    damage, or a file that can't be read, is a `UserError` that names the file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            # split leaves what follows the last line break, so only an unfinished line is the last.
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: expected a JSON object ({error})") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise UserError(f"{path}, line {number}: expected a JSON object, got a {kind}")
        records.append(record)
    return records


def number(value: object) -> float:
    """Returns `value` as a float; NaN for what isn't one, such as null for a diverged loss."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return nan


def axis_key(records: Iterable[Record]) -> str:
    """Returns what the records are placed by: "step", or "epoch" where none has a step."""
    return "step" if any(isfinite(number(r.get("step"))) for r in records) else "epoch"


def series(records: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (x, values), float64, of the records that have `key`, in the order of x.

    A resumed run may log a step again: the later record wins. Values that are not finite stay in,
    as NaN or infinity; records without a place on the axis are left out.
    """
    axis = axis_key(records)
    points = {number(r.get(axis)): number(r[key]) for r in records if key in r}
    ordered = sorted((x, value) for x, value in points.items() if isfinite(x))
    x, values = np.array(ordered, np.float64).reshape(-1, 2).T
    return x, values


def epochs(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (x, epoch): where each whole epoch was last validated, to mark along an axis."""
    validated = [r for r in records if any(key.startswith("val/") for key in r)]
    x, values = series(validated, "epoch")
    last = {value: place for place, value in zip(x, values, strict=True) if value == value // 1}
    return np.array(list(last.values())), np.array(list(last))


def last_point(records: Sequence[Record], key: str) -> Point | None:
    """Returns the last value of `key`, finite or not, or None where there is none."""
    x, values = series(records, key)
    return Point(float(x[-1]), float(values[-1])) if x.size else None


def best_point(records: Sequence[Record], key: str, *, largest: bool) -> Point | None:
    """Returns the largest (or smallest) finite value of `key`; of equal ones the last, of which
    the best checkpoint is."""
    x, values = series(records, key)
    finite = np.isfinite(values)
    if not finite.any():
        return None
    x, values = x[finite][::-1], values[finite][::-1]
    index = int(np.argmax(values) if largest else np.argmin(values))
    return Point(float(x[index]), float(values[index]))


def first_not_finite(records: Sequence[Record], keys: Iterable[str]) -> tuple[str, float] | None:
    """Returns (key, x) of the earliest value that is NaN or infinite, or None."""
    found = []
    for key in keys:
        x, values = series(records, key)
        found += [(float(place), key) for place in x[~np.isfinite(values)][:1]]
    return min(found)[::-1] if found else None
