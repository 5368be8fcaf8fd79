"""RetinaNet, FCOS and SSD: detectors of one stage, trained, evaluated, and looked at.

    python experiments/dense.py                                     # slim RetinaNet, garment_scenes
    python experiments/dense.py --model fcos_resnet18_fpn
    python experiments/dense.py --model retinanet_resnet50_fpn --init COCO_V1 \\
        --data coco_json --source my_pictures --batch-size 2 --learning-rate 1e-4

RetinaNet (arXiv:1708.02002) classifies anchors at all places of a pyramid's maps; its focal loss
makes the many that are easy count little. FCOS (arXiv:1904.01355) needs no anchors: each place
measures how far the sides of its object are. SSD (arXiv:1512.02325) looks at default boxes on six
maps, and learns from the three hardest backgrounds for each object. Only `--model` changes. For
garment_scenes the pyramid is a slim one, of 64 channels, and anchors are small.

`--init` names first weights: a whole detector's, such as COCO_V1, of which only the layers of other
classes are new, or a classifier's for the backbone. The rate rises over a twentieth of the steps
and falls along a half cosine. Validation and the test use the moving average of the weights; the
best checkpoint is the one of the highest mAP@0.5. The run folder has the checkpoints,
metrics.jsonl, report.html, result.json and predictions.npz, from which
experiments/error_analysis.py compares detectors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import tyro
from detection import Thresholds, evaluation_of, train_and_report
from detection_data import load_splits, similar_classes
from detector_init import Start, drawn_variables, is_detector, options_of_run, start_from
from rcnn_data import Pictures, SizeFlags, check_sizes
from training import Training, falling_rate
from training_flags import OptimizerFlags, RunFlags, optimizer_of

from jaxvision.data import DetectionDataset
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import fcos_loss, retinanet_loss, ssd_loss
from jaxvision.train.run import Run, enable_compilation_cache
from jaxvision.types import LossFn
from jaxvision.weights.catalog import options_needed

MEAN, STD = 0.5, 0.25
"""Of pictures, where training does not start from given weights, which bring their own."""
LOSSES: dict[str, Callable[..., LossFn]] = {
    "fcos": fcos_loss,
    "retinanet": retinanet_loss,
    "ssd300": ssd_loss,
    "ssdlite320": ssd_loss,
}
"""By the first word of a model's name."""
SIDES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
"""Of the square pictures that an SSD is made for."""
SMALL = {"fpn_features": 64}
SMALL_ANCHORS = (16, 24, 40, 64, 96)
"""Of networks on a pyramid for garment_scenes, unless a flag says otherwise."""


@dataclass(frozen=True)
class Config(RunFlags, OptimizerFlags, Thresholds, SizeFlags):
    model: Literal[
        "retinanet_resnet18_fpn",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "fcos_resnet18_fpn",
        "fcos_resnet50_fpn",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ] = "retinanet_resnet18_fpn"
    """An SSD's pictures are fitted into squares of 300 or 320 pixels, unless --size says
    otherwise."""
    init: str | None = None
    """First weights: a run's folder, a file, or a published name, such as COCO_V1 of the whole or
    IMAGENET1K_V1 of a pyramid's backbone; layers of other classes are new. A run of the same model
    brings its options too."""
    width: int | None = None
    """Of a ResNet, its first stage's channels, by default 64."""
    fpn_features: int | None = None
    """The pyramid's channels, by default 64 for garment_scenes and 256 otherwise."""
    head_depth: int | None = None
    """On a pyramid, convolutions in front of the last ones, by default 4."""
    anchor_sizes: tuple[int, ...] | None = None
    """Of RetinaNet, in pixels: the smallest of each level; for garment_scenes 16 24 40 64 96."""
    epochs: int = 6
    batch_size: int = 16


def main(config: Config) -> dict[str, Any]:
    check(config)
    splits, pictures = load_splits(config), pictures_of(config)
    test = splits["test"]
    with Run("dense", config, run_dir=config.run_dir, resume=config.resume) as run:
        return train_and_report(
            config,
            make_training(config, splits, pictures),
            run,
            test,
            lambda model, meta: pictures.finder(model, test, meta["mean"], meta["std"]),
            similar=similar_classes(config),
        )


def pictures_of(config: Config) -> Pictures:
    if is_ssd(config) and config.size is None:
        config = replace(config, size=SIDES[config.model])
    return Pictures(config, config)


def make_training(
    config: Config, splits: dict[str, DetectionDataset], pictures: Pictures
) -> Training:
    train_set, val = splits["train"], splits["val"]
    options = options_of(config, len(train_set.class_names))
    start = first_weights(config, options)
    batches = pictures.batches(train_set, config.batch_size, train=True)
    rate = falling_rate(config.learning_rate, config.epochs, batches)
    tx = optimizer_of(config, rate)

    def make_loss(model: nn.Module) -> LossFn:
        return LOSSES[kind_of(config)](model, mean=start.mean, std=start.std)

    def make_evaluation(model: nn.Module):
        return evaluation_of(make_loss(model), pictures.finder(model, val, start.mean, start.std))

    return Training(
        model=config.model,
        options=options,
        make_loss=make_loss,
        make_evaluation=make_evaluation,
        batches=batches,
        tx=tx,
        learning_rate=rate,
        epochs=config.epochs,
        seed=config.seed,
        best="val/mAP50",
        meta={"task": "detection", "mean": start.mean, "std": start.std, **pictures.meta},
        initial=start.variables,
        input_shape=pictures.input_shape,
        workers=config.workers,
        ema_decay=config.ema_decay,
    )


def kind_of(config: Config) -> str:
    return config.model.split("_")[0]


def is_ssd(config: Config) -> bool:
    return config.model in SIDES


def options_of(config: Config, num_classes: int) -> dict[str, Any]:
    """Returns the model's options; `num_classes` does not count the background."""
    options: dict[str, Any] = {}
    earlier = options_of_run(config.init, config.model)
    if earlier is not None:
        options = earlier
    elif not is_ssd(config) and (config.init is None or not is_detector(config.init, config.model)):
        if config.init is None:
            options["frozen_norm"] = False  # statistics that nobody has learnt
        if config.data == "garment_scenes":
            options |= SMALL
            if kind_of(config) == "retinanet":
                options["anchor_sizes"] = SMALL_ANCHORS
    names = ("width", "fpn_features", "head_depth", "anchor_sizes")
    options |= {name: value for name in names if (value := getattr(config, name)) is not None}
    needed = {} if config.init is None else options_needed(config.model, config.init)
    return {**needed, **options, "num_classes": num_classes + 1}


def first_weights(config: Config, options: dict[str, Any]) -> Start:
    if config.init is None:
        return Start(drawn_variables(config.model, options, config.seed), MEAN, STD)
    backbone = "vgg16" if is_ssd(config) else config.model.split("_")[1]
    return start_from(config.init, config.model, options, backbone=backbone, seed=config.seed)


def check(config: Config) -> None:
    """Refuses what cannot be trained, before any work."""
    check_sizes(replace(config, size=None) if is_ssd(config) else config)
    if is_ssd(config):
        given = ("width", "fpn_features", "head_depth", "anchor_sizes")
        wrong = [name for name in given if getattr(config, name) is not None]
        if wrong:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
            raise UserError(f"{flags}: {config.model} has none, it has no pyramid")
        if config.model == "ssd300_vgg16" and config.size is not None and config.size < 260:
            raise UserError(f"expected a --size of 260 or more for SSD, got {config.size}")
    elif config.anchor_sizes is not None:
        if kind_of(config) != "retinanet":
            raise UserError(f"--anchor-sizes is RetinaNet's: {config.model} has none")
        if len(config.anchor_sizes) != 5:
            raise UserError(
                f"expected five --anchor-sizes, one for each level, got {len(config.anchor_sizes)}"
            )


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
