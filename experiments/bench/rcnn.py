"""Compares Faster R-CNN with torchvision's: the time of both, and what both learn.

    python experiments/bench/rcnn.py --torch-python .venv-parity/bin/python        # resnet18, 224
    python experiments/bench/rcnn.py --backbone resnet50 --size 800 1066 --batch-size 1
    python experiments/bench/rcnn.py --size 128 128 --batch-size 8 --train-scenes 60000

Both sides have the same network, weights and made-up scenes. They take turns, block by block, while
the other waits, and what counts is the ratio of neighbouring blocks. A train step takes bytes to
updated weights, an evaluation bytes to detections. resnet18 is the slim one, with a pyramid of 64
channels and small anchors; resnet50 torchvision's fasterrcnn_resnet50_fpn with its frozen batch
normalisation. Beside a CPU-only PyTorch torchvision's compiled operators do not load, and its
RoIAlign in Python and a plain non-maximum suppression stand in for them, which is said.

With `--train-scenes` both are trained besides, from the same weights on the same batches of
garment_scenes, mirrored and scaled, by AdamW with the same rates, and found by their moving
averages; each samples its own anchors and RoIs. The mAP of both on the test scenes is printed. On a
GPU (`--device cuda`, with a jax for CUDA) both compute in bfloat16.
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
from classifier import find_torch_python
from torch_loop import TorchProcess
from torch_rcnn import MEAN, STD
from yolo import made_up_batches, spread

from jaxvision.data import (
    DetectionBatches,
    compose,
    letterbox,
    load_detection,
    random_flip,
    scale_jitter,
)
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import faster_rcnn_loss
from jaxvision.losses.rcnn import Sampling
from jaxvision.metrics.detection import detection_average_precision
from jaxvision.models import get_model
from jaxvision.models.detection import make_detector
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import adamw, cosine_lr, warmup
from jaxvision.train.run import enable_compilation_cache
from jaxvision.weights import to_torch

HERE = Path(__file__).resolve().parent
NUM_CLASSES = 11
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {
        "frozen_norm": False,
        "fpn_features": 64,
        "representation_size": 256,
        "anchor_sizes": (16, 32, 64, 96),
        "pre_nms_top_n": (500, 500),
        "post_nms_top_n": (200, 200),
    },
    "resnet50": {
        "frozen_norm": True,
        "fpn_features": 256,
        "representation_size": 1024,
        "anchor_sizes": (32, 64, 128, 256, 512),
        "pre_nms_top_n": (2000, 1000),
        "post_nms_top_n": (2000, 1000),
    },
}
SAMPLING = {"resnet18": Sampling(num_rois=128), "resnet50": Sampling()}
WEIGHT_DECAY, EMA_DECAY, SCORE_THRESHOLD = 0.05, 0.998, 0.005


@dataclass(frozen=True)
class Config:
    backbone: Literal["resnet18", "resnet50"] = "resnet18"
    size: tuple[int, int] = (224, 224)
    """Of the pictures, h and w."""
    batch_size: int = 2
    repeats: int = 4
    """Blocks of each side."""
    seconds: float = 4.0
    """About how long a block takes; at least one step."""
    train_scenes: int = 0
    """Train both on so many scenes, with repetitions, and compare what they find."""
    num_train: int | None = None
    """Of garment_scenes, at most so many different ones; test scenes likewise."""
    num_test: int | None = None
    learning_rate: float = 1e-3
    garments: Literal["auto", "full", "embedded"] = "auto"
    source: Path | None = None
    data_dir: Path | None = None
    torch_python: Path | None = None
    """A Python that has PyTorch and torchvision; by default this one, or else .venv-parity's."""
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    json: Path | None = None
    """Write the raw numbers to this file."""


class Workload:
    """Our side: the network, its optimiser and the batches, on the device."""

    def __init__(self, config: Config, batches: dict[str, np.ndarray], rate: Any):
        self.options = {**NETWORKS[config.backbone], "num_classes": NUM_CLASSES}
        self.name = f"fasterrcnn_{config.backbone}_fpn"
        dtype = jnp.float32 if config.device == "cpu" else jnp.bfloat16
        model = get_model(self.name, **self.options, dtype=dtype)
        blank = jnp.zeros((1, 64, 64, 3), jnp.float32)
        self.start = jax.device_get(jax.jit(model.init)(jax.random.key(config.seed), blank))
        tx = adamw(rate, weight_decay=WEIGHT_DECAY)
        loss_fn = faster_rcnn_loss(model, mean=MEAN, std=STD, sampling=SAMPLING[config.backbone])
        self.step = make_train_step(loss_fn, tx, seed=config.seed, ema_decay=EMA_DECAY)
        self.state = create_state(self.start, tx, ema=True)
        options = {"score_threshold": SCORE_THRESHOLD, "iou_threshold": 0.5}
        self.detect = make_detector(model, mean=MEAN, std=STD, **options)
        size = np.tile(np.array(config.size, np.int32), (*batches["labels"].shape[:2], 1))
        count = len(size)
        arrays = {**batches, "size": size}
        self.batches = [
            jax.device_put({name: array[i] for name, array in arrays.items()}) for i in range(count)
        ]

    def seconds(self, kind: str, number: int) -> float:
        since = time.perf_counter()
        for i in range(number):
            batch = self.batches[i % len(self.batches)]
            if kind == "train":
                self.state, result = self.step(self.state, batch)
            else:
                result = self.detect(self.state.variables, batch["image"], batch["size"])
        jax.block_until_ready((result, self.state.params))
        return time.perf_counter() - since


def start_torch(config: Config, folder: Path) -> TorchProcess | None:
    python = find_torch_python(config.torch_python)
    if python is None:
        return None
    command = [str(python), str(HERE / "torch_rcnn.py"), str(folder), "--device", config.device]
    process = TorchProcess(command)
    if "missing" in process.facts:
        process.close()
        raise UserError(f"{python}: expected PyTorch and torchvision: {process.facts['missing']}")
    return process


def time_blocks(
    config: Config, ours: Workload, torch: TorchProcess | None
) -> dict[str, dict[str, list[float]]]:
    """Seconds a step of both sides, block by block, of evaluation and of training."""
    results = {}
    for kind in ("eval", "train"):
        sides = {"jaxvision": lambda n, kind=kind: ours.seconds(kind, n)}
        if torch is not None:
            sides["torchvision"] = lambda n, kind=kind: torch.request(**{kind: n})["seconds"]
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
        f"fasterrcnn_{config.backbone}_fpn, batches of {config.batch_size} at {config.size[0]} x "
        f"{config.size[1]}: median (lowest to highest) ms a picture"
    )
    for kind, seconds in results.items():
        each = 1000 / config.batch_size
        parts = [f"{side} {spread([each * s for s in values])}" for side, values in seconds.items()]
        if "torchvision" in seconds:
            pairs = zip(seconds["jaxvision"], seconds["torchvision"], strict=True)
            parts.append(f"jaxvision / torchvision {spread([a / b for a, b in pairs])}")
        print(f"  {kind:5}  " + "   ".join(parts))


# ----------------------------------------------------------------------------- what both learn
def train_both(
    config: Config, ours: Workload, torch: TorchProcess, rate: Any, folder: Path
) -> dict[str, Any]:
    """Trains both on the same batches; returns the mean losses of each tenth, and the mAPs."""
    counts = {"train": config.num_train, "val": 1, "test": config.num_test}
    splits = load_detection(
        "garment_scenes",
        data=config.garments,
        source=config.source,
        data_dir=config.data_dir,
        counts={name: n for name, n in counts.items() if n is not None},
    )
    batches = DetectionBatches(
        splits["train"],
        config.batch_size,
        seed=config.seed,
        transform=compose(random_flip(), scale_jitter(config.size, (0.8, 1.25), spread=True)),
        drop_last=True,
    )
    total, file = steps_of(config), folder / "batch.npz"
    losses: dict[str, list[float]] = {"jaxvision": [], "torchvision": []}
    ours.state = create_state(ours.start, adamw(rate, weight_decay=WEIGHT_DECAY), ema=True)
    for step in range(total):
        batch = batches(step)
        names = ("image", "boxes", "labels", "box_valid")
        np.savez(file, **{name: batch[name][None] for name in names})
        ours.state, metrics = ours.step(ours.state, batch)
        answer = torch.request(fit=str(file), rate=float(rate(step)))
        losses["jaxvision"].append(float(metrics["loss"]))
        losses["torchvision"].append(answer["loss"])
        if (step + 1) % max(1, total // 10) == 0:
            recent = [f"{side} {np.mean(x[-total // 10 :]):.3f}" for side, x in losses.items()]
            print(f"  {step + 1:,} of {total:,} steps, loss: {', '.join(recent)}", flush=True)
    test = splits["test"]
    found = {
        "jaxvision": found_by_us(config, ours, test),
        "torchvision": found_by_torch(config, torch, test, folder),
    }
    precisions = {
        side: float(detection_average_precision(each, test.objects, len(test.class_names)).mean)
        for side, each in found.items()
    }
    print(
        f"mAP@0.5 of {len(test):,} test scenes after {total * config.batch_size:,} scenes seen: "
        + ", ".join(f"{side} {value:.4f}" for side, value in precisions.items())
    )
    return {"losses": losses, "mAP50": precisions}


def steps_of(config: Config) -> int:
    return max(1, config.train_scenes // config.batch_size)


def test_batches(config: Config, dataset: Any) -> DetectionBatches:
    transform = letterbox(config.size, center=False)
    return DetectionBatches(
        dataset, min(8, len(dataset)), shuffle=False, transform=transform, drop_last=False
    )


def found_by_us(config: Config, ours: Workload, dataset: Any) -> list[dict[str, np.ndarray]]:
    batches, found = test_batches(config, dataset), []
    variables = ours.state.variables
    for step in range(batches.steps_per_epoch):
        batch = batches(step)
        here = jax.device_get(ours.detect(variables, batch["image"], batch["size"]))
        for boxes, scores, labels, valid in zip(*here, strict=True):
            found.append({"boxes": boxes[valid], "scores": scores[valid], "labels": labels[valid]})
    return in_pixels(config, found, dataset)


def found_by_torch(
    config: Config, torch: TorchProcess, dataset: Any, folder: Path
) -> list[dict[str, np.ndarray]]:
    batches, found = test_batches(config, dataset), []
    for step in range(batches.steps_per_epoch):
        np.savez(folder / "test.npz", image=batches(step)["image"][None])
        out = folder / "found.npz"
        torch.request(find=str(folder / "test.npz"), out=str(out))
        with np.load(out) as file:
            ends = np.cumsum(file["counts"])[:-1]
            parts = [np.split(file[name], ends) for name in ("boxes", "scores", "labels")]
        for boxes, scores, labels in zip(*parts, strict=True):
            found.append({"boxes": boxes, "scores": scores, "labels": labels.astype(int) - 1})
    return in_pixels(config, found, dataset)


def in_pixels(
    config: Config, found: list[dict[str, np.ndarray]], dataset: Any
) -> list[dict[str, np.ndarray]]:
    """Returns what was found in the data set's own pixels, and nothing of what filled up."""
    placement = letterbox(config.size, center=False).placement(*dataset.image(0).shape[:2])
    return [
        {**each, "boxes": placement.to_original(each["boxes"])} for each in found[: len(dataset)]
    ]


def main(config: Config) -> dict[str, Any]:
    if min(config.repeats, config.batch_size, *config.size) < 1 or config.seconds <= 0:
        raise UserError("--batch-size, --repeats and --size must be at least 1, --seconds above 0")
    total = steps_of(config)
    rate = warmup(cosine_lr(config.learning_rate, total_steps=total), steps=max(1, total // 20))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch = start_torch(config, folder)
        if torch is None and config.train_scenes:
            raise UserError("--train-scenes needs PyTorch: give --torch-python")
        theirs = torch.facts if torch else "torchvision: not installed (give --torch-python)"
        device = jax.devices()[0].device_kind
        print(f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores, {device}")
        print(f"jax {jax.__version__}; {theirs}")
        if torch is not None and not torch.facts["compiled"]:
            print("torchvision's operators are not compiled here: RoIAlign and NMS are Python's")
        try:
            square = max(config.size)
            batches = made_up_batches(config.seed, 4, config.batch_size, square)
            batches["image"] = batches["image"][:, :, : config.size[0], : config.size[1]]
            limit = np.array([config.size[1], config.size[0]] * 2, np.float32)
            batches["boxes"] = np.minimum(batches["boxes"], limit)
            sides = batches["boxes"][..., 2:] - batches["boxes"][..., :2]
            batches["box_valid"] &= (sides > 1).all(axis=-1)
            ours = Workload(config, batches, rate)
            np.savez(folder / "weights.npz", **to_torch(ours.name, ours.start, **ours.options))
            np.savez(folder / "batches.npz", **batches)
            sampling = SAMPLING[config.backbone]
            told = {"backbone": config.backbone, "size": config.size, "seed": config.seed}
            told |= {"num_anchors": sampling.num_anchors, "num_rois": sampling.num_rois}
            told |= {"weight_decay": WEIGHT_DECAY, "ema_decay": EMA_DECAY}
            told |= {"score_threshold": SCORE_THRESHOLD, **ours.options}
            (folder / "options.json").write_text(json.dumps(told), encoding="utf-8")
            result: dict[str, Any] = {"device": device, "torchvision": theirs}
            if config.train_scenes:  # before timing, which takes steps as well
                result |= train_both(config, ours, torch, rate, folder)
            result["seconds_per_step"] = time_blocks(config, ours, torch)
        finally:
            if torch is not None:
                torch.close()
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
