"""PyTorch's quickstart: a multi-layer perceptron on Fashion-MNIST, with the course's log lines.

    python experiments/quickstart.py

784-512-512-10, SGD 1e-3 without momentum, batches of 64 in file order, 10 epochs: 69.5 % to 72.5 %
accuracy and a test loss of 0.76 to 0.81 on the full set (the course prints 70.8 % and 0.788).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from classifier import Task, train_classifier

from jaxvision.data import Batches, load_splits
from jaxvision.errors import exit_on_user_error
from jaxvision.train.optim import sgd
from jaxvision.train.run import Run, enable_compilation_cache


@dataclass(frozen=True)
class Config:
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers; their number is the depth."""
    shuffle: bool = False
    """Shuffle the training pictures; the course does not."""
    seed: int = 0
    data: Literal["auto", "full", "embedded"] = "auto"
    """full: 60,000 pictures; embedded: the 11,000 in the package; auto: full if possible."""
    source: Path | None = None
    """A folder with the four IDX files; else Debian's dataset-fashion-mnist, else a download."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    run_dir: Path | None = None
    """The run folder, by default runs/quickstart/<time>."""
    resume: bool = False
    """Go on with the run in --run-dir, or with the newest one."""
    report: bool = True
    """Write report.html and sample pictures at the end."""


def main(config: Config) -> dict[str, float]:
    splits = load_splits(
        "fashion_mnist", data=config.data, source=config.source, data_dir=config.data_dir
    )
    train, test = splits["train"], splits["test"]
    batches = Batches(train, batch_size=config.batch_size, seed=config.seed, shuffle=config.shuffle)
    task = Task(
        model="mlp",
        options={"hidden": config.hidden},
        train=batches,
        validation=test,
        tx=sgd(config.learning_rate),
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        seed=config.seed,
    )

    def course_line(record: dict[str, Any]) -> str | None:
        """One of the tutorial's lines: the loss of every 100th batch, and the test at the end."""
        if "val/loss" in record:
            accuracy, loss = 100 * record["val/accuracy"], record["val/loss"]
            return f"Test Error: \n Accuracy: {accuracy:>0.1f}%, Avg loss: {loss:>8f} \n"
        batch = (record["step"] - 1) % batches.steps_per_epoch
        if batch % 100:
            return None
        heading = (
            f"Epoch {record['epoch']}\n-------------------------------\n" if batch == 0 else ""
        )
        seen = batch * config.batch_size
        return f"{heading}loss: {record['train/loss']:>7f}  [{seen:>5d}/{len(train):>5d}]"

    with Run("quickstart", config, run_dir=config.run_dir, resume=config.resume) as run:
        metrics = train_classifier(
            task,
            run,
            title="Quickstart: MLP on Fashion-MNIST",
            log_every=1,
            report=config.report,
            line=course_line,
        )
    print("Done!")
    return metrics


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
