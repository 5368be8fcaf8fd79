"""Trains torchvision's Faster or Mask R-CNN as a run was trained, and compares what both find.

    python experiments/rcnn.py --run-dir runs/faster
    python experiments/bench/detector_learning.py --run runs/faster

RUN is a finished one of experiments/rcnn.py (Faster R-CNN) or experiments/mask_rcnn.py on
garment_scenes. torchvision's network has its first weights and its batches, picture by picture and
augmented alike, the same optimiser with the same rates, and the same moving average of the weights;
which anchors and RoIs the loss looks at each side draws for itself. Both are scored on the test
scenes by the same code. What torchvision's training has come to is kept beside the run, in the
folder `torchvision`, and the command given again goes on from there.

Beside a CPU-only PyTorch torchvision's compiled operators do not load, and others on PyTorch's own
kernels stand in for them (torch_operators.py), which changes no value by more than rounding.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from classifier import find_torch_python, start_torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch_loop import TorchProcess

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the experiments that made the run
import mask_rcnn
import rcnn
from detection import scores_of
from detection_data import load_splits, similar_classes
from rcnn_data import Pictures
from training import Training, average_decay

from jaxvision.data import DetectionBatches, DetectionDataset
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.models import get_model
from jaxvision.ops import encode_masks
from jaxvision.train.checkpoint import load_meta
from jaxvision.train.run import enable_compilation_cache, read_config
from jaxvision.weights import to_torch

HERE = Path(__file__).resolve().parent
SCORES = {
    "mAP50": "mAP@0.5",
    "mAP50_voc07": "mAP@0.5, VOC07",
    "coco_ap": "COCO AP of boxes",
    "mask_ap": "COCO AP of masks",
}
TENTHS, AT_ONCE = 10, 8


@dataclass(frozen=True)
class Config:
    run: Path
    """The folder of the run to compare with."""
    save_every: int = 500
    """Steps after which torchvision's state is kept."""
    torch_python: Path | None = None
    """A Python that has PyTorch and torchvision; by default this one, or else .venv-parity's."""
    device: Literal["cpu", "cuda"] = "cpu"
    """PyTorch's; on cuda it computes in bfloat16."""
    threads: int | None = None
    """PyTorch's, by default one for each core."""


def settings_of(run: Path) -> Any:
    """Returns the flags that the run was made with, as its experiment's `Config`."""
    name = load_meta(run)["model"]
    experiment = {"fasterrcnn": rcnn, "maskrcnn": mask_rcnn}.get(name.partition("_")[0])
    stored = read_config(run)
    if experiment is None or "resnet" not in name or stored["data"] != "garment_scenes":
        raise UserError(
            f"{run}: expected a Faster or Mask R-CNN on a pyramid of a ResNet, trained on "
            f"garment_scenes, got {name} on {stored['data']}"
        )
    values = {}
    for field in fields(experiment.Config):
        value = stored[field.name]
        path = field.name in ("source", "data_dir", "run_dir") and value is not None
        values[field.name] = Path(value) if path else _as_tuple(value)
    settings = experiment.Config(**values)
    if settings.size not in (None, settings.picture_size):
        raise UserError(f"{run}: expected scenes in their own size, got --size {settings.size}")
    if getattr(settings, "trainable_layers", len(mask_rcnn.STAGES)) < len(mask_rcnn.STAGES):
        raise UserError(f"{run}: expected a run that trained all layers, as --trainable-layers 5")
    return settings


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def torch_options(settings: Any, training: Training) -> dict[str, Any]:
    """Returns what the PyTorch process builds its network of, and how it trains it."""
    model = get_model(training.model, **training.options)
    options = {"width": 64, "fpn_features": 256, "representation_size": 1024}
    options["frozen_norm"] = "resnet18" not in training.model
    options |= training.options
    if options.get("stem", "imagenet") != "imagenet" or training.model.endswith("_v2"):
        raise UserError("expected a ResNet with torchvision's stem and heads of the first version")
    normal = {name: np.broadcast_to(training.meta[name], 3).tolist() for name in ("mean", "std")}
    names = ("optimizer", "weight_decay", "score_threshold", "max_detections", "seed")
    return {
        **options,
        **normal,
        **{name: getattr(settings, name) for name in names},
        "model": training.model,
        "num_classes": model.roi_heads.num_classes,
        "num_anchors": settings.num_anchors,
        "num_rois": settings.num_rois or 128,
        "iou_threshold": 0.5 if settings.iou_threshold is None else settings.iou_threshold,
        "size": training.input_shape[:2],
    }


def start(config: Config, settings: Any, training: Training, folder: Path) -> TorchProcess:
    python = find_torch_python(config.torch_python)
    if python is None:
        raise UserError("expected a Python that has PyTorch and torchvision: give --torch-python")
    weights = to_torch(training.model, training.initial, **training.options)
    np.savez(folder / "weights.npz", **weights)
    options = json.dumps(torch_options(settings, training))
    (folder / "options.json").write_text(options, encoding="utf-8")
    flags = ["--device", config.device]
    if config.threads is not None:
        flags += ["--threads", config.threads]
    return start_torch(python, "torch_detectors.py", folder, *flags)


def train(config: Config, training: Training, torch: TorchProcess, folder: Path) -> list[float]:
    """Trains torchvision's network to the end; returns the loss of every step."""
    kept = config.run / "torchvision" / "state.pt"
    kept.parent.mkdir(exist_ok=True)
    losses = torch.request(restore=str(kept))["losses"] if kept.exists() else []
    total = training.epochs * training.batches.steps_per_epoch
    decay_at, file = average_decay(training.ema_decay), folder / "batch.npz"
    names = ["image", "boxes", "labels", "box_valid"]
    names += ["masks"] if training.model.startswith("maskrcnn") else []
    for step in track(
        range(len(losses), total), description="torchvision", total=total, completed=len(losses)
    ):
        batch = training.batches(step)
        np.savez(file, **{name: batch[name][None] for name in names})
        decay = None if decay_at is None else float(decay_at(step))
        rate = float(training.learning_rate(step))
        losses.append(torch.request(fit=str(file), rate=rate, decay=decay)["loss"])
        tenth = max(1, total // TENTHS)
        if (step + 1) % tenth == 0:
            recent = np.mean(losses[-tenth:])
            print(f"  {step + 1:,} of {total:,} steps, loss {recent:.3f}", flush=True)
        if (step + 1) % config.save_every == 0 or step + 1 == total:
            torch.request(save=str(kept))
    return losses


def find(
    torch: TorchProcess, test: DetectionDataset, pictures: Pictures, folder: Path
) -> list[dict[str, Any]]:
    """Returns what torchvision's network finds in the test scenes, as ours says it."""
    batches = DetectionBatches(
        test,
        min(AT_ONCE, len(test)),
        shuffle=False,
        transform=pictures.placement,
        drop_last=False,
    )
    side, found = pictures.side, []
    for step in track(range(batches.steps_per_epoch), description="finding"):
        np.savez(folder / "test.npz", image=batches(step)["image"][None])
        out = folder / "found.npz"
        torch.request(find=str(folder / "test.npz"), out=str(out))
        with np.load(out) as file:
            ends = np.cumsum(file["counts"])[:-1]
            columns = {name: np.split(file[name], ends) for name in file.files if name != "counts"}
        for i, labels in enumerate(columns["labels"]):
            each = {name: columns[name][i] for name in ("boxes", "scores")}
            each["labels"] = labels.astype(int) - 1
            if "masks" in columns:
                bits = np.unpackbits(columns["masks"][i], axis=-1, count=side)
                each["masks"] = encode_masks(bits.astype(bool))
            found.append(each)
    return found[: len(test)]


def compare(
    settings: Any, found: Sequence[dict[str, Any]], test: DetectionDataset, run: Path
) -> dict[str, dict[str, float]]:
    """Prints and returns the scores of both sides."""
    theirs = scores_of(found, test, similar_classes(settings))
    if test.masks is not None and "masks" in found[0]:
        targets = mask_rcnn.with_branch(test, keypoints=False)
        theirs |= mask_rcnn.branch_precisions(found, targets, test.class_names, keypoints=False)
    ours = json.loads((run / "result.json").read_text(encoding="utf-8"))
    table = Table("", "jaxvision", "torchvision", "difference")
    both: dict[str, dict[str, float]] = {}
    for name, words in SCORES.items():
        if name in ours and name in theirs:
            both[name] = {"jaxvision": ours[name], "torchvision": theirs[name]}
            sides = [f"{value:.4f}" for value in both[name].values()]
            table.add_row(words, *sides, f"{ours[name] - theirs[name]:+.4f}")
    Console(width=100).print(table)
    return both


def main(config: Config) -> dict[str, Any]:
    if config.save_every < 1 or (config.threads is not None and config.threads < 1):
        raise UserError("--save-every and --threads must be at least 1")
    if not (config.run / "result.json").exists():
        raise UserError(f"{config.run}: expected the folder of a finished run, with a result.json")
    settings = settings_of(config.run)
    experiment = mask_rcnn if isinstance(settings, mask_rcnn.Config) else rcnn
    splits = load_splits(settings)
    pictures = Pictures(settings, settings, with_masks=experiment is mask_rcnn)
    training = experiment.make_training(settings, splits, pictures)
    if training.initial is None:
        raise UserError(f"{config.run}: expected first weights that can be drawn again")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch = start(config, settings, training, folder)
        try:
            print(f"{training.model} on {training.batches.dataset.source}")
            print(f"jax {jax.__version__}; {torch.facts}")
            losses = train(config, training, torch, folder)
            found = find(torch, splits["test"], pictures, folder)
        finally:
            torch.close()
    scores = compare(settings, found, splits["test"], config.run)
    seen = training.epochs * training.batches.steps_per_epoch * settings.batch_size
    print(f"{len(splits['test']):,} test scenes, after {seen:,} scenes seen by each")
    result = {"scores": scores, "losses": losses, **torch.facts}
    path = config.run / "torchvision" / "result.json"
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        try:
            main(tyro.cli(Config, description=__doc__))
        except ChildProcessError as error:
            raise UserError(str(error)) from error
