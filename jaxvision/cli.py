"""`python -m jaxvision predict|evaluate|info|convert`: trained runs and weights, from the shell."""

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
    split: Literal["train", "val", "test"] | None = None
    """By default the data set's last one: its test or validation set."""
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


@dataclass(frozen=True)
class Convert:
    """Convert weights between .pth, .safetensors and orbax, and take them out of run folders."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """A .pth, .pt or .safetensors file, an orbax weights folder, or a run folder."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """What to write: .pth, .pt, .safetensors, or no suffix for an orbax weights folder."""
    model: str | None = None
    """The model's name. Needed to or from orbax; otherwise the file is checked to fit it."""
    num_classes: int | None = None
    """The model's number of classes, where it is not the one that the file or the model has."""
    key: str | None = None
    """Where in a checkpoint the weights are, if it holds several sets: model_ema, for example."""
    which: str = "best"
    """The checkpoint of a run folder: best, latest or a step."""


Command = (
    Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
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
            case Convert():
                convert(command)


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

    from jaxvision.data import FileDataset, load_splits, to_arrays
    from jaxvision.metrics import confusion_matrix, per_class_scores

    predictor = _predictor(command.run, command.which)
    name = predictor.meta.get("dataset")
    if name is None:
        raise UserError(f"the checkpoint in {command.run} does not name its data set")
    splits = load_splits(name, data=command.data, source=command.source, data_dir=command.data_dir)
    split = command.split or list(splits)[-1]
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    dataset = splits[split]
    if dataset.class_names != predictor.class_names:
        raise UserError(
            f"the model knows the classes {', '.join(predictor.class_names)}; {name} has "
            f"{', '.join(dataset.class_names)}"
        )
    if isinstance(dataset, FileDataset):
        images = to_arrays(dataset, lambda picture: predictor.prepare(np.asarray(picture))).images
    else:
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
    print(f"{split}: loss {loss:.4f}, accuracy {accuracy:.2%} of {len(dataset):,} pictures")


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


def convert(command: Convert) -> None:
    """Writes the weights in one format as another and prints what was written. Never overwrites."""
    import jax

    from jaxvision.train.checkpoint import save_variables
    from jaxvision.weights import to_torch, write_safetensors, write_torch

    target = command.target
    if target.suffix not in (".pth", ".pt", ".safetensors", ""):
        raise UserError(
            f"expected OUT to end with .pth, .pt or .safetensors, or to have no suffix for an "
            f"orbax folder, got {target}"
        )
    if target.exists():
        raise UserError(f"{target} exists already; choose another path or delete it first")
    if not target.suffix:
        _, _, variables = _read_variables(command)
        save_variables(target, variables)
        arrays = jax.tree.leaves(variables)
    else:
        if command.source.is_dir():
            name, options, variables = _read_variables(command)
            tensors = to_torch(name, variables, **options)
        else:
            tensors = _read_file(command)
        (write_safetensors if target.suffix == ".safetensors" else write_torch)(target, tensors)
        arrays = list(tensors.values())
    size = sum(array.nbytes for array in arrays)
    print(f"written: {target} ({len(arrays)} tensors, {size:,} bytes)")


def _read_file(command: Convert) -> dict:
    """Returns the tensors of a file as they are, seen to fit the model where one is named."""
    from jaxvision.weights import from_torch, read_torch

    tensors = read_torch(command.source, key=command.key)
    if command.model is not None:
        try:
            from_torch(command.model, tensors, **_class_options(command, tensors))
        except UserError as error:
            raise UserError(f"{command.source}: {error}") from error
    return tensors


def _read_variables(command: Convert) -> tuple[str, dict, dict]:
    """Returns (name of the model, its options, its variables) of whatever IN is."""
    import jax

    from jaxvision.models import get_model
    from jaxvision.train.checkpoint import load_checkpoint, load_variables
    from jaxvision.weights import from_torch, read_torch

    source, name = command.source, command.model
    if (source / "checkpoints").is_dir():
        which = int(command.which) if command.which.isdigit() else command.which
        _, variables, meta = load_checkpoint(source, which)
        return meta["model"], meta["options"], variables
    if name is None:
        raise UserError(
            f"an orbax folder is of one model: say which with --model NAME, for {source}"
        )
    if source.is_dir():
        options = _class_options(command, {})
        model = get_model(name, **options)
        images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
        like = jax.eval_shape(model.init, jax.random.key(0), images)
        return name, options, load_variables(source, like)
    tensors = read_torch(source, key=command.key)
    options = _class_options(command, tensors)
    try:
        return name, options, from_torch(name, tensors, **options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _class_options(command: Convert, tensors: dict) -> dict:
    """The number of classes that was asked for, else the file's own."""
    from jaxvision.weights.convert import count_classes

    wanted = command.num_classes
    if wanted is None and command.model is not None:
        wanted = count_classes(command.model, tensors)
    return {} if wanted is None else {"num_classes": wanted}


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
