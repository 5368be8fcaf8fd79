"""The error that a user's mistake raises, and how commands show it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something outside the library is wrong: a file, a flag, a run folder, a picture.

    The message is one line that says what was expected, what came, and what to do. Commands print
    it and exit with status 1; a traceback would only hide it.
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """For a command's main: prints a `UserError` as `error: …` on stderr, exits with status 1."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def describe_os_error(error: OSError) -> str:
    """Returns why the operating system refused, in its own words: "No space left on device"."""
    return error.strerror or str(error)
