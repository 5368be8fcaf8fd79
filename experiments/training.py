"""What experiments of any task do around the one train step and the one loop.

The experiments beside this file choose the data, the model, the loss and the evaluation.
"""

import hashlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxvision.errors import UserError
from jaxvision.models import get_model, init_variables
from jaxvision.report import read_records
from jaxvision.train import TrainState, create_state, fit, make_train_step
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.log import RunLog
from jaxvision.train.optim import LearningRate, Schedule, cosine_lr, rising_decay, warmup
from jaxvision.train.resident import ResidentData
from jaxvision.train.run import Run
from jaxvision.types import LossFn, Variables


@dataclass(frozen=True)
class Training:
    """One network to train: `options` build `model`, and `make_loss` its loss function.

    `best` names the metric that ranks checkpoints. `meta` goes into the checkpoint besides.
    `initial` are the first variables, by default drawn with `seed`. The pictures live on the device
    unless `input_shape` says what the host makes of them: then `batches` has augmentation, and
    `workers` threads make the next batches meanwhile. `ema_decay` is where
    `rising_decay` ends.
    """

    model: str
    options: Mapping[str, Any]
    make_loss: Callable[[nn.Module], LossFn]
    make_evaluation: Callable[[nn.Module], Callable[[TrainState], Mapping[str, float]]]
    batches: Any
    tx: Any
    learning_rate: LearningRate
    epochs: int
    seed: int
    best: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    initial: Variables | None = None
    input_shape: tuple[int, int, int] | None = None
    workers: int = 0
    ema_decay: float | None = None


def train(training: Training, run: Run, *, log_every: int) -> None:
    """Trains in `run`'s folder, from its last checkpoint where it has one: see `fit_in_run`."""
    batches, dataset = training.batches, training.batches.dataset
    # Before anything is written: a model that does not fit the pictures is refused here.
    model = get_model(training.model, **training.options)
    resident = training.input_shape is None
    input_shape = tuple(dataset.images.shape[1:] if resident else training.input_shape)
    key = jax.random.key(training.seed)
    variables = training.initial or init_variables(model, key, input_shape)
    run.write_config(**facts_of(dataset))
    meta = {
        "model": training.model,
        "options": dict(training.options),
        "input_shape": input_shape,
        "class_names": list(dataset.class_names),
        "dataset": dataset.name,
        "source": dataset.source,
        **training.meta,
    }
    data = ResidentData(batches) if resident else batches
    train_step = make_train_step(
        training.make_loss(model),
        training.tx,
        seed=training.seed,
        ema_decay=average_decay(training.ema_decay),
        select=data.select if resident else None,
    )
    state = create_state(variables, training.tx, ema=training.ema_decay is not None)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    fit_in_run(
        run,
        state,
        train_step,
        data,
        batches=batches,
        epochs=training.epochs,
        evaluate=training.make_evaluation(model),
        learning_rate=training.learning_rate,
        best=training.best,
        meta=meta,
        heading=f"{training.model}: {count:,} parameters",
        log_every=log_every,
        workers=training.workers,
        line=line,
    )


def facts_of(dataset: Any) -> dict[str, Any]:
    """Returns what config.json says of the training set; a run goes on with the same one only."""
    return {
        "data_source": dataset.source,
        "train_pictures": len(dataset),
        "class_names": list(dataset.class_names),
        "train_labels": label_digest(dataset),
    }


def label_digest(dataset: Any) -> str:
    """Returns letters that two data sets share only where all labels, and boxes, are the same."""
    digest = hashlib.sha256()
    if hasattr(dataset, "labels"):
        digest.update(np.ascontiguousarray(dataset.labels))
    else:
        for objects in dataset.objects:
            digest.update(f"{len(objects)} ".encode())
            digest.update(np.ascontiguousarray(objects.boxes))
            digest.update(np.ascontiguousarray(objects.labels))
    return digest.hexdigest()[:16]


def fit_in_run(
    run: Run,
    state: TrainState,
    train_step: Callable[..., Any],
    batch_at: Callable[[int], Any],
    *,
    batches: Any,
    epochs: int,
    evaluate: Callable[[TrainState], Mapping[str, float]],
    learning_rate: LearningRate,
    best: str,
    meta: Mapping[str, Any],
    heading: str,
    log_every: int,
    checkpoint_every: int | None = None,
    workers: int = 0,
    line: Callable[[dict[str, Any]], str | None] | None = None,
    checkpoints: Path | None = None,
) -> TrainState:
    """Runs the one loop with a run folder's log and checkpoints; goes on where those end.

    `checkpoints` is the folder that gets them, where this is only a part of the run: by default
    the run's. Returns the last state. Where a signal stopped the run, says how to resume it and
    exits with 128 + the signal's number, as a shell expects.
    """
    if log_every < 1 or workers < 0 or (checkpoint_every is not None and checkpoint_every < 1):
        raise UserError(
            "expected --log-every and --checkpoint-every of at least 1 and --workers of at least 0"
        )
    with CheckpointStore(checkpoints or run.path, best=best) as store:
        if run.resumed and store.steps():
            state = store.restore(like=state)
        start, total = int(state.step), epochs * batches.steps_per_epoch
        with RunLog(run.path, start_step=start, line=line) as log:
            log.say(heading)
            log.say(f"{len(batches.dataset):,} pictures, {total:,} steps; run folder: {run.path}")
            if start:
                log.say(f"going on from step {start}")
                before = run.before.get("epochs", epochs)
                if before != epochs and callable(learning_rate):
                    log.say(
                        f"--epochs was {before}, now {epochs}: a rate that falls until the last "
                        f"one now falls until epoch {epochs}"
                    )
            result = fit(
                state,
                train_step,
                batch_at,
                steps=total,
                steps_per_epoch=batches.steps_per_epoch,
                batch_size=batches.batch_size,
                evaluate=evaluate,
                schedule=learning_rate if callable(learning_rate) else None,
                log=log,
                store=store,
                meta=meta,
                log_every=log_every,
                checkpoint_every=checkpoint_every,
                workers=workers,
            )
    if result.stopped_by:
        stopped = f"stopped by {result.stopped_by.name} after step {int(result.state.step)}"
        if run.kept:
            print(f"{stopped}, saved; go on with:\n  {run.resume_command()}")
        else:
            print(f"{stopped}; of a measurement nothing is kept")
        raise SystemExit(128 + result.stopped_by)
    return result.state


def average_decay(ema_decay: float | None) -> Schedule | None:
    """Returns the decay of the weights' moving average at each step, which ends at `ema_decay`."""
    return None if ema_decay is None else rising_decay(ema_decay)


def falling_rate(learning_rate: float, epochs: int, batches: Any) -> Schedule:
    """Returns Adam's rate: up from 0 over a twentieth of the steps, then down a half cosine."""
    if epochs < 1:
        raise UserError(f"expected at least 1 epoch, got {epochs}")
    total = epochs * batches.steps_per_epoch
    return warmup(cosine_lr(learning_rate, total_steps=total), steps=max(1, total // 20))


def line(record: dict[str, Any]) -> str:
    """What is shown of a record: every metric by its name."""
    parts = [f"epoch {record['epoch']}  step {record['step']}"]
    for name, value in record.items():
        prefix, _, metric = name.partition("/")
        if metric and metric != "grad_norm":
            words = f"{'val ' if prefix == 'val' else ''}{metric.replace('_', ' ')}"
            parts.append(f"{words} {value:.4g}")
    return "  ".join(parts)


def milliseconds_a_step(run_dir: Path, batch_size: int) -> float:
    """Returns the median over the run's records, the first of which has the compilation in it."""
    records = read_records(run_dir / "metrics.jsonl")
    rates = [r["train/examples_per_second"] for r in records if "train/examples_per_second" in r]
    return 1000 * batch_size / statistics.median(rates[1:] or rates)
