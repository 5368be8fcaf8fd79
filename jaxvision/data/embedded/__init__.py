"""Small real data sets that travel inside the package, so that everything works with no network."""

from pathlib import Path


def embedded_folder(name: str) -> Path:
    """The folder with the embedded files of data set `name`."""
    return Path(__file__).parent / name
