"""Every test here is marked `parity`; without PyTorch the folder is skipped, for one reason."""

import importlib.util
import warnings
from pathlib import Path

import pytest

from jaxvision.data import load_dataset

HERE = Path(__file__).parent
HAS_TORCH = importlib.util.find_spec("torch") is not None

if HAS_TORCH:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of while it is imported is not ours
        import torch
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def pytest_make_collect_report(collector):
    # Here, before any file is imported, and not in each file: so the reason is printed once.
    if not HAS_TORCH and isinstance(collector, pytest.File) and HERE in collector.path.parents:
        collector.collect = skip_without_torch


def skip_without_torch():
    pytest.skip("PyTorch is not installed: pip install 'jaxvision[parity]'")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.parity)


@pytest.fixture(scope="session")
def pictures(data_dir):
    """The 11,000 training pictures inside the package."""
    return load_dataset("fashion_mnist", split="train", data="embedded", data_dir=data_dir)
