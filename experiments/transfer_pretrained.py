"""What a network says of validation pictures: drawn on a grid, and of the network as published."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transfer_data import prepare_validation, preset_of

from jaxvision.data import ArrayDataset
from jaxvision.errors import UserError, describe_os_error
from jaxvision.predict import Predictor
from jaxvision.report.draw import picture_grid, prediction_caption
from jaxvision.report.embed import to_png
from jaxvision.train.run import Run

SHOWN = 24


def write_predictions(run_dir: Path, validation: ArrayDataset) -> Path:
    """Draws the best checkpoint's predictions of validation pictures, wrong ones marked."""
    predictor = Predictor.from_checkpoint(run_dir, which="best")
    rows = spread_rows(len(validation))
    probabilities = predictor.probabilities(validation.images[rows])
    return draw_grid(
        run_dir / "predictions.png",
        validation.images[rows],
        [validation.class_names[label] for label in validation.labels[rows]],
        [predictor.class_names[k] for k in probabilities.argmax(axis=1)],
        probabilities.max(axis=1),
        probabilities.argmax(axis=1) == validation.labels[rows],
    )


def spread_rows(length: int) -> np.ndarray:
    """Up to `SHOWN` rows, evenly over the set, which is sorted by class."""
    return np.unique(np.linspace(0, length - 1, min(SHOWN, length)).round().astype(int))


def draw_grid(path: Path, images, true, predicted, confidence, is_right) -> Path:
    captions = [
        prediction_caption(t if not right else p, p, float(c))
        for t, p, c, right in zip(true, predicted, confidence, is_right, strict=True)
    ]
    try:
        path.write_bytes(to_png(picture_grid(images, captions, is_right)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe_os_error(error)}") from error
    return path


def show_pretrained(config: Any, splits: dict[str, Any], prepared: Any) -> dict[str, float]:
    """The pretrained network as it is: what it calls the validation pictures of each class.

    Where the names of the data's classes are among its own (but for case and a plural's s), also
    how often it is right: with all of its classes, and when it must choose among those.
    """
    preset = preset_of(prepared)
    validation = prepare_validation(splits["val"], preset, config.workers)
    if config.init == "random":
        raise UserError("--strategy none shows a pretrained network: give --init its weights")
    predictor = Predictor.from_weights(config.model, config.init, **config.options)
    with Run("transfer", config, run_dir=config.run_dir, resume=config.resume) as run:
        run.write_config(data_source=validation.source, class_names=list(validation.class_names))
        probabilities = predictor.probabilities(validation.images)
        names = np.array(predictor.class_names)
        print_most_frequent(validation, names[probabilities.argmax(axis=1)])
        own = own_classes(validation.class_names, predictor.class_names)
        predicted = names[probabilities.argmax(axis=1)]
        right = np.zeros(len(validation), bool)
        metrics: dict[str, float] = {}
        if own is None:
            print("the network has no classes of these names, so nothing can be counted as right")
        else:
            right = probabilities.argmax(axis=1) == own[validation.labels]
            among = probabilities[:, own].argmax(axis=1) == validation.labels
            metrics = {"accuracy": float(right.mean()), "accuracy_among": float(among.mean())}
            print(
                f"validation: accuracy {right.mean():.2%} among all {len(names):,} classes, "
                f"{among.mean():.2%} among these {len(own)}"
            )
        rows = spread_rows(len(validation))
        true = [validation.class_names[label] for label in validation.labels[rows]]
        confidence = probabilities[rows].max(axis=1)
        path = run.path / "predictions.png"
        draw_grid(path, validation.images[rows], true, predicted[rows], confidence, right[rows])
        print(f"predictions: {path}")
    return metrics


def print_most_frequent(validation: ArrayDataset, predicted: np.ndarray, count: int = 3) -> None:
    table = Table("class", "pictures", "most often called")
    for label, name in enumerate(validation.class_names):
        mine = predicted[validation.labels == label]
        found, counts = np.unique(mine, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:count]
        called = ", ".join(f"{found[i]} {counts[i] / len(mine):.0%}" for i in order)
        table.add_row(name, str(len(mine)), called)
    Console().print(table)


def own_classes(wanted: tuple[str, ...], known: tuple[str, ...]) -> np.ndarray | None:
    """Returns the network's class for each of the data's, None where one has no counterpart."""
    by_name = {_plain(name): k for k, name in reversed(list(enumerate(known)))}
    found = [by_name.get(_plain(name)) for name in wanted]
    return None if None in found else np.array(found)


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip().removesuffix("s")
