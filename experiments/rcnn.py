"""R-CNN, Fast R-CNN and Faster R-CNN: trained, evaluated, and looked at.

    python experiments/rcnn.py                                  # Faster R-CNN, garment_scenes
    python experiments/rcnn.py --model fast                     # on Selective Search's proposals
    python experiments/rcnn.py --model rcnn                     # one crop a proposal, and SVMs
    python experiments/rcnn.py --backbone vgg16 --data voc2007 --train-split trainval \\
        --init IMAGENET1K_V1 --optimizer sgd --learning-rate 1e-3 --weight-decay 5e-4 \\
        --batch-size 2 --epochs 14 --colors 0                   # nearly the paper's settings

Faster R-CNN (arXiv:1506.01497) makes its proposals itself, Fast R-CNN (arXiv:1504.08083) is given
those of Selective Search, computed once and kept, and R-CNN (arXiv:1311.2524, in rcnn_stages.py)
looks at each of them alone. `--backbone` is that of all three. For garment_scenes the pyramid is a
slim one, of 64 channels, and anchors are small; other pictures are resized as the papers do, their
shorter side to `--shortest`, and padded to one of two shapes.

`--init` names first weights: a classifier's for the backbone, or a detector's. The rate rises over
a twentieth of the steps and falls along a half cosine. Validation and the test use the moving
average of the weights; the best checkpoint is the one of the highest mAP@0.5. The run folder has
the checkpoints, metrics.jsonl, report.html, result.json and predictions.npz, from which
experiments/error_analysis.py compares detectors.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import tyro
from detection import Thresholds, evaluation_of, train_and_report
from detection_data import load_splits, similar_classes
from detector_init import Start, check_anchor_sizes, drawn_variables, start_from
from rcnn_data import PictureFlags, Pictures, check_pictures
from rcnn_stages import StageFlags, check_stages, train_rcnn
from training import Training, falling_rate
from training_flags import OptimizerFlags, RunFlags, optimizer_of

from jaxvision.data import DetectionDataset
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import fast_rcnn_loss, faster_rcnn_loss
from jaxvision.losses.fast_rcnn import RoISampling
from jaxvision.losses.rcnn import Sampling
from jaxvision.train.run import Run, enable_compilation_cache
from jaxvision.types import LossFn
from jaxvision.weights.catalog import options_needed

MEAN, STD = 0.5, 0.25
"""Of pictures, where training does not start from given weights, which bring their own."""
FASTER = {
    "resnet18": "fasterrcnn_resnet18_fpn",
    "resnet50": "fasterrcnn_resnet50_fpn",
    "resnet50_v2": "fasterrcnn_resnet50_fpn_v2",
    "mobilenet_v3_large": "fasterrcnn_mobilenet_v3_large_fpn",
    "vgg16": "fasterrcnn_vgg16",
}
FAST = {
    "resnet18": "fastrcnn_resnet18_fpn",
    "resnet50": "fastrcnn_resnet50_fpn",
    "vgg16": "fastrcnn_vgg16",
}
"""What Faster and Fast R-CNN on each backbone are called."""
SMALL = {"fpn_features": 64, "representation_size": 256}
SMALL_ANCHORS = {
    "anchor_sizes": (16, 32, 64, 96),
    "pre_nms_top_n": (500, 500),
    "post_nms_top_n": (200, 200),
}
"""For garment_scenes, unless a flag says otherwise: of a pyramid and its heads; of proposals."""
FREEZABLE = ("resnet18", "resnet50", "mobilenet_v3_large")
OF_PROPOSALS = ("anchor_sizes", "pre_nms_top_n", "post_nms_top_n")
UNUSED = {
    "faster": (),
    "fast": OF_PROPOSALS,
    "rcnn": (*OF_PROPOSALS, "num_rois", "frozen_norm", "fpn_features", "representation_size"),
}
"""Flags that say nothing of a model. A training of the whole family has them for the others."""


@dataclass(frozen=True)
class Config(RunFlags, OptimizerFlags, StageFlags, Thresholds, PictureFlags):
    model: Literal["faster", "fast", "rcnn"] = "faster"
    backbone: Literal["resnet18", "resnet50", "resnet50_v2", "mobilenet_v3_large", "vgg16"] = (
        "resnet18"
    )
    """resnet50_v2 and mobilenet_v3_large are Faster R-CNN's only."""
    init: str | None = None
    """First weights: a run's folder, a file, or a published name, such as IMAGENET1K_V1 of the
    backbone or COCO_V1 of the whole; layers of other classes are new."""
    width: int | None = None
    """Of a ResNet, its first stage's channels, by default 64."""
    stem: Literal["imagenet", "small"] | None = None
    """Of a ResNet: small, of four times the resolution, as for small pictures; then the pyramid
    stands on the last three stages, of strides 2, 4 and 8."""
    frozen_norm: bool | None = None
    """Freeze the backbone's batch normalisation: by default where there is an --init, but not of
    resnet18. resnet50_v2 and vgg16 have no such choice."""
    fpn_features: int | None = None
    """The pyramid's channels, by default 64 for garment_scenes and 256 otherwise."""
    representation_size: int | None = None
    """The box head's hidden layers, by default 256 for garment_scenes and 1024 otherwise."""
    anchor_sizes: tuple[int, ...] | None = None
    """In pixels: of a pyramid one for each level; for garment_scenes 16 32 64 96."""
    pre_nms_top_n: int | None = None
    """Anchors of a level that non-maximum suppression looks at; for garment_scenes 500."""
    post_nms_top_n: int | None = None
    """Proposals that it leaves; for garment_scenes 200."""
    num_anchors: int = 256
    """Anchors of a picture that the loss looks at."""
    num_rois: int | None = None
    """Regions of a picture that the loss looks at, a quarter of them with an object; by default
    128, and 64 of Fast R-CNN."""
    background_iou: float = 0.1
    """Of Fast R-CNN: regions that overlap no object by as much are not learnt from."""
    epochs: int = 3
    batch_size: int = 8


def main(config: Config) -> dict[str, Any]:
    check(config)
    unused = ", ".join(f"--{n.replace('_', '-')}" for n in _given(config, *UNUSED[config.model]))
    if unused:
        print(f"not used by --model {config.model}: {unused}")
    splits = load_splits(config)
    pictures = Pictures(config, config, with_proposals=config.model != "faster")
    with Run("rcnn", config, run_dir=config.run_dir, resume=config.resume) as run:
        if config.model == "rcnn":
            return train_rcnn(config, splits, run, pictures)
        test = splits["test"]
        return train_and_report(
            config,
            make_training(config, splits, pictures),
            run,
            test,
            lambda model, meta: pictures.finder(model, test, meta["mean"], meta["std"]),
            similar=similar_classes(config),
        )


def make_training(
    config: Config, splits: dict[str, DetectionDataset], pictures: Pictures
) -> Training:
    train_set, val = splits["train"], splits["val"]
    model, options = network_of(config, len(train_set.class_names))
    start = first_weights(config, model, options)
    batches = pictures.batches(train_set, config.batch_size, train=True)
    rate = falling_rate(config.learning_rate, config.epochs, batches)
    tx = optimizer_of(config, rate)

    def make_evaluation(model: nn.Module):
        finder = pictures.finder(model, val, start.mean, start.std)
        return evaluation_of(make_loss(config, model, start), finder)

    return Training(
        model=model,
        options=options,
        make_loss=lambda model: make_loss(config, model, start),
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


def network_of(config: Config, num_classes: int) -> tuple[str, dict[str, Any]]:
    """Returns the model's name and options; `num_classes` does not count the background."""
    model = (FASTER if config.model == "faster" else FAST)[config.backbone]
    options: dict[str, Any] = {"num_classes": num_classes + 1}
    pyramid, resnet = config.backbone != "vgg16", config.backbone.startswith("resnet")
    if resnet and config.width is not None:
        options["width"] = config.width
    if config.stem is not None:
        options["stem"] = config.stem
        if config.stem == "small":
            options["stages"] = ("layer2", "layer3", "layer4")
    if config.backbone in FREEZABLE:
        frozen = config.init is not None and config.backbone != "resnet18"
        options["frozen_norm"] = frozen if config.frozen_norm is None else config.frozen_norm
    small = config.data == "garment_scenes"
    if pyramid:
        options |= SMALL if small else {}
        options |= _given(config, "fpn_features", "representation_size")
    if config.model == "faster" and config.backbone != "resnet50_v2":
        options |= SMALL_ANCHORS if small else {}
        options |= _given(config, "anchor_sizes")
        for name in ("pre_nms_top_n", "post_nms_top_n"):
            options |= {key: (count, count) for key, count in _given(config, name).items()}
    if config.init is not None:
        options = {**options_needed(model, config.init), **options}
    return model, options


def _given(config: Config, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(config, name)) is not None}


def first_weights(config: Config, model: str, options: dict[str, Any]) -> Start:
    if config.init is None:
        return Start(drawn_variables(model, options, config.seed), MEAN, STD)
    backbone = config.backbone.removesuffix("_v2")
    return start_from(config.init, model, options, backbone=backbone, seed=config.seed)


def make_loss(config: Config, model: nn.Module, start: Start) -> LossFn:
    normal = {"mean": start.mean, "std": start.std}
    if config.model == "fast":
        rois = RoISampling(config.num_rois or 64, background_iou=config.background_iou)
        return fast_rcnn_loss(model, sampling=rois, **normal)
    sampling = Sampling(num_anchors=config.num_anchors, num_rois=config.num_rois or 128)
    return faster_rcnn_loss(model, sampling=sampling, **normal)


def check(config: Config) -> None:
    """Refuses what cannot be trained, before any work."""
    check_pictures(config)
    if config.model == "rcnn":
        check_stages(config)
    if config.model == "fast" and config.backbone not in FAST:
        raise UserError(
            f"expected a --backbone of {', '.join(FAST)} for Fast R-CNN, got {config.backbone}"
        )
    if config.frozen_norm is not None and config.backbone not in FREEZABLE:
        raise UserError(f"--frozen-norm is not for {config.backbone}")
    if config.stem is not None and config.backbone not in ("resnet18", "resnet50"):
        raise UserError(f"--stem is a plain ResNet's: {config.backbone} has none")
    unknown = {"vgg16": ("width", "fpn_features", "representation_size")}
    unknown |= {"mobilenet_v3_large": ("width",)}
    unknown |= {"resnet50_v2": ("anchor_sizes", "pre_nms_top_n", "post_nms_top_n")}
    given = [
        f"--{name.replace('_', '-')}" for name in _given(config, *unknown.get(config.backbone, ()))
    ]
    if given:
        raise UserError(f"{', '.join(given)}: a detector on {config.backbone} has no such option")
    if config.model == "faster" and config.backbone != "vgg16":
        check_anchor_sizes(*network_of(config, 1))
    if config.num_anchors < 1 or (config.num_rois is not None and config.num_rois < 1):
        raise UserError("expected --num-anchors and --num-rois of at least 1")
    if not 0 <= config.background_iou < 0.5:
        raise UserError(
            f"expected --background-iou from 0 to below 0.5, got {config.background_iou}"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
