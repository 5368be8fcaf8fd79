"""Mask R-CNN and Keypoint R-CNN: what is where, and which pixels or which points are its.

    python experiments/mask_rcnn.py --init runs/rcnn/TIME          # garment_scenes
    python experiments/mask_rcnn.py --data penn_fudan              # torchvision's tutorial
    python experiments/mask_rcnn.py --data coco_json --source my_pictures
    python experiments/mask_rcnn.py --model keypointrcnn_resnet18_fpn --init runs/rcnn/TIME

Mask R-CNN (arXiv:1703.06870) is Faster R-CNN with a small network more, which says of each pixel of
a found box whether it is the object's. So `--init` may be the run of a Faster R-CNN of
experiments/rcnn.py: backbone, pyramid, proposals and box head are its, and the mask head is new.

Penn-Fudan, 170 pictures of pedestrians of which the last 50 are for the test, is torchvision's
tutorial: weights of COCO whose box and mask predictors are replaced, SGD with a rate of 0.005, a
tenth of it every three epochs, rising through the first. Its figures after ten epochs: a box AP of
.74 to .76 and a mask AP of .72 to .73. For pictures of your own the same is done. garment_scenes,
where nothing can be downloaded, has a slim network, AdamW, and a moving average of the weights.

Keypoint R-CNN (section 5 of the paper) has a branch for places with a name in place of the masks.
Data sets in COCO's form have these in their files; of any other one with masks, also of
garment_scenes, the keypoints are each mask's leftmost, topmost, rightmost and bottommost point.

COCO's AP of boxes and of masks, or of keypoints, is computed after each epoch; the best checkpoint
is the one of the highest mask or keypoint AP. The run folder has the checkpoints, metrics.jsonl,
report.html with what was found in test pictures, result.json and predictions.npz.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import tyro
from detection import Found, Thresholds, evaluation_of, mean_precisions, train_and_report
from detection_data import load_splits, similar_classes
from detector_init import Start, check_anchor_sizes, drawn_variables, start_from
from rcnn import MEAN, SMALL, SMALL_ANCHORS, STD
from rcnn_data import Pictures, SizeFlags, check_sizes
from training import Training, falling_rate
from training_flags import RunFlags, optimizer_of

from jaxvision.data import DetectionBatches, DetectionDataset
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import keypoint_rcnn_loss, mask_rcnn_loss
from jaxvision.losses.rcnn import Sampling
from jaxvision.metrics.coco import coco_scores
from jaxvision.ops import encode_masks
from jaxvision.train.checkpoint import load_meta
from jaxvision.train.optim import freeze, step_lr, warmup
from jaxvision.train.run import Run, enable_compilation_cache
from jaxvision.types import LossFn
from jaxvision.weights.catalog import CATALOG, options_needed

Model = Literal[
    "maskrcnn_resnet18_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet18_fpn",
    "keypointrcnn_resnet50_fpn",
]
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")
"""Of a ResNet, in the order in which torchvision trains more and more of them."""
GARMENTS: dict[str, Any] = {
    "model": "maskrcnn_resnet18_fpn",
    "epochs": 3,
    "batch_size": 8,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "ema_decay": 0.998,
    "num_rois": 64,
    "trainable_layers": 5,
    "scale": (0.8, 1.25),
    "colors": 1.0,
}
TUTORIAL: dict[str, Any] = {
    "model": "maskrcnn_resnet50_fpn",
    "init": "COCO_V1",
    "epochs": 10,
    "batch_size": 2,
    "optimizer": "sgd",
    "learning_rate": 0.005,
    "weight_decay": 0.0005,
    "ema_decay": 0.0,
    "num_rois": 512,
    "trainable_layers": 3,
    "scale": (1.0, 1.0),
    "colors": 0.0,
}
"""What is meant where a flag is not given: for garment_scenes, and for everything else."""
SLIM_KEYPOINTS = {"head_depth": 4, "head_features": 64}
"""The keypoints' branch for garment_scenes."""
KEYPOINT_OPTIONS = (*SLIM_KEYPOINTS, "num_keypoints")


@dataclass(frozen=True)
class Config(RunFlags, Thresholds, SizeFlags):
    scale: tuple[float, float] | None = None
    """Pictures are resized by a factor from this range, then cut or padded; by default 0.8 to 1.25
    for garment_scenes, else not at all."""
    colors: float | None = None
    """How much hue, saturation and value change: by default 1 for garment_scenes, else 0."""
    model: Model | None = None
    """By default maskrcnn_resnet18_fpn for garment_scenes and maskrcnn_resnet50_fpn otherwise; of a
    run in --init, the Mask R-CNN or Keypoint R-CNN on its backbone, which no other starts from."""
    init: str | None = None
    """First weights: the folder of a Faster R-CNN's or Mask R-CNN's run, a file, or the name of
    published ones. By default none for garment_scenes, and otherwise COCO_V1, or IMAGENET1K_V1 for
    the backbone of a model that has no such weights; "none" for none."""
    fpn_features: int | None = None
    """The pyramid's and the mask branch's channels: by default those of the run in --init, 64 for
    garment_scenes without first weights, and 256 otherwise."""
    anchor_sizes: tuple[int, ...] | None = None
    """In pixels, one for each level: by default those of the run in --init, 16 32 64 96 for
    garment_scenes without first weights, and 32 64 128 256 512 otherwise."""
    num_anchors: int = 256
    """Anchors of a picture that the loss looks at."""
    num_rois: int | None = None
    """Regions of a picture that the loss looks at, a quarter of them with an object and so with its
    mask or keypoints; by default 64 for garment_scenes and 512 otherwise."""
    trainable_layers: int | None = None
    """How many stages of the ResNet are trained, from the last one on: 5, all, for garment_scenes
    and without first weights, else 3."""
    shortest: int = 800
    longest: int = 1333
    epochs: int | None = None
    """3 for garment_scenes, else 10."""
    batch_size: int | None = None
    """8 for garment_scenes, else 2."""
    optimizer: Literal["adamw", "sgd"] | None = None
    """adamw, whose rate falls along a half cosine, for garment_scenes; else sgd, in steps."""
    learning_rate: float | None = None
    """1e-3 for garment_scenes, else 0.005."""
    weight_decay: float | None = None
    """0.05 for garment_scenes, where it is AdamW's, else 0.0005, where it is L2."""
    ema_decay: float | None = None
    """Of the moving average of the weights, which is what is evaluated and kept; 0: none. 0.998 for
    garment_scenes, else 0."""


def main(config: Config) -> dict[str, Any]:
    config = settled(config)
    check(config)
    keypoints = of_keypoints(config)
    splits = load_splits(config, masks=not keypoints, keypoints=keypoints)
    for split in splits.values():
        if split.masks is None and not keypoints:
            raise UserError(f"{split.name}: expected objects with masks, got a data set with none")
    pictures = Pictures(config, config, with_masks=not keypoints, with_keypoints=keypoints)
    test = splits["test"]
    targets = with_branch(test, keypoints)
    with Run("mask_rcnn", config, run_dir=config.run_dir, resume=config.resume) as run:
        return train_and_report(
            config,
            make_training(config, splits, pictures),
            run,
            test,
            lambda model, meta: pictures.finder(model, test, meta["mean"], meta["std"]),
            similar=similar_classes(config),
            more=lambda found: branch_precisions(found, targets, test.class_names, keypoints),
            targets=targets,
        )


def of_keypoints(config: Config) -> bool:
    return config.model.startswith("keypointrcnn")


def settled(config: Config) -> Config:
    """Returns the config with what its data set means by every flag that was not given."""
    defaults = dict(GARMENTS if config.data == "garment_scenes" else TUTORIAL)
    if config.init is not None and Path(config.init).is_dir():
        fitting = defaults["model"] = _model_of_run(config.init, config.model)
        if config.model not in (None, fitting):
            raise UserError(
                f"--model {config.model} is on another backbone than the run {config.init}: "
                f"expected {fitting}, or no --model"
            )
    if config.init == "none":
        defaults["trainable_layers"] = len(STAGES)
    model = config.model or defaults["model"]
    if "init" in defaults and defaults["init"] not in CATALOG.get(model, {}):
        defaults["init"] = "IMAGENET1K_V1"
    missing = {name: x for name, x in defaults.items() if getattr(config, name) is None}
    return replace(config, **missing)


def make_training(
    config: Config, splits: dict[str, DetectionDataset], pictures: Pictures
) -> Training:
    train_set, val = splits["train"], splits["val"]
    keypoints = of_keypoints(config)
    options = options_of(config, len(train_set.class_names))
    if keypoints:
        options["num_keypoints"] = len(train_set.keypoint_names)
    start = first_weights(config, options)
    batches = pictures.batches(train_set, config.batch_size, train=True)
    rate = rate_of(config, batches)
    tx = optimizer_of(config, rate)
    if config.trainable_layers < len(STAGES):
        tx = freeze(tx, start.variables["params"], trainable_of(config.trainable_layers))
    targets = with_branch(val, keypoints)

    def make_evaluation(model: nn.Module):
        def precisions(found: list[Found]) -> dict[str, float]:
            boxes = mean_precisions(found, val.objects, len(val.class_names))
            return boxes | branch_precisions(found, targets, val.class_names, keypoints)

        finder = pictures.finder(model, val, start.mean, start.std)
        return evaluation_of(make_loss(config, model, start), finder, precisions)

    return Training(
        model=config.model,
        options=options,
        make_loss=lambda model: make_loss(config, model, start),
        make_evaluation=make_evaluation,
        batches=batches,
        tx=tx,
        learning_rate=rate,
        epochs=config.epochs,
        seed=config.seed,
        best="val/keypoint_ap" if keypoints else "val/mask_ap",
        meta={
            "task": "detection",
            "mean": start.mean,
            "std": start.std,
            **pictures.meta,
            **({"keypoint_names": list(train_set.keypoint_names)} if keypoints else {}),
        },
        initial=start.variables,
        input_shape=pictures.input_shape,
        workers=config.workers,
        ema_decay=config.ema_decay or None,
    )


def options_of(config: Config, num_classes: int) -> dict[str, Any]:
    """Returns the model's options, those of the run in --init first; there it has no background."""
    options: dict[str, Any] = {}
    if config.init is not None and Path(config.init).is_dir():
        options |= load_meta(config.init)["options"]
        if not of_keypoints(config):
            options = {n: x for n, x in options.items() if n not in KEYPOINT_OPTIONS}
        elif config.data == "garment_scenes":
            options = SLIM_KEYPOINTS | options
    elif config.data == "garment_scenes" and config.init in (None, "none"):
        options |= SMALL
        if of_keypoints(config):
            options |= SLIM_KEYPOINTS
        if not config.model.endswith("_v2"):
            options |= {"anchor_sizes": (16, 32, 64, 96), **SMALL_ANCHORS}
            options["frozen_norm"] = False  # statistics that nobody has learnt
    elif config.init == "none" and not config.model.endswith("_v2"):
        options["frozen_norm"] = False
    elif config.init is not None:
        options |= options_needed(config.model, config.init)
    for name in ("fpn_features", "anchor_sizes"):
        if getattr(config, name) is not None:
            options[name] = getattr(config, name)
    return {**options, "num_classes": num_classes + 1}


def first_weights(config: Config, options: Mapping[str, Any]) -> Start:
    if config.init in (None, "none"):
        return Start(drawn_variables(config.model, options, config.seed), MEAN, STD)
    backbone = config.model.split("_")[1]
    return start_from(config.init, config.model, options, backbone=backbone, seed=config.seed)


def _model_of_run(init: str, wanted: str | None) -> str:
    """Returns the model on the run's backbone: the run's own, or else with the branch wanted."""
    name = load_meta(init)["model"]
    family, _, rest = name.partition("_")
    if wanted is not None:
        kind = wanted.partition("_")[0]
    else:
        kind = "maskrcnn" if family == "fasterrcnn" else family
    if family not in ("fasterrcnn", "maskrcnn", "keypointrcnn") or (
        f"{kind}_{rest}" not in Model.__args__
    ):
        raise UserError(
            f"{init}: expected the run of a Faster, Mask or Keypoint R-CNN on a pyramid of a "
            f"ResNet, got {name}"
        )
    return f"{kind}_{rest}"


def rate_of(config: Config, batches: DetectionBatches) -> Any:
    steps_per_epoch = batches.steps_per_epoch
    if config.optimizer == "adamw":
        return falling_rate(config.learning_rate, config.epochs, batches)
    rate = step_lr(config.learning_rate, step_size=3, gamma=0.1, steps_per_epoch=steps_per_epoch)
    return warmup(rate, steps=max(1, min(1000, steps_per_epoch - 1)), start_factor=0.001)


def trainable_of(layers: int) -> list[str]:
    """Returns what is trained, as patterns: all but the ResNet's first stages."""
    stages = [f"backbone/body/{stage}/**" for stage in STAGES[:layers]]
    return [*stages, "backbone/fpn/**", "rpn/**", "roi_heads/**"]


def make_loss(config: Config, model: nn.Module, start: Start) -> LossFn:
    sampling = Sampling(num_anchors=config.num_anchors, num_rois=config.num_rois)
    loss = keypoint_rcnn_loss if of_keypoints(config) else mask_rcnn_loss
    return loss(model, mean=start.mean, std=start.std, sampling=sampling)


def with_branch(dataset: DetectionDataset, keypoints: bool) -> list[dict[str, Any]]:
    """Returns the objects of every picture, with their keypoints, or their masks as run lengths."""
    if keypoints:
        both = zip(dataset.objects, dataset.keypoints, strict=True)
        return [{**vars(objects), "keypoints": points} for objects, points in both]
    targets = []
    for i, objects in enumerate(dataset.objects):
        masks = dataset.masks[i]
        if not isinstance(masks, tuple):
            masks = encode_masks(dataset.example(i, masks=True)["masks"])
        targets.append({**vars(objects), "masks": list(masks)})
    return targets


def branch_precisions(
    found: Sequence[Found], targets: Sequence[Any], class_names: Sequence[str], keypoints: bool
) -> dict[str, float]:
    """Returns COCO's average precision of boxes, and of masks or keypoints."""
    kind, name = ("keypoints", "keypoint") if keypoints else ("segm", "mask")
    scores = coco_scores(found, targets, class_names, ("bbox", kind))
    return {
        "coco_ap": float(scores["bbox"].summary["AP"]),
        f"{name}_ap": float(scores[kind].summary["AP"]),
        f"{name}_ap50": float(scores[kind].summary["AP50"]),
    }


def check(config: Config) -> None:
    """Refuses what cannot be trained, before any work."""
    check_sizes(config)
    if config.num_anchors < 1 or config.num_rois < 4:
        raise UserError("expected --num-anchors of at least 1 and --num-rois of at least 4")
    if not 0 <= config.trainable_layers <= len(STAGES):
        raise UserError(
            f"expected --trainable-layers from 0 to {len(STAGES)}, got {config.trainable_layers}"
        )
    if config.epochs < 1:
        raise UserError(f"expected at least 1 epoch, got {config.epochs}")
    if config.anchor_sizes is not None:
        check_anchor_sizes(config.model, options_of(config, 1))


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
