"""What orbax and tensorstore raise where a checkpoint cannot be written or read, in one line."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvision.errors import UserError


@contextmanager
def write_errors_explained(place: Path) -> Iterator[None]:
    """Turns what orbax and tensorstore raise on a failed write into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error)
        full = any(sign in text for sign in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC"))
        why = "the disk is full" if full else f"{type(error).__name__}: {_first_line(text)}"
        raise UserError(
            f"could not write a checkpoint to {place}: {why}; earlier checkpoints are untouched"
        ) from error


@contextmanager
def read_errors_explained(place: Path, step: int | None = None) -> Iterator[None]:
    """Turns what orbax raises on a damaged checkpoint into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        which = "" if step is None else f" of step {step}"
        raise UserError(
            f"the checkpoint in {place}{which} cannot be read, it is damaged or incomplete "
            f"({type(error).__name__}: {_first_line(str(error))})"
        ) from error


@dataclass(frozen=True)
class _WithoutLateWrites:
    """A `sys.unraisablehook` that lets pass what is not of a write that nobody waits for."""

    others: Callable[[Any], None]

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (late and unraisable.object is None):
            self.others(unraisable)


def silence_late_writes() -> None:
    """Keeps tensorstore from printing a traceback for each write that ends after a failed one.

    Orbax has closed the event loop by then, to which tensorstore's own threads report.
    """
    if not isinstance(sys.unraisablehook, _WithoutLateWrites):
        sys.unraisablehook = _WithoutLateWrites(sys.unraisablehook)


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]
