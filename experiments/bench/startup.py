"""Times a start from nothing to the first finished train step; part of `classifier.py`.

    python experiments/bench/startup.py --data full

As a script it is our side of it: it imports what experiments/fashion_mnist.py imports, reads the
data set (prepared beforehand, or that counts too), builds the GarmentClassifier and takes one step
at batch 4, then prints the seconds of each as one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.perf_counter()
BATCH_SIZE = 4
PHASES = ("imports", "data", "build", "step")


def time_startups(
    repeats: int, flags: list[str], torch_command: list[str] | None
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each phase, and of all from the process's start, of fresh processes in turn.

    "cold" compiles everything, "warm" is a second start with the compile cache that it left.
    """
    command = [sys.executable, __file__, *flags]
    results: dict[str, list[dict]] = {"jaxvision, cold": [], "jaxvision, warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",  # enable_compilation_cache's
            }
            for name in ("jaxvision, cold", "jaxvision, warm"):
                results[name].append(_startup(command, environment))
        if torch_command is not None:
            first_step = _startup([*torch_command, "--first-step"], dict(os.environ))
            results.setdefault("PyTorch", []).append(first_step)
    return results


def _startup(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    since = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        line = process.stdout.readline()  # comes with the first step; exiting does not count
        total = time.perf_counter() - since
    if process.returncode or not line:
        raise ChildProcessError(f"{' '.join(command)} failed ({process.returncode}): see above")
    return json.loads(line) | {"total": total}


def time_import(repeats: int) -> list[float]:
    """Seconds that `import jaxvision` takes in fresh processes, Python's own start left out."""
    code = "import time; t = time.perf_counter(); import jaxvision; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    return [float(subprocess.check_output(command, text=True)) for _ in range(repeats)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="auto")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--source", default=None)
    arguments = parser.parse_args()

    # The experiments' own classifier.py, not the benchmark beside this file.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import classifier  # noqa: F401  (all that a run of fashion_mnist.py imports)
    import jax

    from jaxvision.data import Batches, load_splits
    from jaxvision.losses import classification_loss
    from jaxvision.models import get_model, init_variables
    from jaxvision.train import create_state, make_train_step
    from jaxvision.train.optim import sgd
    from jaxvision.train.resident import ResidentData
    from jaxvision.train.run import enable_compilation_cache

    enable_compilation_cache()
    imported = time.perf_counter()
    train = load_splits(
        "fashion_mnist",
        data=arguments.data,
        data_dir=arguments.data_dir,
        source=arguments.source,
        announce=lambda line: None,
    )["train"]
    loaded = time.perf_counter()
    model = get_model("lenet", num_classes=len(train.class_names))
    variables = init_variables(model, jax.random.key(0), train.images.shape[1:])
    tx = sgd(1e-3, momentum=0.9)
    data = ResidentData(Batches(train, batch_size=BATCH_SIZE))
    state = create_state(variables, tx)
    loss_fn = classification_loss(model, mean=0.5, std=0.5)
    train_step = make_train_step(loss_fn, tx, select=data.select)
    built = time.perf_counter()
    jax.block_until_ready(train_step(state, data(0)))
    seconds = {
        "imports": imported - STARTED,
        "data": loaded - imported,
        "build": built - loaded,
        "step": time.perf_counter() - built,
    }
    print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
