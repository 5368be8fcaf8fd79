"""Batch normalisation: the algorithm in numbers, its two modes, what goes wrong, what it gains.

    python experiments/batchnorm.py              # two to three minutes on two cores
    python experiments/batchnorm.py --quick      # everything tiny: the figures mean nothing

Test accuracy of seeds 0 and 1 on the full set, 12 hidden layers of 128, 400 steps of 128 pictures:
- Learning rates 0.001 to 3. Without BatchNorm 80 to 84 % up to 0.03, and from 0.1 on it diverges or
  learns nothing; with BatchNorm 80 to 84 % from 0.003 to 0.3 and 76 to 77 % at 1. At the best rate
  of each they differ by less than a point: 83.5 and 84.2 %, 83.7 and 83.4 %. From torch's default
  initialisation the plain network stays at 10 % at every rate; with BatchNorm it gets to 84 %.
- Batches of 2: 10 % with BatchNorm, 76 to 80 % without. Batches of 32: 75 to 76, and 75 to 79 %.
- A forgotten flag: 83 % become 78 % by the statistics of batches of 32, 12 % where the batches are
  sorted by class, 19 % in batches of 2; 21 to 24 % where the new statistics were not kept.
- Brighter by 0.4: 28 to 39 %, and 84 % again with statistics re-estimated without labels.
- Shift of the last layer's inputs: 0.24 to 0.25 without BatchNorm, 0.001 with it, and 0.29 where
  noise puts it back, which still gets to 82 or 83 %. With BatchNorm the gradient turns about half
  as far (0.73 to 0.77 of its length against 1.30 to 1.34), but the loss along it changes no less.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from batchnorm_algorithm import algorithm, running_averages
from batchnorm_failures import drifting_inputs, final_loss, forgotten_flag, small_batches
from batchnorm_network import DeepNetwork, Trainer, scores
from batchnorm_shift import covariate_shift
from findings import Finding

from jaxvision.data import ArrayDataset, load_splits
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.report import write_page
from jaxvision.report.lines import Line, line_chart
from jaxvision.train.run import Run, enable_compilation_cache


@dataclass(frozen=True)
class Config:
    depth: int = 12
    """Hidden layers of the network that is trained."""
    width: int = 128
    """Units a hidden layer."""
    steps: int = 400
    """Training steps of each run."""
    batch_size: int = 128
    learning_rate: float = 0.01
    """Where one rate is wanted; the best one of the network without BatchNorm."""
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """The range over which the networks are compared."""
    small_batches: tuple[int, ...] = (2, 4, 8, 32, 128)
    """Batch sizes to compare, the largest last; the rate is in proportion."""
    small_batch_pictures: int = 12_800
    """Pictures that each of those runs is trained on."""
    probes: int = 40
    """How often the inputs of the layers are looked at during training."""
    seed: int = 0
    data: Literal["auto", "full", "embedded"] = "auto"
    """full: 60,000 pictures; embedded: the 11,000 in the package; auto: full if possible."""
    source: Path | None = None
    """A folder with the four IDX files; else Debian's dataset-fashion-mnist, else a download."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    run_dir: Path | None = None
    """The run folder, by default runs/batchnorm/<time>."""
    quick: bool = False
    """Everything tiny, to see that it runs."""


QUICK = {
    "depth": 2,
    "width": 16,
    "steps": 12,
    "batch_size": 32,
    "learning_rates": (0.01, 1e30),
    "small_batches": (2, 16),
    "small_batch_pictures": 64,
    "probes": 4,
}


def main(config: Config) -> dict[str, object]:
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    _check(config)
    since = time.perf_counter()
    with Run("batchnorm", config, run_dir=config.run_dir) as run:
        splits = load_splits(
            "fashion_mnist", data=config.data, source=config.source, data_dir=config.data_dir
        )
        train, test = splits["train"], splits["test"]
        if config.quick:
            train, test = train.subset(np.arange(300)), test.subset(np.arange(200))
        run.write_config(data_source=train.source, train_pictures=len(train))
        print(f"run folder: {run.path}\n")
        findings = []
        for finding in experiment(config, train, test):
            finding.print()
            findings.append(finding)
        results = {finding.title: finding.numbers for finding in findings}
        try:
            (run.path / "results.json").write_text(json.dumps(results, indent=1))
        except OSError as error:
            raise UserError(f"cannot write to {run.path}: {error.strerror}") from error
        sections = [finding.section() for finding in findings]
        report = write_page(run.path / "report.html", "Batch normalisation", sections)
        print(f"report: {report}")
    print(f"All checks hold; {time.perf_counter() - since:.0f} s.")
    return results


def experiment(config: Config, train: ArrayDataset, test: ArrayDataset):
    """Yields the findings one after the other, as they are made."""
    yield algorithm()
    yield running_averages(config.seed)

    plain, normal, noisy = (
        DeepNetwork(norm, config.depth, config.width) for norm in ("none", "batch", "noisy")
    )
    models = {"without BatchNorm": plain, "with BatchNorm": normal, "noisy BatchNorm": noisy}
    trainers = {
        name: Trainer(model, train, batch_size=config.batch_size, seed=config.seed)
        for name, model in models.items()
    }
    watched, trained = covariate_shift(
        trainers,
        test,
        train.images[:512],
        learning_rate=config.learning_rate,
        steps=config.steps,
        probes=config.probes,
    )
    del models["noisy BatchNorm"]
    yield small_batches(
        models,
        train,
        test,
        sizes=config.small_batches,
        pictures=config.small_batch_pictures,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )
    yield forgotten_flag(
        trainers["with BatchNorm"],
        trained["with BatchNorm"],
        train,
        test,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        steps=config.steps,
    )
    networks = {name: (models[name], trained[name].state.variables) for name in models}
    yield drifting_inputs(networks, train, test)
    for name, model in models.items():
        other = model.clone(draw="torch")
        trainers[f"{name}, torch's init"] = Trainer(
            other, train, batch_size=config.batch_size, seed=config.seed
        )
    del trainers["noisy BatchNorm"]
    yield learning_rates(trainers, test, config.learning_rates, config.steps)
    yield watched


def learning_rates(
    trainers: dict[str, Trainer], test: ArrayDataset, rates: tuple[float, ...], steps: int
) -> Finding:
    """The same deep network with and without BatchNorm, over a range of learning rates."""
    finding = Finding(
        "6. With and without, over learning rates",
        (
            "The same network, the same start and the same batches; each cell is the test accuracy "
            f"after {steps} steps, or the step at which the loss was not finite any more. "
            "He's initialisation is made for deep ReLU networks; torch's default for linear layers "
            "shrinks the signal from layer to layer.",
        ),
    )
    rows, accuracies = [], {name: [] for name in trainers}
    losses = {name: [] for name in trainers}
    for rate in rates:
        row = [f"{rate:g}"]
        for name, trainer in trainers.items():
            trained = trainer.train(rate, steps)
            if trained.diverged_at is not None:
                row.append(f"diverged at {trained.diverged_at}")
                accuracies[name].append(np.nan)
            else:
                batch = min(1000, len(test))
                _, accuracy = scores(trainer.model, trained.state.variables, test, batch=batch)
                row.append(f"{100 * accuracy:.1f} %")
                accuracies[name].append(accuracy)
            losses[name].append(final_loss(trained))
        rows.append(row)
    finding.table("Test accuracy", ("learning rate", *trainers), rows)
    rows = [(f"{r:g}", *(losses[name][i] for name in trainers)) for i, r in enumerate(rates)]
    finding.table("Training loss, last 20 steps", ("learning rate", *trainers), rows)
    x = np.array(rates)
    lines = [Line(name, x, 100 * np.array(values)) for name, values in accuracies.items()]
    chart = line_chart(lines, "Learning rate", "Test accuracy (%)", logx=True, ylim=(0.0, 100.0))
    words = "Test accuracy by learning rate; a cross on the axis: the loss was not finite."
    finding.charts.append((chart, words))
    finding.numbers = {
        name: [None if np.isnan(v) else v for v in values] for name, values in accuracies.items()
    }
    return finding


def _check(config: Config) -> None:
    """Refuses what cannot be trained, before any work."""
    for name in ("depth", "width", "steps", "probes"):
        if getattr(config, name) < 1:
            raise UserError(f"expected --{name} of at least 1, got {getattr(config, name)}")
    sizes = (config.batch_size, *config.small_batches)
    if min(sizes) < 2:
        raise UserError(f"expected batches of at least 2, got {min(sizes)}: one has no variance")
    if config.small_batch_pictures < max(config.small_batches, default=0):
        raise UserError(
            f"expected --small-batch-pictures of at least {max(config.small_batches)}, one batch "
            f"of the largest size, got {config.small_batch_pictures}"
        )
    rates = (config.learning_rate, *config.learning_rates)
    if min(rates) <= 0:
        raise UserError(f"expected learning rates above 0, got {min(rates):g}")


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
