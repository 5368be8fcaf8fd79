"""Times detectors against torchvision's: from bytes to updated weights, and to detections.

    python experiments/bench/detectors.py --torch-python .venv-parity/bin/python
    python experiments/bench/detectors.py --model fasterrcnn_resnet50_fpn --size 800 1066
    python experiments/bench/detectors.py --model maskrcnn_resnet50_fpn --size 800 1066 --no-train

Both sides have the same network, weights and made-up scenes. They take turns, block by block, while
the other waits, and what counts is the ratio of neighbouring blocks. The resnet18 ones are slim,
with a pyramid of 64 channels and small anchors; those on resnet50 are torchvision's, with frozen
batch normalisation. Beside a CPU-only PyTorch torchvision's compiled operators do not load; others
on PyTorch's own kernels (torch_operators.py) stand in for them, which is said. On a GPU (`--device
cuda`, with a jax for CUDA) both compute in bfloat16.

What both learn, experiments/bench/detector_learning.py compares.
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from classifier import find_torch_python, start_torch
from torch_loop import TorchProcess
from yolo import made_up_batches, spread

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import faster_rcnn_loss, mask_rcnn_loss, retinanet_loss
from jaxvision.losses.rcnn import Sampling
from jaxvision.models import get_model, init_variables
from jaxvision.models.detection import make_detector
from jaxvision.ops import paste_masks
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import adamw
from jaxvision.train.run import enable_compilation_cache
from jaxvision.types import PaddedInstances
from jaxvision.weights import to_torch

HERE = Path(__file__).resolve().parent
NUM_CLASSES = 11
SLIM = {
    "frozen_norm": False,
    "width": 64,
    "fpn_features": 64,
    "representation_size": 256,
    "anchor_sizes": (16, 32, 64, 96),
    "pre_nms_top_n": (500, 500),
    "post_nms_top_n": (200, 200),
}
WHOLE = {"frozen_norm": True, "width": 64, "fpn_features": 256}
WHOLE_RCNN = {
    **WHOLE,
    "representation_size": 1024,
    "anchor_sizes": (32, 64, 128, 256, 512),
    "pre_nms_top_n": (2000, 1000),
    "post_nms_top_n": (2000, 1000),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet18_fpn": SLIM,
    "fasterrcnn_resnet50_fpn": WHOLE_RCNN,
    "maskrcnn_resnet18_fpn": SLIM,
    "maskrcnn_resnet50_fpn": WHOLE_RCNN,
    "retinanet_resnet50_fpn": {**WHOLE, "anchor_sizes": (32, 64, 128, 256, 512)},
}
LOSSES = {
    "fasterrcnn": faster_rcnn_loss,
    "maskrcnn": mask_rcnn_loss,
    "retinanet": retinanet_loss,
}
MEAN, STD, WEIGHT_DECAY, SCORE_THRESHOLD, RATE = 0.5, 0.25, 0.05, 0.005, 1e-4


@dataclass(frozen=True)
class Config:
    model: Literal[
        "fasterrcnn_resnet18_fpn",
        "fasterrcnn_resnet50_fpn",
        "maskrcnn_resnet18_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
    ] = "fasterrcnn_resnet18_fpn"
    size: tuple[int, int] = (224, 224)
    """Of the pictures, h and w."""
    batch_size: int = 2
    repeats: int = 4
    """Blocks of each side."""
    seconds: float = 4.0
    """About how long a block takes; at least one step."""
    train: bool = True
    """Whether train steps are timed, or evaluation alone."""
    torch_python: Path | None = None
    """A Python that has PyTorch and torchvision; by default this one, or else .venv-parity's."""
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    json: Path | None = None
    """Write the raw numbers to this file."""


def sampling_of(model: str) -> Sampling:
    return Sampling(num_rois=128) if "resnet18" in model else Sampling()


def make_batches(config: Config) -> dict[str, np.ndarray]:
    """Four batches of made-up scenes; an object's mask is the ellipse in its box."""
    batches = made_up_batches(config.seed, 4, config.batch_size, max(config.size))
    h, w = config.size
    batches["image"] = batches["image"][:, :, :h, :w]
    batches["boxes"] = np.minimum(batches["boxes"], np.array([w, h, w, h], np.float32))
    sides = batches["boxes"][..., 2:] - batches["boxes"][..., :2]
    batches["box_valid"] &= (sides > 1).all(axis=-1)
    if config.model.startswith("maskrcnn"):
        x1, y1, x2, y2 = np.moveaxis(batches["boxes"], -1, 0)[..., None, None]
        x, y = np.arange(w) + 0.5, np.arange(h)[:, None] + 0.5
        across = (x - (x1 + x2) / 2) / np.maximum(x2 - x1, 1)
        down = (y - (y1 + y2) / 2) / np.maximum(y2 - y1, 1)
        batches["masks"] = across**2 + down**2 < 0.25
    return batches


class Workload:
    """Our side: the network, its optimiser and the batches, on the device."""

    def __init__(self, config: Config, batches: dict[str, np.ndarray]):
        self.name, self.size = config.model, config.size
        self.options = {**NETWORKS[self.name], "num_classes": NUM_CLASSES}
        dtype = jnp.float32 if config.device == "cpu" else jnp.bfloat16
        model = get_model(self.name, **self.options, dtype=dtype)
        drawn = init_variables(model, jax.random.key(config.seed), (64, 64, 3))
        self.start = jax.device_get(drawn)
        tx = adamw(RATE, weight_decay=WEIGHT_DECAY)
        family = self.name.partition("_")[0]
        sampling = {} if family == "retinanet" else {"sampling": sampling_of(self.name)}
        loss_fn = LOSSES[family](model, mean=MEAN, std=STD, **sampling)
        self.step = make_train_step(loss_fn, tx, seed=config.seed)
        self.state = create_state(self.start, tx)
        self.detect = make_detector(model, mean=MEAN, std=STD, score_threshold=SCORE_THRESHOLD)
        size = np.tile(np.array(config.size, np.int32), (*batches["labels"].shape[:2], 1))
        arrays = {**batches, "size": size}
        self.batches = [
            jax.device_put({name: array[i] for name, array in arrays.items()})
            for i in range(len(size))
        ]

    def paste(self, found: PaddedInstances) -> None:
        """Brings every mask into its picture, as torchvision's evaluation does."""
        for masks, boxes, valid in zip(found.masks, found.boxes, found.valid, strict=True):
            paste_masks(masks[valid], boxes[valid], self.size, threshold=None)

    def seconds(self, kind: str, number: int) -> float:
        since = time.perf_counter()
        for i in range(number):
            batch = self.batches[i % len(self.batches)]
            if kind == "train":
                self.state, result = self.step(self.state, batch)
            else:
                result = self.detect(self.state.variables, batch["image"], batch["size"])
                if isinstance(result, PaddedInstances):
                    self.paste(jax.device_get(result))
        jax.block_until_ready((result, self.state.params))
        return time.perf_counter() - since


def torch_options(config: Config, ours: Workload) -> dict[str, Any]:
    """Returns what the PyTorch process builds its network of, and how it trains it."""
    sampling = sampling_of(config.model)
    return {
        **ours.options,
        "model": config.model,
        "size": config.size,
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "seed": config.seed,
        "num_anchors": sampling.num_anchors,
        "num_rois": sampling.num_rois,
        "score_threshold": SCORE_THRESHOLD,
        "iou_threshold": 0.5,
        "max_detections": 300 if config.model.startswith("retinanet") else 100,
        "optimizer": "adamw",
        "weight_decay": WEIGHT_DECAY,
    }


def time_blocks(
    config: Config, ours: Workload, torch: TorchProcess | None, file: Path
) -> dict[str, dict[str, list[float]]]:
    """Seconds a step of both sides, block by block, of evaluation and of training.

    PyTorch's side has its batches from `file`.
    """
    results = {}
    for kind in ("eval", "train")[: 1 + config.train]:
        sides = {"jaxvision": lambda n, kind=kind: ours.seconds(kind, n)}
        if torch is not None:
            told = {"batches": str(file)}
            sides["torchvision"] = lambda n, told=told, kind=kind: torch.request(
                **told, **{kind: n}
            )["seconds"]
        steps = {}
        for side, run in sides.items():
            run(1)  # compiles
            steps[side] = max(1, round(config.seconds / run(1)))
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(config.repeats):
            for side, run in sides.items():
                seconds[side].append(run(steps[side]) / steps[side])
        results[kind] = seconds
    return results


def print_times(config: Config, results: dict[str, dict[str, list[float]]]) -> None:
    print(
        f"{config.model}, batches of {config.batch_size} at {config.size[0]} x "
        f"{config.size[1]}: median (lowest to highest) ms a picture"
    )
    for kind, seconds in results.items():
        each = 1000 / config.batch_size
        parts = [f"{side} {spread([each * s for s in values])}" for side, values in seconds.items()]
        if "torchvision" in seconds:
            pairs = zip(seconds["jaxvision"], seconds["torchvision"], strict=True)
            parts.append(f"jaxvision / torchvision {spread([a / b for a, b in pairs])}")
        print(f"  {kind:5}  " + "   ".join(parts))


def main(config: Config) -> dict[str, Any]:
    if min(config.repeats, config.batch_size, *config.size) < 1 or config.seconds <= 0:
        raise UserError("--batch-size, --repeats and --size must be at least 1, --seconds above 0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python, torch = find_torch_python(config.torch_python), None
        if python is not None:
            torch = start_torch(python, "torch_detectors.py", folder, "--device", config.device)
        theirs = torch.facts if torch else "torchvision: not installed (give --torch-python)"
        device = jax.devices()[0].device_kind
        print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, {device}")
        print(f"jax {jax.__version__}; {theirs}")
        if torch is not None and not torch.facts["compiled"]:
            print("torchvision's operators are not compiled here: others stand in for them")
        try:
            batches = make_batches(config)
            ours = Workload(config, batches)
            np.savez(folder / "weights.npz", **to_torch(ours.name, ours.start, **ours.options))
            np.savez(folder / "batches.npz", **batches)
            options = json.dumps(torch_options(config, ours))
            (folder / "options.json").write_text(options, encoding="utf-8")
            seconds = time_blocks(config, ours, torch, folder / "batches.npz")
        finally:
            if torch is not None:
                torch.close()
    result = {"device": device, "torchvision": theirs, "seconds_per_step": seconds}
    print_times(config, result["seconds_per_step"])
    if config.json is not None:
        config.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        try:
            main(tyro.cli(Config, description=__doc__))
        except ChildProcessError as error:
            raise UserError(str(error)) from error
