"""Times our training loop against the course's PyTorch loop: same data, in turn, in one run.

    python experiments/bench/classifier.py --torch-python .venv-parity/bin/python

Both train the GarmentClassifier on Fashion-MNIST with SGD 1e-3, momentum 0.9. Ours is what
experiments/fashion_mnist.py runs: `ResidentData`, `make_train_step`, `fit`. The other is the
course's loop: DataLoader with 2 workers, a picture at a time through PIL, `loss.item()` each step.
It runs in a process of its own (`torch_loop.py`), because PyTorch may live in another environment
than the newest jax; while one side works, the other waits without using the CPU.

Time an epoch is the steps of an epoch times the median time of a step over the blocks, which take
turns; each block starts with steps that are not counted. PyTorch's worker processes live on
between the blocks, and starting them, once an epoch, is not counted but shown apart. Validation,
checkpoints and log files are left out on both sides.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from startup import PHASES, time_import, time_startups
from torch_loop import TorchProcess

from jaxvision.data import ArrayDataset, Batches, load_splits
from jaxvision.data.idx import idx_bytes
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import classification_loss
from jaxvision.models import get_model, init_variables
from jaxvision.train import create_state, fit, make_train_step
from jaxvision.train.log import RunLog
from jaxvision.train.optim import sgd
from jaxvision.train.resident import ResidentData
from jaxvision.train.run import enable_compilation_cache

HERE = Path(__file__).resolve().parent
GOALS = {4: 1 / 5, 64: 1 / 2, 256: 1.0}
"""By batch size, the share of PyTorch's time that ours should take at most."""
WARMUP_STEPS = 8
"""Before each block: more than the four batches that an idle DataLoader holds ready."""
DISTURBED = 1.5
"""Slowest over fastest block of one loop, from which on the ratios mean little."""


@dataclass(frozen=True)
class Config:
    batch_sizes: tuple[int, ...] = (4, 64, 256)
    repeats: int = 5
    """Blocks of each side at each batch size."""
    seconds: float = 8.0
    """About how long a block takes."""
    steps: int | None = None
    """Steps in a block of either side, instead of --seconds."""
    startups: int = 3
    """How often each start-up is timed; 0 leaves them out."""
    torch_python: Path | None = None
    """A Python that has PyTorch; by default this one, or else .venv-parity's."""
    device: str = "cpu"
    """PyTorch's device; ours is jax's default (JAX_PLATFORMS chooses another)."""
    data: Literal["auto", "full", "embedded"] = "auto"
    """full: 60,000 pictures; embedded: the 11,000 in the package; auto: full if possible."""
    source: Path | None = None
    """A folder with the four IDX files; else Debian's dataset-fashion-mnist, else a download."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    json: Path | None = None
    """Write the raw numbers to this file."""


# --------------------------------------------------------------------------------- the two loops
class JaxvisionLoop:
    """Our loop at one batch size, as experiments/fashion_mnist.py sets it up."""

    def __init__(self, dataset: ArrayDataset, batch_size: int):
        model = get_model("lenet", num_classes=len(dataset.class_names))
        variables = init_variables(model, jax.random.key(0), dataset.images.shape[1:])
        tx = sgd(1e-3, momentum=0.9)
        self.batches = Batches(dataset, batch_size=batch_size)
        self.data = ResidentData(self.batches)
        self.state = create_state(variables, tx)
        loss_fn = classification_loss(model, mean=0.5, std=0.5)
        self.train_step = make_train_step(loss_fn, tx, select=self.data.select)

    def seconds(self, steps: int) -> float:
        """Seconds that `steps` steps take, after some that are not counted."""
        self._fit(WARMUP_STEPS)
        since = time.perf_counter()
        self._fit(steps)
        return time.perf_counter() - since

    def _fit(self, steps: int) -> None:
        per_epoch = self.batches.steps_per_epoch
        self.state = fit(
            self.state,
            self.train_step,
            self.data,
            steps=int(self.state.step) + steps,
            steps_per_epoch=per_epoch,
            batch_size=self.batches.batch_size,
            log=RunLog(None, quiet=True),
            log_every=max(1, per_epoch // 15),
        ).state
        jax.block_until_ready(self.state)


def find_torch_python(given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_file():
            raise UserError(f"--torch-python {given}: expected a Python interpreter, got no file")
        return given
    if importlib.util.find_spec("torch") is not None:
        return Path(sys.executable)
    parity = HERE.parents[1] / ".venv-parity" / "bin" / "python"
    return parity if parity.is_file() else None


def start_torch(python: Path, script: str, *arguments: Any) -> TorchProcess:
    """Starts a file of this folder in that Python; `UserError` where it lacks what that needs."""
    process = TorchProcess([str(python), str(HERE / script), *map(str, arguments)])
    if "missing" in process.facts:
        process.close()
        raise UserError(f"{python}: expected PyTorch and torchvision: {process.facts['missing']}")
    return process


def startup_flags(config: Config) -> list[str]:
    flags = ["--data", config.data]
    for flag, value in (("--data-dir", config.data_dir), ("--source", config.source)):
        flags += [] if value is None else [flag, str(value)]
    return flags


def write_torchvision_root(folder: Path, splits: dict[str, ArrayDataset]) -> Path:
    """Writes the pictures where torchvision.datasets.FashionMNIST(folder) looks for them."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = splits[split].images[..., 0], splits[split].labels.astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return folder


# ------------------------------------------------------------------------------------- measuring
def time_blocks(config: Config, dataset: ArrayDataset, torch: TorchProcess | None) -> list[dict]:
    """Seconds a step of both sides, block by block, for each batch size."""
    results = []
    for batch_size in config.batch_sizes:
        ours = JaxvisionLoop(dataset, batch_size)
        sides = {"jaxvision": ours.seconds}
        if torch is not None:
            sides = {"pytorch": lambda n, b=batch_size: torch.seconds(b, n)} | sides
        steps = {}
        for name, run in sides.items():
            estimate = run(20) / 20  # compiles, starts the workers, and sets the blocks' length
            steps[name] = config.steps or max(20, round(config.seconds / estimate))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(config.repeats):
            for name, run in sides.items():
                seconds[name].append(run(steps[name]) / steps[name])
        results.append(
            {
                "batch_size": batch_size,
                "steps_per_epoch": ours.batches.steps_per_epoch,
                "block_steps": steps,
                "seconds_per_step": seconds,
            }
        )
    return results


# --------------------------------------------------------------------------------------- showing
def environment(dataset: ArrayDataset, torch: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jaxvision": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
            "device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        },
        "pytorch": torch,
        "data": {"source": dataset.source, "pictures": len(dataset)},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.machine()])[0]


def header(facts: dict[str, Any], device: str) -> str:
    ours, torch = facts["jaxvision"], facts["pytorch"]
    lines = [
        f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores, load {facts['load']:.1f} before",
        f"data: {facts['data']['pictures']:,} pictures ({facts['data']['source']})",
        f"jaxvision: Python {ours['python']}, jax {ours['jax']}, jaxlib {ours['jaxlib']}, "
        f"flax {ours['flax']}, on {ours['device']}",
    ]
    if torch is None:
        lines.append("PyTorch: not installed (give --torch-python a Python that has it)")
        return "\n".join(lines)
    dataset = "a look-alike of torchvision's data set, because torchvision is not installed"
    if torch["torchvision"]:
        dataset = f"torchvision {torch['torchvision']}'s own FashionMNIST, ToTensor and Normalize"
    lines += [
        f"PyTorch: Python {torch['python']}, torch {torch['torch']}, {torch['threads']} threads, "
        f"on {device}",
        f"PyTorch's data: {dataset}; DataLoader with 2 workers",
    ]
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def epoch_table(results: list[dict]) -> Table:
    table = Table(title="Training: median (lowest to highest) over the blocks")
    for heading in ("batch", "PyTorch s/epoch", "steps/s", "jaxvision s/epoch", "steps/s"):
        table.add_column(heading, justify="right")
    table.add_column("jaxvision / PyTorch", justify="right")
    table.add_column("goal", justify="right")
    for result in results:
        cells = []
        for name in ("pytorch", "jaxvision"):
            seconds = result["seconds_per_step"].get(name)
            if seconds is None:
                cells += ["not installed", ""]
                continue
            cells.append(spread([s * result["steps_per_epoch"] for s in seconds], ".2f"))
            cells.append(f"{1 / statistics.median(seconds):,.0f}")
        ratios, goal = ratios_of(result), GOALS.get(result["batch_size"])
        cells.append(spread(ratios, ".3f") if ratios else "")
        cells.append(f"{goal:.2f}" if goal else "")
        table.add_row(str(result["batch_size"]), *cells)
    return table


def ratios_of(result: dict) -> list[float]:
    """Our time over PyTorch's, for each pair of neighbouring blocks."""
    seconds = result["seconds_per_step"]
    pairs = zip(seconds["jaxvision"], seconds.get("pytorch", []), strict=False)
    return [ours / torch for ours, torch in pairs]


def is_disturbed(results: list[dict]) -> bool:
    """Whether the blocks of either side differ more than those of a machine of one's own do."""
    blocks = [seconds for result in results for seconds in result["seconds_per_step"].values()]
    return any(max(seconds) > DISTURBED * min(seconds) for seconds in blocks)


def startup_table(results: dict[str, list[dict]]) -> Table:
    table = Table(title="Start-up to the first finished step at batch 4: median seconds")
    for heading in ("", *PHASES, "process start to step (lowest to highest)"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, runs in results.items():
        cells = [f"{statistics.median(run[phase] for run in runs):.2f}" for phase in PHASES]
        table.add_row(name, *cells, spread([run["total"] for run in runs], ".2f"))
    if "PyTorch" not in results:
        table.add_row("PyTorch", "not installed")
    return table


def main(config: Config) -> dict[str, Any]:
    steps = 1 if config.steps is None else config.steps
    if min(config.repeats, steps, *config.batch_sizes) < 1 or config.seconds <= 0:
        raise UserError(
            "--batch-sizes, --repeats and --steps must be at least 1, --seconds above 0"
        )
    python = find_torch_python(config.torch_python)
    splits = load_splits(
        "fashion_mnist", data=config.data, source=config.source, data_dir=config.data_dir
    )
    dataset = splits["train"]
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe: never fold the tables to 80 columns
    with tempfile.TemporaryDirectory() as folder:
        root = write_torchvision_root(Path(folder), splits)
        torch = command = None
        if python is not None:
            command = [str(python), str(HERE / "torch_loop.py"), str(root)]
            command += ["--device", config.device]
            torch = TorchProcess(command, WARMUP_STEPS)
            if "missing" in torch.facts:
                torch.close()
                torch = command = None
        facts = environment(dataset, torch and torch.facts)
        console.print(header(facts, config.device), highlight=False)
        try:
            results = time_blocks(config, dataset, torch)
        finally:
            if torch is not None:
                torch.close()
        console.print(epoch_table(results))
        if is_disturbed(results):
            console.print(
                f"NOT A FAIR COMPARISON: blocks of one loop differ {DISTURBED}-fold, so other "
                "programs were using this machine, which slows PyTorch's threads most"
            )
        loader_starts = torch.loader_starts if torch else []
        if loader_starts:
            text = spread(loader_starts, ".2f")
            console.print(f"starting a DataLoader, not counted above: {text} s an epoch")
        flags = startup_flags(config)
        startups = time_startups(config.startups, flags, command) if config.startups else {}
    if startups:
        console.print(startup_table(startups))
    imports = time_import(max(1, config.startups))
    console.print(f"import jaxvision: {spread(imports, '.3f')} s", highlight=False)
    numbers = {
        "environment": facts,
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "training": results,
        "loader_starts": loader_starts,
        "startup": startups,
        "import_jaxvision": imports,
    }
    if config.json is not None:
        config.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return numbers


if __name__ == "__main__":
    import tyro  # here, so that the functions above can be had without it

    with exit_on_user_error():
        enable_compilation_cache()
        try:
            main(tyro.cli(Config, description=__doc__))
        except ChildProcessError as error:  # whose own words stand above
            raise UserError(str(error)) from error
