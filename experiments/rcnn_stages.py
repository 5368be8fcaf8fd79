"""R-CNN (arXiv:1311.2524) in its three stages: the network, then SVMs on its features, then boxes.

`python experiments/rcnn.py --model rcnn` runs them. First a classifier is fine-tuned on crops of
Selective Search's proposals: the objects' classes and the background. Then its features of every
proposal of the pictures that SVMs learn from are computed, once, and kept in the run folder. SVMs,
one against all, are solved for with hard negative mining, and class by class the boxes are
regressed. Each stage goes on where it was stopped. The run folder's checkpoint is the whole
detector; finetuning/ in it has the network's.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from detection import mean_precisions, report
from detection_data import similar_classes
from detector_init import Start
from flax.traverse_util import flatten_dict, unflatten_dict
from rcnn_data import Pictures
from rcnn_regions import Solved, solve, write_regions
from training import average_decay, facts_of, falling_rate, fit_in_run, line, milliseconds_a_step
from training_flags import optimizer_of

from jaxvision.data import DetectionDataset
from jaxvision.errors import UserError
from jaxvision.losses.regions import region_classification_loss
from jaxvision.models import abstract_variables, get_model, init_variables
from jaxvision.models.rcnn import RCNN
from jaxvision.train import TrainState, create_state, evaluate, make_eval_step, make_train_step
from jaxvision.train.checkpoint import CheckpointStore, load_checkpoint
from jaxvision.train.log import RunLog
from jaxvision.train.run import Run
from jaxvision.types import Variables
from jaxvision.weights import find_weights, load_weights
from jaxvision.weights.backbone import HEADS

MEAN, STD = 0.5, 0.25
"""Of pictures, where training does not start from given weights, which bring their own."""
BACKBONES = ("resnet18", "resnet50", "vgg16")
FINETUNING = "finetuning"
"""The folder of the network's checkpoints within the run's."""
SMALL_CROP, SMALL_GRID, SVM_PICTURES = 64, 4, 1000
"""Of garment_scenes: a crop's side, the cells an axis that boxes are regressed from, and how many
pictures SVMs and boxes learn from."""


@dataclass(frozen=True)
class StageFlags:
    """Of R-CNN alone."""

    crop_size: int | None = None
    """What proposals are stretched to, by default 64 for garment_scenes and 224 otherwise."""
    crop_context: int | None = None
    """Pixels at each side of a crop that show what is around, by default the paper's 16 of 227."""
    crops: int = 128
    """Crops of a batch that the network is fine-tuned on, at most a quarter with an object."""
    svm_pictures: int | None = None
    """Training pictures whose regions SVMs and boxes learn from, by default 1,000 of
    garment_scenes and all of others."""
    svm_c: float = 1e-3
    """What a region on the wrong side costs an SVM: the less, the simpler it is."""
    svm_rounds: int = 10
    """Times that hard negatives are looked for, at most."""
    box_penalty: float = 1000.0
    """Lambda of the ridge regression of the boxes."""


def train_rcnn(
    config: Any, splits: Mapping[str, DetectionDataset], run: Run, pictures: Pictures
) -> dict[str, Any]:
    """Trains R-CNN in `run`'s folder, tests it and writes the report; returns the test's figures.

    `config` is that of experiments/rcnn.py.
    """
    train_set, val, test = (splits[name] for name in ("train", "val", "test"))
    options = model_options(config, len(train_set.class_names))
    model, start = get_model("rcnn", **options), first_classifier(config, options)
    state = finetune(config, splits, run, pictures, model, options, start)
    step = int(state.step)
    with CheckpointStore(run.path, best="val/mAP50") as store:
        if step not in store.steps():
            variables = headless(model, state.variables)
            solved = learn_behind(config, train_set, run, pictures, model, variables, start, step)
            variables["params"] |= {
                "svms": solved.svms._asdict(),
                "box_regressors": solved.box_regressors._asdict(),
            }
            found = pictures.finder(model, val, start.mean, start.std)(variables)
            scores = mean_precisions(found, val.objects, len(val.class_names))
            scores = {f"val/{name}": value for name, value in scores.items()}
            with RunLog(run.path, start_step=step, line=line) as log:
                log.write({"step": step, "epoch": config.epochs, **scores})
            meta = {
                **meta_of(train_set, start),
                **pictures.meta,
                "model": "rcnn",
                "options": options,
                "task": "detection",
                "input_shape": pictures.input_shape,
                "solved": solved.figures,
            }
            store.save(detector_state(variables, step), metrics=scores, meta=meta)
    # All that was learnt from them is in the checkpoint.
    shutil.rmtree(regions_folder(run, step), ignore_errors=True)
    model, variables, meta = load_checkpoint(run.path, "latest")
    return report(
        run.path,
        pictures.finder(model, test, start.mean, start.std)(variables),
        test,
        title=f"R-CNN on {test.name}",
        similar=similar_classes(config),
        throughput={"ms_per_step": milliseconds_a_step(run.path, config.batch_size)},
        extra={"model": "rcnn", "seed": config.seed, "best_step": step, **meta["solved"]},
    )


# --------------------------------------------------------------------------- before the first stage
def check_stages(config: Any) -> None:
    """Refuses what cannot be trained, before any work."""
    if config.backbone not in BACKBONES:
        raise UserError(
            f"expected a --backbone of {', '.join(BACKBONES)} for R-CNN, got {config.backbone}"
        )
    for name in ("crops", "svm_rounds"):
        if getattr(config, name) < 1:
            flag = name.replace("_", "-")
            raise UserError(f"expected --{flag} of at least 1, got {getattr(config, name)}")
    if config.svm_pictures is not None and config.svm_pictures < 1:
        raise UserError(f"expected --svm-pictures of at least 1, got {config.svm_pictures}")
    if config.svm_c <= 0 or config.box_penalty < 0:
        raise UserError("expected --svm-c above 0 and --box-penalty of at least 0")
    size, context = crop_size_of(config), config.crop_context or 0
    if not 0 <= 2 * context < size:
        raise UserError(f"expected --crop-context below half of the crop's {size}, got {context}")


def crop_size_of(config: Any) -> int:
    small = config.data == "garment_scenes"
    return config.crop_size or (SMALL_CROP if small else 224)


def model_options(config: Any, num_labels: int) -> dict[str, Any]:
    """Returns what `get_model("rcnn")` takes; `num_labels` does not count the background."""
    given = {name: getattr(config, name) for name in ("width", "stem")}
    options = {
        "num_classes": num_labels + 1,
        "backbone": config.backbone,
        "backbone_options": {name: value for name, value in given.items() if value is not None},
        "crop_size": crop_size_of(config),
    }
    if config.data == "garment_scenes":
        options["grid"] = SMALL_GRID
    if config.crop_context is not None:
        options["padding"] = config.crop_context
    return options


def first_classifier(config: Any, options: Mapping[str, Any]) -> Start:
    """Returns the variables of a classifier with a class more, for the background."""
    name, kept = options["backbone"], options["backbone_options"]
    if config.init is not None and not Path(config.init).is_dir():
        sizes = {**kept, "num_classes": options["num_classes"]}
        given = load_weights(name, config.init, seed=config.seed, **sizes)
        normal = find_weights(name, "DEFAULT").preprocessing
        return Start(given, normal.mean, normal.std)
    network = get_model(name, num_classes=options["num_classes"], **kept)
    side = options["crop_size"]
    draw = partial(init_variables, network, jax.random.key(config.seed), (side, side, 3))
    if config.init is None:
        return Start(draw(), MEAN, STD)
    _, given, meta = load_checkpoint(config.init)
    drawn = draw(where=lambda path: path.split("/")[1] in HEADS)
    return Start(
        with_new_head(drawn, given, config.init), meta.get("mean", 0.0), meta.get("std", 1)
    )


def with_new_head(drawn: Variables, given: Variables, origin: str) -> dict[str, Any]:
    """Returns the arrays of `given`, another classifier of the same kind, and of `drawn` its head.

    The backbone of R-CNN, in which there is no head, will do as well.
    """
    old = flatten_dict(dict(given))
    if any(path[1] == "backbone" for path in old):
        old = {(path[0], *path[2:]): x for path, x in old.items() if path[1] == "backbone"}
    result, wrong = {}, []
    for path, leaf in flatten_dict(dict(drawn)).items():
        fits = path in old and np.shape(old[path]) == leaf.shape
        result[path] = old[path] if fits else leaf
        if not fits and path[1] not in HEADS:
            wrong.append("/".join(path))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"{origin}: expected a classifier of the same kind, got another "
            f"{', '.join(wrong[:3])}{more}: give its --backbone, --width and --stem"
        )
    return unflatten_dict(result)


def meta_of(dataset: DetectionDataset, start: Start) -> dict[str, Any]:
    return {
        "class_names": list(dataset.class_names),
        "dataset": dataset.name,
        "source": dataset.source,
        "mean": start.mean,
        "std": start.std,
    }


# -------------------------------------------------------------------------------------- the stages
def finetune(
    config: Any,
    splits: Mapping[str, DetectionDataset],
    run: Run,
    pictures: Pictures,
    model: RCNN,
    options: Mapping[str, Any],
    start: Start,
) -> TrainState:
    """Trains the classifier on crops of proposals (section 2.3), and returns its last state."""
    train_set, val = splits["train"], splits["val"]
    name, kept = options["backbone"], options["backbone_options"]
    sizes = {**kept, "num_classes": options["num_classes"]}
    network = get_model(name, **sizes)
    batches = pictures.batches(train_set, config.batch_size, train=True)
    held_out = pictures.batches(val, min(config.batch_size, len(val)), train=False)
    rate = falling_rate(config.learning_rate, config.epochs, batches)
    tx = optimizer_of(config, rate)
    loss_fn = region_classification_loss(
        network,
        crop_size=model.crop_size,
        padding=model.padding,
        mean=start.mean,
        std=start.std,
        num_regions=config.crops,
    )
    eval_step = make_eval_step(loss_fn)

    def evaluation(state: TrainState) -> dict[str, float]:
        return evaluate(eval_step, state, map(held_out, range(held_out.steps_per_epoch)))

    run.write_config(**facts_of(train_set))
    meta = meta_of(train_set, start)
    meta |= {
        "model": name,
        "options": sizes,
        "input_shape": (model.crop_size, model.crop_size, 3),
        "class_names": ["background", *train_set.class_names],
    }
    return fit_in_run(
        run,
        create_state(start.variables, tx, ema=config.ema_decay is not None),
        make_train_step(loss_fn, tx, seed=config.seed, ema_decay=average_decay(config.ema_decay)),
        batches,
        batches=batches,
        epochs=config.epochs,
        evaluate=evaluation,
        learning_rate=rate,
        best="val/loss",
        meta=meta,
        heading=f"R-CNN, 1 of 3: {name}, fine-tuned on crops of {model.crop_size} pixels",
        log_every=config.log_every or max(1, batches.steps_per_epoch // 5),
        workers=config.workers,
        line=line,
        checkpoints=run.path / FINETUNING,
    )


def learn_behind(
    config: Any,
    dataset: DetectionDataset,
    run: Run,
    pictures: Pictures,
    model: RCNN,
    variables: Variables,
    start: Start,
    step: int,
) -> Solved:
    """Computes the regions' features, and solves for SVMs and box regressors on them."""
    count = config.svm_pictures
    if count is None:
        count = SVM_PICTURES if config.data == "garment_scenes" else len(dataset)
    some = dataset.subset(np.arange(min(count, len(dataset))))
    print(f"R-CNN, 2 of 3: features of the regions of {len(some):,} pictures")
    paths = write_regions(
        regions_folder(run, step),
        model,
        variables,
        pictures.batches(some, min(config.batch_size, len(some)), train=False),
        mean=start.mean,
        std=start.std,
    )
    print("R-CNN, 3 of 3: SVMs and boxes")
    return solve(
        paths,
        len(dataset.class_names),
        c=config.svm_c,
        max_rounds=config.svm_rounds,
        box_penalty=config.box_penalty,
        seed=config.seed,
    )


def regions_folder(run: Run, step: int) -> Path:
    return run.path / f"regions-{step}"


def headless(model: RCNN, classifier: Variables) -> dict[str, Any]:
    """Returns R-CNN's variables with a classifier's network, and zeros behind it."""
    shapes = flatten_dict(dict(abstract_variables(model, (model.crop_size, model.crop_size, 3))))
    given = flatten_dict(dict(classifier))
    leaves = {
        path: given[(path[0], *path[2:])]
        if path[1] == "backbone"
        else np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in shapes.items()
    }
    return unflatten_dict(leaves)


def detector_state(variables: Variables, step: int) -> TrainState:
    """Returns what a checkpoint of the whole holds: with no optimiser, for it is never resumed."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    batch_stats = jax.tree.map(jnp.asarray, variables.get("batch_stats", {}))
    return TrainState(jnp.int32(step), params, batch_stats, ())
