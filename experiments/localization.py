"""Localisation: what the one garment in a picture is, and where, by one network with two heads.

    python experiments/localization.py

Classification and box regression share a small ResNet; the loss is their sum, and that of pointing
at the garment's cells in a map; without that (`--cell-weight 0`) one run had learnt nothing after
16,000 scenes. The scenes are those of garment_scenes with a single garment each, mirrored,
scaled and recoloured at random for training; validation and the test use the moving average of the
weights. Of the test scenes, the accuracy, the mean IoU of the boxes, and the top-1 localisation
error are printed: the share of the scenes in which the class is wrong, or the IoU below 0.5. The
target is an accuracy of at least 0.80 and a mean IoU of at least 0.74: BENCHMARKS.md has what came
out. Any backbone that returns its stages will do:

    python experiments/localization.py --backbone vgg11_bn --width None --stem None \\
        --stage-sizes None

`--init` names what the backbone starts from: published weights of a classifier, a file of torch's,
or the folder of a run, of a classifier or of a detector with a pyramid, which says by itself what
the backbone is. One garment a scene teaches less than the four of a detector's scenes:

    python experiments/rcnn.py --width 32 --init runs/garments --run-dir runs/faster
    python experiments/localization.py --init runs/faster --learning-rate 1e-3 --epochs 10

BENCHMARKS.md says how runs/garments, a classifier of Fashion-MNIST, is made.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from augmentation import Augmentation, augment, check_augmentation
from detector_init import BODY_OPTIONS, Start, body_of, drawn_variables, start_from
from training import Training, falling_rate, milliseconds_a_step, train
from training_flags import OptimizerFlags, RunFlags, optimizer_of

from jaxvision.data import letterbox
from jaxvision.data.detection import DetectionDataset
from jaxvision.data.detection_batches import DetectionBatches
from jaxvision.data.detection_sources import load_detection
from jaxvision.errors import exit_on_user_error
from jaxvision.losses import decode_picture_boxes, localization_loss
from jaxvision.losses.localization import BoxLoss
from jaxvision.ops import normalize_images
from jaxvision.report import read_records
from jaxvision.report.detection import write_detection_report
from jaxvision.train import TrainState, evaluate, make_eval_step
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.train.resident import ResidentData
from jaxvision.train.run import Run, enable_compilation_cache, read_config, write_json

MEAN, STD = 0.5, 0.25
EVAL_BATCH = 100
SHOWN = 500
"""Test pictures that the report is made of."""


@dataclass(frozen=True)
class Config(RunFlags, OptimizerFlags, Augmentation):
    backbone: str = "resnet18"
    """A model that has `features_only`."""
    stem: Literal["imagenet", "small"] | None = "imagenet"
    """Of a resnet: small keeps the picture's size, imagenet quarters it."""
    width: int | None = 32
    """Of a resnet's first stage."""
    stage_sizes: tuple[int, ...] | None = (1, 1, 1, 1)
    """Blocks of each of a resnet's stages; between two of them the map halves."""
    init: str | None = None
    """What the backbone starts from: published weights, a file, the run of whatever has one."""
    box_loss: BoxLoss = "giou"
    """smooth_l1 on the deltas, or 1 - generalised IoU of the boxes."""
    box_weight: float = 1.0
    """Of the box loss, in the sum with the cross-entropy of the class."""
    cell_weight: float = 1.0
    """Of the cross-entropy of which cells of a map the garment is in, in the same sum."""
    num_train: int = 20_000
    """Training scenes."""
    num_val: int = 500
    num_test: int = 2000
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 2e-3
    """It rises for a twentieth of the steps and falls to 0 along a half cosine."""
    data: Literal["auto", "full", "embedded"] = "auto"
    """The pictures of garments: full, 60,000; embedded, the 11,000 in the package."""
    source: Path | None = None
    """A folder with Fashion-MNIST's four IDX files; else Debian's package, else a download."""
    data_dir: Path | None = None
    """Where prepared data sets are kept."""


def main(config: Config) -> dict[str, float]:
    check_augmentation(config)
    splits = load_scenes(config)
    training = make_training(config, splits)
    log_every = config.log_every or max(1, training.batches.steps_per_epoch // 5)
    with Run("localization", config, run_dir=config.run_dir, resume=config.resume) as run:
        train(training, run, log_every=log_every)
        result = report(config, training, splits["test"], run.path)
    print(
        f"test: accuracy {result['accuracy']:.4f}, mean IoU {result['iou']:.4f}, top-1 "
        f"localisation error {result['localization_error']:.4f}"
    )
    return result


def load_scenes(config: Config) -> dict[str, DetectionDataset]:
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    return load_detection(
        "garment_scenes",
        garments=(1, 1),
        counts=counts,
        data=config.data,
        source=config.source,
        data_dir=config.data_dir,
    )


def make_training(config: Config, splits: Mapping[str, DetectionDataset]) -> Training:
    size = splits["train"].images.shape[1:3]
    batches = DetectionBatches(
        splits["train"],
        config.batch_size,
        seed=config.seed,
        transform=augment(config, letterbox(size), size),
        drop_last=True,
    )
    rate = falling_rate(config.learning_rate, config.epochs, batches)
    options = {"num_classes": len(splits["train"].class_names), **backbone_of(config)}
    start = first_weights(config, options)

    def make_loss(model: nn.Module):
        return localization_loss(
            model,
            mean=start.mean,
            std=start.std,
            box_loss=config.box_loss,
            box_weight=config.box_weight,
            cell_weight=config.cell_weight,
        )

    return Training(
        model="localizer",
        options=options,
        make_loss=make_loss,
        make_evaluation=lambda model: evaluation_of(make_loss(model), splits["val"]),
        batches=batches,
        tx=optimizer_of(config, rate),
        learning_rate=rate,
        epochs=config.epochs,
        seed=config.seed,
        best="val/localization_error",
        meta={
            "task": "localization",
            "mean": start.mean,
            "std": start.std,
            "preprocessing": {"kind": "resize", "size": size, "interpolation": "bilinear"},
        },
        initial=start.variables,
        input_shape=(*size, 3),
        workers=config.workers,
        ema_decay=config.ema_decay,
    )


def backbone_of(config: Config) -> dict[str, Any]:
    """Returns the backbone's name and its options: the flags', or those of the run in --init."""
    if config.init is not None and Path(config.init).is_dir():
        _, given, meta = load_checkpoint(config.init)
        if meta["model"] == "localizer":
            return {k: v for k, v in meta["options"].items() if k != "num_classes"}
        options = {k: v for k, v in meta["options"].items() if k in BODY_OPTIONS}
        return {"backbone": body_of(meta["model"], given), "backbone_options": options}
    flags = {name: getattr(config, name) for name in ("stem", "width", "stage_sizes")}
    return {
        "backbone": config.backbone,
        "backbone_options": {name: x for name, x in flags.items() if x is not None},
    }


def first_weights(config: Config, options: dict[str, Any]) -> Start:
    if config.init is None:
        return Start(drawn_variables("localizer", options, config.seed), MEAN, STD)
    backbone = options["backbone"]
    return start_from(config.init, "localizer", options, backbone=backbone, seed=config.seed)


def evaluation_of(loss_fn, dataset: DetectionDataset) -> Callable[[TrainState], dict[str, float]]:
    """Returns `state -> metrics` over the whole data set, which stays on the device."""
    batches = DetectionBatches(dataset, min(EVAL_BATCH, len(dataset)), shuffle=False)
    data = ResidentData(batches)
    eval_step = make_eval_step(loss_fn, select=data.select)
    return lambda state: evaluate(eval_step, state, data.epoch())


def report(
    config: Config, training: Training, test: DetectionDataset, run_dir: Path
) -> dict[str, float]:
    """Evaluates the best checkpoint on the test scenes; writes result.json and report.html."""
    model, variables, meta = load_checkpoint(run_dir, "best")
    variables = jax.device_put(variables)
    state = TrainState(
        jnp.int32(meta["step"]), variables["params"], variables.get("batch_stats", {}), ()
    )
    result = evaluation_of(training.make_loss(model), test)(state)
    result |= {"step": meta["step"], "ms_per_step": milliseconds_a_step(run_dir, config.batch_size)}
    write_json(run_dir / "result.json", result)
    shown = test.subset(np.arange(min(SHOWN, len(test))))
    path = write_detection_report(
        run_dir,
        title="Localisation of one garment",
        config=read_config(run_dir),
        records=read_records(run_dir / "metrics.jsonl"),
        class_names=test.class_names,
        predictions=localized(model, variables, shown, mean=meta["mean"], std=meta["std"]),
        targets=shown.objects,
        image_at=shown.image,
        score_threshold=0.0,
        throughput={"ms_per_step": result["ms_per_step"]},
        notes=[
            f"Of all {len(test):,} test scenes: accuracy {result['accuracy']:.4f}, mean IoU "
            f"{result['iou']:.4f}, top-1 localisation error {result['localization_error']:.4f} "
            f"(the class is wrong, or the IoU is below 0.5). What follows is of the first "
            f"{len(shown)}, by the best checkpoint, step {meta['step']:,}; one box a picture.",
        ],
    )
    print(f"report: {path}")
    return result


def localized(
    model: nn.Module, variables: Any, dataset: DetectionDataset, *, mean: Any, std: Any
) -> list[dict[str, Any]]:
    """Returns the one box of each picture, with its class and that one's probability."""
    size = dataset.images.shape[1:3]

    @jax.jit
    def predict(variables, images):
        outputs = model.apply(variables, normalize_images(images, mean, std), train=False)
        probabilities = jax.nn.softmax(outputs["logits"])
        boxes = decode_picture_boxes(outputs["box_deltas"], size)
        return boxes, probabilities.max(axis=1), probabilities.argmax(axis=1)

    batches = DetectionBatches(dataset, min(EVAL_BATCH, len(dataset)), shuffle=False)
    parts = [predict(variables, batches(step)["image"]) for step in range(batches.steps_per_epoch)]
    boxes, scores, labels = (
        np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(3)
    )
    return [
        {"boxes": boxes[i : i + 1], "scores": scores[i : i + 1], "labels": labels[i : i + 1]}
        for i in range(len(dataset))
    ]


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
