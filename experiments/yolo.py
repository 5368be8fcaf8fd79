"""YOLO: a whole detector in one network, trained, evaluated, and looked at.

    python experiments/yolo.py                                       # yolov1_tiny, garment_scenes
    python experiments/yolo.py --model yolox_tiny --init COCO --size 416 \\
        --data coco_json --source my_pictures                        # your own, from COCO's weights

YOLO v1 (arXiv:1506.02640) divides the picture into cells and lets each predict boxes and a class;
YOLOX (arXiv:2107.08430) predicts a box at every place of three maps and learns which of them should
answer for an object. Data, augmentation, loop, metrics and report are the same for both: only
`--model` changes. Each term of the loss is recorded by name.

Training pictures are mirrored, scaled and cut at random (`--scale`), their colours changed
(`--colors`), and with `--mosaic` joined by four; `--multi-scale` changes the size every few steps.
The rate rises over a twentieth of the steps and falls along a half cosine. Validation and the test
use the moving average of the weights; the best checkpoint is the one of the highest mAP@0.5. The
run folder has the checkpoints, metrics.jsonl, report.html, result.json and predictions.npz, from
which experiments/error_analysis.py compares two detectors.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import tyro
from augmentation import Augmentation, augment, check_augmentation
from detection import Finder, Thresholds, evaluation_of, train_and_report
from detection_data import DetectionData, load_splits, similar_classes
from training import Training, falling_rate
from training_flags import OptimizerFlags, RunFlags, optimizer_of

from jaxvision.data import (
    DetectionBatches,
    DetectionDataset,
    MultiScale,
    letterbox,
    mosaic,
)
from jaxvision.data.detection_geometry import GREY
from jaxvision.data.detection_transforms import PlacementTransform
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import yolov1_loss, yolox_loss
from jaxvision.train.run import Run, enable_compilation_cache
from jaxvision.types import LossFn
from jaxvision.weights import find_weights, load_weights

MEAN, STD = 0.5, 0.25
"""Of pictures, where training does not start from published weights, which bring their own."""


@dataclass(frozen=True)
class Config(RunFlags, OptimizerFlags, Thresholds, Augmentation, DetectionData):
    model: str = "yolov1_tiny"
    """yolov1, fast_yolov1, yolov1_tiny, or yolox_nano, _tiny, _s, _m, _l, _x, _darknet53."""
    init: str | None = None
    """First weights: a file, an address or a published name (COCO); the class layers are new."""
    width: float | None = None
    """Of YOLOX, what its channels are multiplied by, by default the model's own."""
    stem: Literal["focus", "small"] | None = None
    """Of YOLOX: small for small objects, with twice the resolution at each level."""
    l1: bool = True
    """Of YOLOX: add the distance of the boxes' raw numbers, as Megvii does in the last epochs."""
    class_loss: Literal["squared_error", "cross_entropy"] = "cross_entropy"
    """Of YOLO v1: squared_error is the paper's; cross_entropy needs a network with bounded outputs,
    as yolov1_tiny is."""
    size: int = 128
    """The side of the square that pictures are fitted into."""
    epochs: int = 8
    batch_size: int = 16
    learning_rate: float = 2e-3
    mosaic: float = 0.0
    """The probability that four pictures are joined in one."""
    multi_scale: tuple[int, ...] = ()
    """Sizes, one of which is drawn for every ten steps."""


def main(config: Config) -> dict[str, Any]:
    check(config)
    splits = load_splits(config)
    test = splits["test"]
    with Run("yolo", config, run_dir=config.run_dir, resume=config.resume) as run:
        return train_and_report(
            config,
            make_training(config, splits),
            run,
            test,
            lambda model, meta: make_finder(config, model, test),
            similar=similar_classes(config),
        )


def make_training(config: Config, splits: dict[str, DetectionDataset]) -> Training:
    train_set, shape = splits["train"], (config.size, config.size)
    options: dict[str, Any] = {"num_classes": len(train_set.class_names)}
    options |= {
        name: value for name in ("width", "stem") if (value := getattr(config, name)) is not None
    }
    sizes = [(side, side) for side in config.multi_scale]
    batches = DetectionBatches(
        train_set,
        config.batch_size,
        seed=config.seed,
        transform=augment(config, placement(config), shape),
        mix=mosaic(shape, p=config.mosaic) if config.mosaic else None,
        multi_scale=MultiScale(sizes) if sizes else None,
        drop_last=True,
    )
    rate = falling_rate(config.learning_rate, config.epochs, batches)
    tx = optimizer_of(config, rate, nesterov=True)
    initial = None
    if config.init is not None:
        initial = load_weights(config.model, config.init, seed=config.seed, **options)

    def make_evaluation(model: nn.Module):
        return evaluation_of(make_loss(config, model), make_finder(config, model, splits["val"]))

    mean, std = normalization(config)
    return Training(
        model=config.model,
        options=options,
        make_loss=lambda model: make_loss(config, model),
        make_evaluation=make_evaluation,
        batches=batches,
        tx=tx,
        learning_rate=rate,
        epochs=config.epochs,
        seed=config.seed,
        best="val/mAP50",
        meta={
            "task": "detection",
            "mean": mean,
            "std": std,
            "preprocessing": {
                "kind": "letterbox",
                "size": shape,
                "fill": GREY,
                "center": not is_yolox(config),
            },
        },
        initial=initial,
        input_shape=(*shape, 3),
        workers=config.workers,
        ema_decay=config.ema_decay,
    )


def is_yolox(config: Config) -> bool:
    return config.model.startswith("yolox")


def normalization(config: Config) -> tuple[Any, Any]:
    """Returns the mean and standard deviation that pictures are normalised by."""
    if config.init is None:
        return MEAN, STD
    if not is_yolox(config):
        return 0.0, 1.0  # darknet's
    published = find_weights(config.model, "COCO").preprocessing
    return published.mean, published.std


def placement(config: Config) -> PlacementTransform:
    """Returns what brings a picture to the network's size; YOLOX's lie at the top left."""
    return letterbox((config.size, config.size), center=not is_yolox(config))


def make_loss(config: Config, model: nn.Module) -> LossFn:
    mean, std = normalization(config)
    if is_yolox(config):
        return yolox_loss(model, mean=mean, std=std, use_l1=config.l1)
    class_loss = config.class_loss if model.bounded else "squared_error"
    return yolov1_loss(model, mean=mean, std=std, class_loss=class_loss)


def make_finder(config: Config, model: nn.Module, dataset: DetectionDataset) -> Finder:
    mean, std = normalization(config)
    return Finder(model, dataset, prepare=placement(config), mean=mean, std=std, thresholds=config)


def check(config: Config) -> None:
    """Refuses what cannot be trained, before any work."""
    check_augmentation(config)
    if not config.model.startswith(("yolo", "fast_yolo")):
        raise UserError(f"expected a YOLO as --model, such as yolov1_tiny, got {config.model!r}")
    multiple = 16 if config.stem == "small" else 32
    if is_yolox(config) and config.size % multiple:
        raise UserError(
            f"expected a --size that is a multiple of {multiple} for YOLOX, got {config.size}"
        )
    if not is_yolox(config) and (config.width or config.stem):
        raise UserError(f"--width and --stem are YOLOX's: {config.model} has none of them")


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
