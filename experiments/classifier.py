"""What every classification experiment does: data to batches, model to steps, the loop, the report.

The experiments beside this file choose the data, the model and the optimiser.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from training import facts_of, fit_in_run

from jaxvision.data import ArrayDataset, Batches
from jaxvision.errors import UserError, describe_os_error
from jaxvision.losses import classification_loss
from jaxvision.models import Head, get_model, init_variables
from jaxvision.ops import normalize_images
from jaxvision.predict import Predictor
from jaxvision.report import read_records, write_classification_report
from jaxvision.train import TrainState, create_state, evaluate, make_eval_step, make_train_step
from jaxvision.train.optim import Freeze, LearningRate, freeze
from jaxvision.train.resident import RESIDENT_LIMIT, ResidentData
from jaxvision.train.run import Run, read_config
from jaxvision.train.trainable import split_params

EVAL_BATCH, EVAL_PIXELS = 500, 1 << 22
"""Evaluation batches have at most so many pictures, and pixels in all."""


@dataclass(frozen=True)
class Task:
    """One classifier to train: `options` build `model`, `mean` and `std` normalise its pictures.

    `variables` are those to start from, by default the model's initialisation with `seed`. Where
    `trainable` names some parameters the others are frozen (see `freeze`). `head`, the path of the
    last layer, asks for that alone to be trained, on features that are computed once; then the
    training pictures cannot be augmented. `meta` goes into the checkpoint besides.
    """

    model: str
    options: Mapping[str, Any]
    train: Batches
    validation: ArrayDataset
    tx: Any
    learning_rate: LearningRate
    epochs: int
    seed: int
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    best: str = "val/loss"
    ema_decay: float | None = None
    accumulate: int = 1
    variables: Any = None
    trainable: str | Sequence[str] | None = None
    head: tuple[str, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """[h, w, c] of a picture as the model takes it: validation pictures are prepared."""
        return self.validation.images.shape[1:]


def train_classifier(
    task: Task,
    run: Run,
    *,
    title: str,
    log_every: int,
    checkpoint_every: int | None = None,
    workers: int = 0,
    report: bool = True,
    line: Callable[[dict[str, Any]], str | None] | None = None,
) -> dict[str, float]:
    """Trains `task` in `run`'s folder, from its last checkpoint where it has one, and reports.

    Returns the final validation metrics. A signal ends it as `fit_in_run` says.
    """
    dataset = task.train.dataset
    class_names = list(dataset.class_names)
    options = {**task.options, "num_classes": len(class_names)}
    if task.epochs < 1:
        raise UserError(f"expected at least 1 epoch, got {task.epochs}")
    if task.accumulate < 1 or task.train.batch_size % task.accumulate:
        raise UserError(
            f"a batch of {task.train.batch_size} does not split into {task.accumulate} equal "
            f"parts; choose another --batch-size or --accumulate"
        )
    # Before anything is written: a model that does not fit the pictures is refused here.
    model = get_model(task.model, **options)
    variables = task.variables
    if variables is None:
        variables = init_variables(model, jax.random.key(task.seed), task.input_shape)
    tx = task.tx
    if task.head is not None:
        tx = freeze(tx, variables["params"], "/".join((*task.head, "**")))
    elif task.trainable is not None:
        tx = freeze(tx, variables["params"], task.trainable)
    run.write_config(**facts_of(dataset))
    meta = {
        "model": task.model,
        "options": options,
        "input_shape": task.input_shape,
        "class_names": class_names,
        "mean": task.mean,
        "std": task.std,
        "dataset": dataset.name,
        "source": dataset.source,
        **task.meta,
    }
    state = create_state(variables, tx, ema=task.ema_decay is not None)
    meta |= {
        "trained_parameters": trained_parameters(state.params, tx),
        "optimizer_bytes": sum(x.nbytes for x in jax.tree.leaves(state.opt_state)),
    }
    if task.head is None:
        loss_fn = classification_loss(model, mean=task.mean, std=task.std)
        batches, validation = task.train, task.validation
    else:
        loss_fn = classification_loss(Head(len(class_names), task.head))
        batches, validation = cached_features(task, model, variables)
    augmented = batches.transform is not None or batches.batch_transform is not None
    resident = isinstance(batches.dataset, ArrayDataset) and not augmented
    resident = resident and batches.dataset.images.nbytes <= RESIDENT_LIMIT
    data = ResidentData(batches) if resident else batches
    train_step = make_train_step(
        loss_fn,
        tx,
        seed=task.seed,
        accumulate=task.accumulate,
        ema_decay=task.ema_decay,
        select=data.select if resident else None,
    )
    validate = validation_of(loss_fn, validation)
    validated = {}  # metrics by step: after the last one they need not be computed again

    def evaluation(state: TrainState) -> dict[str, float]:
        validated[int(state.step)] = validate(state)
        return validated[int(state.step)]

    total_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    state = fit_in_run(
        run,
        state,
        train_step,
        data,
        batches=batches,
        epochs=task.epochs,
        evaluate=evaluation,
        learning_rate=task.learning_rate,
        best=task.best,
        meta=meta,
        heading=(
            f"{task.model}: {total_parameters:,} parameters, {meta['trained_parameters']:,} of "
            f"them trained; the optimiser keeps {meta['optimizer_bytes'] / 1e6:.2f} MB"
        ),
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        workers=0 if resident else workers,
        line=line,
    )
    metrics = validated.get(int(state.step)) or validate(state)  # nothing was left to train
    if report:
        write_report(run.path, title, task.train, task.validation)
    return metrics


def trained_parameters(params: Any, tx: Any) -> int:
    """Returns how many numbers of `params` the optimiser changes."""
    if isinstance(tx, Freeze):
        params, _ = split_params(params, tx.trainable)
    return sum(x.size for x in jax.tree.leaves(params))


def cached_features(task: Task, model: nn.Module, variables: Any) -> tuple[Batches, ArrayDataset]:
    """Returns the batches and the validation set with each picture's features for the picture."""
    train = task.train
    if not isinstance(train.dataset, ArrayDataset) or train.transform is not None:
        raise ValueError("features can only be cached of prepared pictures without augmentation")
    backbone = model.clone(num_classes=0)

    @jax.jit
    def features(variables, images):
        images = normalize_images(images, task.mean, task.std)
        return backbone.apply(variables, images, train=False).astype(jnp.float32)

    def computed(dataset: ArrayDataset) -> ArrayDataset:
        batches = Batches(dataset, batch_size=eval_batch_size(dataset), shuffle=False)
        blocks = [
            np.asarray(features(variables, batches(step)["image"]))
            for step in range(batches.steps_per_epoch)
        ]
        return replace(dataset, images=np.concatenate(blocks)[: len(dataset), None, None, :])

    since = time.perf_counter()
    found, validation = computed(train.dataset), computed(task.validation)
    number = len(found) + len(validation)
    print(f"features of {number:,} pictures computed in {time.perf_counter() - since:.1f} s")
    return replace(train, dataset=found), validation


def write_report(run_dir: Path, title: str, train: Batches, validation: ArrayDataset) -> None:
    """Predicts the validation set with the best checkpoint; writes report.html and samples."""
    predictor = Predictor.from_checkpoint(run_dir, which="best")
    predictor.probabilities(validation.images[:EVAL_BATCH])  # compiles
    since = time.perf_counter()
    probabilities = predictor.probabilities(validation.images)
    seconds = time.perf_counter() - since
    records = read_records(run_dir / "metrics.jsonl")
    throughput = {"predicted pictures a second": len(validation) / seconds}
    rates = [r["train/examples_per_second"] for r in records if "train/examples_per_second" in r]
    if rates:
        rate = statistics.median(rates)
        throughput["ms_per_step"] = 1000 * train.batch_size / rate
        throughput["seconds_per_epoch"] = len(train.dataset) / rate
    path = write_classification_report(
        run_dir,
        title=title,
        config=read_config(run_dir),
        records=records,
        labels=validation.labels,
        probabilities=probabilities,
        images=validation.images,
        class_names=validation.class_names,
        throughput=throughput,
        notes=[f"Predictions are those of the best checkpoint, step {predictor.meta['step']:,}."],
    )
    samples = write_samples(run_dir / "samples", validation)
    print(f"report: {path}")
    print(f"sample pictures: {samples}")


def write_samples(folder: Path, dataset: ArrayDataset) -> Path:
    """Writes the first picture of each class as a PNG, to try `python -m jaxvision predict` on."""
    try:
        folder.mkdir(exist_ok=True)
        for label, name in enumerate(dataset.class_names):
            rows = np.flatnonzero(dataset.labels == label)
            if rows.size:
                file = folder / f"{label}-{name.lower().replace('/', '-').replace(' ', '-')}.png"
                picture = dataset.images[rows[0]][..., ::-1]  # OpenCV writes BGR
                file.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {describe_os_error(error)}") from error
    return folder


def eval_batch_size(dataset: ArrayDataset) -> int:
    h, w = dataset.images.shape[1:3]
    return max(1, min(EVAL_BATCH, len(dataset), EVAL_PIXELS // (h * w)))


def validation_of(loss_fn, dataset: ArrayDataset) -> Callable[[Any], dict[str, float]]:
    """Returns `state -> metrics` over the whole data set, which stays on the device."""
    batches = Batches(dataset, batch_size=eval_batch_size(dataset), shuffle=False)
    data = ResidentData(batches)
    eval_step = make_eval_step(loss_fn, select=data.select)
    return lambda state: evaluate(eval_step, state, data.epoch())
