"""Shared by all tests: one CPU backend, strict numerics, one compile cache for all workers."""

import fcntl
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

# Before jax is imported: the suite must not depend on the machine's devices or reach the network.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAXVISION_OFFLINE"] = "1"
# Tests run side by side. PyTorch's threads, more than there are cores left, wait for one another by
# spinning, also in the processes that a benchmark starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
CACHE = Path(tempfile.gettempdir()) / "jaxvision-tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "xla"))

import jax  # noqa: E402
import pytest  # noqa: E402

# Traces make millions of objects that all live on: Python need not look for cycles as often.
gc.set_threshold(100_000, 20, 100)

# Broadcasting (n,) against (b, n) by accident is the commonest silent mistake in array code.
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
CORE = (  # what may depend on the versions of Python and jax, and has no comparison with PyTorch
    *(f"tests/train/test_{name}.py" for name in ("checkpoint", "loop", "run")),
    "tests/train/test_step.py::test_eight_devices",
    *("tests/test_predict.py", "tests/data/test_fashion_mnist.py", "tests/data/test_pipeline.py"),
)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    """Collects garbage once, whose mistakes pytest shows, where it would look five times."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.startswith(CORE):
            item.add_marker(pytest.mark.core)


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    """A folder for this run of the suite, one for all its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def data_dir(shared_dir):
    """A data folder for this run of the suite. Not to be changed."""
    return shared_dir / "datasets"


@pytest.fixture(scope="session")
def on_eight_devices():
    """Runs a test file as a script on eight simulated devices, and returns the JSON it prints."""

    def run(file):
        flags = os.environ.get("XLA_FLAGS", "")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            # XLA runs all simulated devices in one pool, of as many threads as there are cores or
            # devices. One that waits in an all-reduce keeps its thread, and may do so in several at
            # once: on few cores none is then left for the device that all wait for.
            "NPROC": "256",
        }
        child = subprocess.run(
            [sys.executable, file],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert child.returncode == 0, child.stderr[-5000:]
        return json.loads(child.stdout)

    return run


@pytest.fixture(scope="session")
def experiment():
    """Imports an experiment as its script would be: with experiments/ on the path."""

    def load(name):
        sys.path.insert(0, str(EXPERIMENTS))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(EXPERIMENTS))

    return load


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Runs a script as Python would, but within this process: a new one imports for two seconds."""

    def loaded():
        files = {name: str(getattr(m, "__file__", "")) for name, m in sys.modules.items()}
        return {
            n: sys.modules[n] for n, file in files.items() if file.startswith(f"{EXPERIMENTS}/")
        }

    def run(file, *flags):
        # The modules of experiments/ and experiments/bench/ have names in common.
        others = loaded()
        for name in others:
            del sys.modules[name]
        capsys.readouterr()
        try:
            with monkeypatch.context() as changed:
                changed.setattr(sys, "argv", [str(file), *map(str, flags)])
                changed.setattr(sys, "path", [str(file.parent), *sys.path])
                runpy.run_path(str(file), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            for name in loaded():
                del sys.modules[name]
            sys.modules.update(others)
        return subprocess.CompletedProcess([file, *flags], status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def trained_run(experiment, data_dir, shared_dir):
    """The folder of a run of experiments/fashion_mnist.py: two epochs on the embedded pictures.

    Not to be changed: the workers share it. One trains, and another that needs it waits.
    """
    fashion_mnist = experiment("fashion_mnist")
    run_dir = shared_dir / "trained"
    config = fashion_mnist.Config(
        epochs=2,
        batch_size=50,
        learning_rate=0.02,
        data="embedded",
        data_dir=data_dir,
        run_dir=run_dir,
        log_every=50,
    )
    with run_dir.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run_dir / "report.html").exists():
            fashion_mnist.main(config)
    return run_dir
