"""What orbax and tensorstore raise where a checkpoint cannot be written or read, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0]
