"""Transfer learning shown without a download: seven garments teach a network the other three.

    python experiments/transfer_offline.py

A resnet18 (3x3 stem, a quarter of its width) is pretrained on seven classes of Fashion-MNIST and
written as a torch .pth file. From that file it is then transferred to the other three classes with
244 pictures, as many as there are ants and bees: the head alone, the last stage, everything; and
for comparison trained from scratch on the same pictures. Each over three seeds, which choose the
pictures, the head and the order. The table says what each way costs and brings.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transfer
import tyro
from classifier import Task, train_classifier
from rich.console import Console
from rich.table import Table
from transfer_data import as_rgb, draw_examples, select_classes

from jaxvision.data import Batches, compose, load_splits, random_crop, random_horizontal_flip
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.report import read_records
from jaxvision.train.checkpoint import CheckpointStore, load_checkpoint
from jaxvision.train.optim import cosine_lr, sgd
from jaxvision.train.run import Run, enable_compilation_cache, write_json
from jaxvision.weights import Preprocessing, to_torch, write_torch

WAYS = ("head", "last-stage", "all", "scratch")


@dataclass(frozen=True)
class Config:
    new_classes: tuple[str, ...] = ("Pullover", "Sandal", "Shirt")
    """The classes to transfer to; the network is pretrained on the others."""
    num_pictures: int = 244
    seeds: tuple[int, ...] = (0, 1, 2)
    ways: tuple[Literal["head", "last-stage", "all", "scratch"], ...] = WAYS
    epochs: int = 25
    """Of each transfer."""
    prenum_pictures: int | None = None
    """Pretrain on so many pictures only."""
    pretrain_epochs: int = 3
    pretrain_batch_size: int = 128
    pretrain_learning_rate: float = 0.05
    width: int = 16
    """Of the network's first stage; resnet18's own is 64."""
    data: Literal["auto", "full", "embedded"] = "auto"
    source: Path | None = None
    """A folder with the four IDX files; else Debian's dataset-fashion-mnist, else a download."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""
    run_dir: Path | None = None
    """The run folder, by default runs/transfer_offline/<time>."""
    resume: bool = False
    """Go on with the runs in --run-dir: what is finished is not done again."""


def main(config: Config) -> list[dict[str, Any]]:
    flags = {"run_dir": config.run_dir, "resume": config.resume}
    # All transfers are compared, and so are trained alike.
    with Run("transfer_offline", config, **flags, fixed=("epochs",)) as run:
        run.write_config()
        weights = run.path / "pretrained.pth"
        if not weights.exists():
            pretrain(config, run.path / "pretrain", weights)
        results = []
        for seed in config.seeds:
            for way in config.ways:
                folder = run.path / f"{way}-seed{seed}"
                print(f"--- {way}, seed {seed}")
                results.append(transfer_once(config, weights, way, seed, folder))
        write_json(run.path / "results.json", results)
        Console(width=110).print(table_of(results))
        print(f"figures: {run.path / 'results.json'}")
    return results


def pretrain(config: Config, run_dir: Path, weights: Path) -> None:
    """Trains on the other seven classes and writes the best weights as torch would."""
    splits = load_splits(
        "fashion_mnist", data=config.data, source=config.source, data_dir=config.data_dir
    )
    names = splits["train"].class_names
    unknown = set(config.new_classes) - set(names)
    if unknown or not 1 < len(config.new_classes) < len(names) - 1:
        raise UserError(f"--new-classes: expected some of {', '.join(names)}")
    # More than there are is refused here, and not by the first transfer.
    draw_examples(select_classes(splits["train"], config.new_classes), config.num_pictures, seed=0)
    old = tuple(name for name in names if name not in config.new_classes)
    train, validation = (as_rgb(select_classes(splits[k], old)) for k in ("train", "test"))
    if config.prenum_pictures is not None:
        train = draw_examples(train, config.prenum_pictures, seed=0)
    augmentation = compose(random_crop((28, 28), padding=3), random_horizontal_flip())
    batches = Batches(
        train, batch_size=config.pretrain_batch_size, transform=augmentation, drop_last=True
    )
    steps = config.pretrain_epochs * batches.steps_per_epoch
    rate = cosine_lr(config.pretrain_learning_rate, total_steps=steps)
    prepared = Preprocessing()
    options = {"stem": "small", "width": config.width}
    task = Task(
        model="resnet18",
        options=options,
        train=batches,
        validation=validation,
        tx=sgd(rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
        learning_rate=rate,
        epochs=config.pretrain_epochs,
        seed=0,
        mean=prepared.mean,
        std=prepared.std,
        best="val/accuracy",
    )
    print(f"--- pretraining on {', '.join(old)}")
    with Run("pretrain", config, run_dir=run_dir, resume=is_run(run_dir)) as run:
        log_every = max(1, batches.steps_per_epoch // 5)
        train_classifier(
            task, run, title="Pretraining", log_every=log_every, workers=2, report=False
        )
    _, variables, meta = load_checkpoint(run_dir)
    written = weights.with_suffix(".tmp.pth")
    write_torch(written, to_torch("resnet18", variables, **meta["options"]))
    written.rename(weights)


def transfer_once(
    config: Config, weights: Path, way: str, seed: int, folder: Path
) -> dict[str, Any]:
    """Runs experiments/transfer.py once, or reads what it left, and returns its figures."""
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    settings = transfer.Config(
        strategy="all" if way == "scratch" else way,
        data="fashion_mnist",
        source=config.source,
        classes=config.new_classes,
        num_pictures=config.num_pictures,
        init="random" if way == "scratch" else str(weights),
        stem="small",
        width=config.width,
        augment="off",
        epochs=config.epochs,
        seed=seed,
        data_dir=config.data_dir,
        run_dir=folder,
        resume=is_run(folder),
        report=False,
    )
    metrics = transfer.main(settings, data=config.data)
    figures = {"way": way, "seed": seed, **metrics, **costs(folder, config.num_pictures)}
    write_json(result, figures)
    return figures


def is_run(folder: Path) -> bool:
    return (folder / "config.json").exists()


def costs(run_dir: Path, pictures: int) -> dict[str, float]:
    """Returns the median seconds of a training epoch, and the bytes that the optimiser keeps."""
    records = read_records(run_dir / "metrics.jsonl")
    rates = [r["train/examples_per_second"] for r in records if "train/examples_per_second" in r]
    with CheckpointStore(run_dir, read_only=True) as store:
        meta = store.meta("latest")
    return {
        # The first epoch compiles.
        "seconds_per_epoch": pictures / statistics.median(rates[1:] or rates),
        "optimizer_bytes": meta["optimizer_bytes"],
        "trained_parameters": meta["trained_parameters"],
    }


def table_of(results: list[dict[str, Any]]) -> Table:
    table = Table(title="Transfer to three new classes: mean (lowest to highest) over the seeds")
    for heading in ("way", "accuracy", "best accuracy", "s an epoch", "trained", "optimiser"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in dict.fromkeys(result["way"] for result in results):
        mine = [result for result in results if result["way"] == way]
        seconds = statistics.median(result["seconds_per_epoch"] for result in mine)
        table.add_row(
            way,
            _spread([100 * result["accuracy"] for result in mine]) + " %",
            _spread([100 * result["best_accuracy"] for result in mine]) + " %",
            f"{seconds:.3f}",
            f"{mine[0]['trained_parameters']:,.0f}",
            f"{mine[0]['optimizer_bytes'] / 1e3:,.1f} kB",
        )
    return table


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
