"""`python -m jaxvision predict|evaluate|info`: what a trained run is good for, from the shell."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jaxvision.errors import UserError, describe_os_error, exit_on_user_error

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


@dataclass(frozen=True)
class Predict:
    """Classify pictures with the checkpoint of a run folder."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    pictures: tyro.conf.Positional[tuple[Path, ...]]
    """Picture files, or folders of them."""
    which: str = "best"
    """The checkpoint: best, latest or a step."""
    top: int = 3
    """Show so many of the most probable classes."""
    json: Path | None = None
    """Also write the predictions to this file."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the checkpoint of a run folder on the data set that it was trained for."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    which: str = "best"
    """The checkpoint: best, latest or a step."""
    split: Literal["train", "test"] = "test"
    data: Literal["auto", "full", "embedded"] = "auto"
    source: Path | None = None
    """A folder with the data set's original files."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""


@dataclass(frozen=True)
class Info:
    """Say what a run folder holds: model, classes, configuration, checkpoints."""

    run: tyro.conf.Positional[Path]
    """The run folder."""


Command = (
    Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; a user's mistake is one line on stderr and exit status 1."""
    command = tyro.cli(Command, prog="jaxvision", description=__doc__, args=arguments)
    with exit_on_user_error():
        match command:
            case Predict():
                predict(command)
            case Evaluate():
                evaluate(command)
            case Info():
                info(command)


def predict(command: Predict) -> None:
    """Prints the most probable classes of each picture. A picture that cannot be read is named, the
    others are still predicted, and the exit status is 1."""
    files = find_pictures(command.pictures)
    predictor = _predictor(command.run, command.which)
    results, failed = [], 0
    hidden = len(files) < 20 or not sys.stderr.isatty()
    for file in track(files, "predicting", console=Console(stderr=True), disable=hidden):
        try:
            prediction = predictor(file)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        top = prediction.top(command.top)
        print(f"{file}: {', '.join(f'{name} {score:.1%}' for name, score in top)}")
        results.append(
            {
                "picture": str(file),
                "class": prediction.name,
                "probability": prediction.score,
                "probabilities": dict(
                    zip(prediction.class_names, prediction.probabilities.tolist(), strict=True)
                ),
            }
        )
    if command.json is not None:
        try:
            command.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {command.json}: {describe_os_error(error)}") from error
        print(f"written: {command.json}")
    if failed:
        raise UserError(f"{failed} of {len(files)} pictures could not be read")


def evaluate(command: Evaluate) -> None:
    """Prints loss, accuracy and the scores of each class."""
    import numpy as np

    from jaxvision.data import load_dataset
    from jaxvision.metrics import confusion_matrix, per_class_scores

    predictor = _predictor(command.run, command.which)
    name = predictor.meta.get("dataset")
    if name is None:
        raise UserError(f"the checkpoint in {command.run} does not name its data set")
    dataset = load_dataset(
        name,
        split=command.split,
        data=command.data,
        source=command.source,
        data_dir=command.data_dir,
    )
    if dataset.class_names != predictor.class_names:
        raise UserError(
            f"the model knows the classes {', '.join(predictor.class_names)}; {name} has "
            f"{', '.join(dataset.class_names)}"
        )
    images = np.stack([predictor.prepare(image) for image in dataset.images])
    probabilities = predictor.probabilities(images)
    predicted = probabilities.argmax(axis=-1)
    chosen = probabilities[np.arange(len(dataset)), dataset.labels]
    loss = float(-np.log(np.maximum(chosen, 1e-30)).mean())
    confusion = np.asarray(confusion_matrix(dataset.labels, predicted, len(dataset.class_names)))
    scores = per_class_scores(confusion)
    table = Table("class", "precision", "recall", "F1", "pictures")
    for row in zip(dataset.class_names, *scores, strict=True):
        table.add_row(row[0], *(f"{value:.3f}" for value in row[1:4]), str(int(row[4])))
    Console().print(table)
    accuracy = float((predicted == dataset.labels).mean())
    print(f"{command.split}: loss {loss:.4f}, accuracy {accuracy:.2%} of {len(dataset):,} pictures")


def info(command: Info) -> None:
    """Prints what is known of a run without building its model."""
    from jaxvision.train.checkpoint import CheckpointStore
    from jaxvision.train.run import read_config

    config = read_config(command.run)
    with CheckpointStore(command.run, read_only=True) as store:
        latest, best = store.step("latest"), store.step("best")
        meta = store.meta("latest")
        console = Console()
        for title, values in (("model", meta), ("configuration", config)):
            table = Table(title, "")
            for key, value in values.items():
                text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                table.add_row(key, text)
            console.print(table)
        table = Table("checkpoint", "step", "metrics")
        for which, step in (("latest", latest), ("best", best)):
            metrics = ", ".join(f"{k} {v:.4g}" for k, v in store.metrics(step).items())
            table.add_row(which, f"{step:,}", metrics)
        console.print(table)


def find_pictures(paths: tuple[Path, ...]) -> list[Path]:
    """Returns the files among `paths` and the pictures in the folders among them, sorted."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"no such file or folder: {path}")
    if not files:
        raise UserError(f"no pictures in {', '.join(map(str, paths)) or 'the command line'}")
    return files


def _predictor(run: Path, which: str):
    from jaxvision.predict import Predictor
    from jaxvision.train.run import enable_compilation_cache

    enable_compilation_cache()
    return Predictor.from_checkpoint(run, int(which) if which.isdigit() else which)
