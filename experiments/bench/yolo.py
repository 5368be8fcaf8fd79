"""Compares YOLO v1 (`yolov1_tiny`) with the same in plain PyTorch: first the loss, then the time.

    python experiments/bench/yolo.py --torch-python .venv-parity/bin/python

Both sides start from the same weights and train on the same batches of made-up scenes with SGD. In
the first steps each of the five terms of the loss must be the same within 1e-4; then the two take
turns, block by block, while the other waits without using the CPU, and what counts is the ratio of
neighbouring blocks. A train step takes bytes to updated weights, an evaluation bytes to outputs.

On the CPU both compare the losses in float64, because in float32 rounding flips which box is
responsible for what, and the paths part; the time is that of float32, PyTorch in channels_last. On
a GPU (`--device cuda`, with a jax for CUDA) both compute in bfloat16, PyTorch by autocast and
torch.compile, and how far the losses are apart is only printed. Nothing but jax, flax, optax and
NumPy is imported on this side.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from torch_loop import TorchProcess

from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.losses import yolov1_loss
from jaxvision.models import get_model, init_variables
from jaxvision.ops import normalize_images

HERE = Path(__file__).resolve().parent
MEAN, STD, CLASSES, MAX_OBJECTS = 0.5, 0.25, 10, 8
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 2e-3, 0.9, 5e-4
TERMS = ("center_loss", "size_loss", "object_loss", "no_object_loss", "class_loss")
CLASS_LOSSES = ("squared_error", "cross_entropy")
TOLERANCE = 1e-4
"""Of each term, relative to the whole loss or 1, whichever is more."""
DISTURBED = 1.5
"""Slowest over fastest block of one side, from which on the ratios mean little."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--check-steps", type=int, default=50, help="in which the loss is compared")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long a block takes")
    parser.add_argument("--class-loss", choices=CLASS_LOSSES, default=CLASS_LOSSES[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--torch-python", type=Path, help="a Python with PyTorch; this one, or .venv-parity's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the raw numbers to this file")
    return parser.parse_args(arguments)


def made_up_batches(seed: int, count: int, batch_size: int, size: int) -> dict[str, np.ndarray]:
    """Scenes of coloured rectangles, whose colour is their class, on noise; some are empty."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (CLASSES, 3))
    shape = (count, batch_size)
    image = rng.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8) // 4 + 96
    boxes = np.zeros((*shape, MAX_OBJECTS, 4), np.float32)
    labels = rng.integers(0, CLASSES, (*shape, MAX_OBJECTS)).astype(np.int32)
    box_valid = np.arange(MAX_OBJECTS) < rng.integers(0, MAX_OBJECTS + 1, shape)[..., None]
    for i, b, j in zip(*np.nonzero(box_valid), strict=True):
        x1, y1 = rng.uniform(0, 0.8 * size, 2)
        x2, y2 = np.minimum([x1, y1] + rng.uniform(0.1, 0.5, 2) * size, size)
        boxes[i, b, j] = x1, y1, x2, y2
        image[i, b, int(y1) : int(y2), int(x1) : int(x2)] = colors[labels[i, b, j]]
    return {"image": image, "boxes": boxes, "labels": labels, "box_valid": box_valid}


def torch_weights(variables: Any) -> dict[str, np.ndarray]:
    """The variables under torch's names, kernels as OIHW."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    weights = {}
    for path, leaf in jax.tree.leaves_with_path(dict(variables)):
        _, *modules, name = (key.key for key in path)
        array = np.asarray(leaf, np.int64 if name == "num_batches_tracked" else None)
        weights[".".join([*modules, names.get(name, name)])] = np.array(
            array.transpose(3, 2, 0, 1) if name == "kernel" else array, order="C"
        )
    return weights


class Workload:
    """Our side: the network, its optimiser and the batches, on the device."""

    def __init__(
        self,
        batches: dict[str, np.ndarray],
        seed: int,
        class_loss: str,
        dtype: Any,
        start: Any = None,
    ):
        model = get_model("yolov1_tiny", num_classes=CLASSES, dtype=dtype)
        if start is None:
            size = batches["image"].shape[2:]
            start = jax.device_get(init_variables(model, jax.random.key(seed), size))
        self.start = variables = start
        if dtype == jnp.float64:
            variables = jax.tree.map(lambda x: x.astype(dtype) if x.ndim else x, variables)
            batches = {**batches, "image": batches["image"].astype(np.float64) / 255}
            batches["boxes"] = batches["boxes"].astype(np.float64)
        self.params, self.batch_stats = variables["params"], variables["batch_stats"]
        # As jaxvision.train.optim.sgd and make_train_step, which import more than there may be.
        tx = optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
        )
        self.opt_state = jax.jit(tx.init)(self.params)
        self.batches = [
            jax.device_put({name: array[i] for name, array in batches.items()})
            for i in range(len(batches["image"]))
        ]
        loss_fn = yolov1_loss(model, mean=MEAN, std=STD, class_loss=class_loss)

        key = jax.random.key(seed)  # for dropout, of which there is none

        def step(params, batch_stats, opt_state, batch):
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (_, (batch_stats, metrics)), grads = grad_fn(params, batch_stats, batch, key)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return params, batch_stats, opt_state, jnp.stack([metrics[term] for term in TERMS])

        def predict(params, batch_stats, images):
            images = normalize_images(images, MEAN, STD)
            variables = {"params": params, "batch_stats": batch_stats}
            return model.apply(variables, images, train=False)

        self._step = jax.jit(step, donate_argnums=(0, 1, 2))
        self._predict = jax.jit(predict)
        self._count = 0

    def train_step(self) -> jax.Array:
        state = (self.params, self.batch_stats, self.opt_state)
        self.params, self.batch_stats, self.opt_state, terms = self._step(*state, self._next())
        return terms

    def losses(self, number: int) -> np.ndarray:
        return np.array([np.asarray(self.train_step()) for _ in range(number)])

    def seconds(self, kind: str, number: int) -> float:
        since = time.perf_counter()
        for _ in range(number):
            if kind == "train":
                result = self.train_step()
            else:
                result = self._predict(self.params, self.batch_stats, self._next()["image"])
        jax.block_until_ready((result, self.params))
        return time.perf_counter() - since

    def _next(self) -> dict[str, jax.Array]:
        batch = self.batches[self._count % len(self.batches)]
        self._count += 1
        return batch


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of any term [steps, 5], relative to its step's whole loss where that is above 1."""
    scale = np.maximum(theirs.sum(axis=1, keepdims=True), 1)
    return float((np.abs(ours - theirs) / scale).max())


def start_torch(options: argparse.Namespace, folder: Path) -> TorchProcess | None:
    python = options.torch_python
    if python is None:
        parity = HERE.parents[1] / ".venv-parity" / "bin" / "python"
        python = Path(sys.executable) if importlib.util.find_spec("torch") else parity
        if not python.is_file():
            return None
    elif not python.is_file():
        raise UserError(f"--torch-python {python}: expected a Python interpreter, got no file")
    command = [str(python), str(HERE / "torch_yolo.py"), str(folder), "--device", options.device]
    process = TorchProcess([*command, "--class-loss", options.class_loss])
    if "missing" in process.facts:
        process.close()
        raise UserError(f"{python}: expected a Python with PyTorch: {process.facts['missing']}")
    return process


def time_blocks(
    options: argparse.Namespace, ours: Workload, torch: TorchProcess | None
) -> dict[str, dict[str, list[float]]]:
    """Seconds a step of both sides, block by block, of training and of evaluation."""
    results = {}
    for kind in ("train", "eval"):
        sides = {"jaxvision": lambda n, kind=kind: ours.seconds(kind, n)}
        if torch is not None:
            sides["pytorch"] = lambda n, kind=kind: torch.request(**{kind: n})["seconds"]
        steps = {}
        for side, run in sides.items():
            run(2)  # compiles
            steps[side] = max(1, round(options.seconds / (run(2) / 2)))
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, run in sides.items():
                seconds[side].append(run(steps[side]) / steps[side])
        results[kind] = seconds
    return results


def print_table(options: argparse.Namespace, results: dict[str, dict[str, list[float]]]) -> None:
    print(
        f"Batches of {options.batch_size} at {options.size}: median (lowest to highest) ms a step"
    )
    for kind, seconds in results.items():
        parts = [f"{side} {spread([1000 * s for s in seconds[side]])}" for side in sorted(seconds)]
        if "pytorch" in seconds:
            pairs = zip(seconds["jaxvision"], seconds["pytorch"], strict=True)
            parts.append(f"jaxvision / PyTorch {spread([a / b for a, b in pairs])}")
        print(f"  {kind:5}  " + "   ".join(parts))
    blocks = [values for seconds in results.values() for values in seconds.values()]
    if any(max(values) > DISTURBED * min(values) for values in blocks):
        print("NOT A FAIR COMPARISON: other programs were using this machine")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(options: argparse.Namespace) -> dict[str, Any]:
    if min(options.repeats, options.batch_size, options.check_steps) < 1 or options.seconds <= 0:
        raise UserError(
            "--batch-size, --repeats and --check-steps must be at least 1, --seconds above 0"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch = start_torch(options, folder)
        theirs = torch.facts if torch else "PyTorch: not installed (give --torch-python)"
        device = jax.devices()[0].device_kind
        print(
            f"{time.strftime('%Y-%m-%d %H:%M')}, {os.cpu_count()} cores; jax {jax.__version__} on"
        )
        print(f"{device}; {theirs}")
        try:
            batches = made_up_batches(options.seed, 8, options.batch_size, options.size)
            dtype = jnp.float32 if options.device == "cpu" else jnp.bfloat16
            ours, result = Workload(batches, options.seed, options.class_loss, dtype), {}
            np.savez(folder / "weights.npz", **torch_weights(ours.start))
            np.savez(folder / "batches.npz", **batches)
            if torch is not None:
                result = compare(options, batches, torch, ours.start)
            results = time_blocks(options, ours, torch)
        finally:
            if torch is not None:
                torch.close()
    print_table(options, results)
    result = {**result, "device": device, "pytorch": theirs, "seconds_per_step": results}
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def compare(
    options: argparse.Namespace, batches: dict[str, np.ndarray], torch: TorchProcess, start: Any
) -> dict[str, Any]:
    with jax.enable_x64(options.device == "cpu"):
        dtype = jnp.float64 if options.device == "cpu" else jnp.bfloat16
        ours = Workload(batches, options.seed, options.class_loss, dtype, start)
        losses = ours.losses(options.check_steps)
    theirs = np.array(torch.request(losses=options.check_steps)["losses"])
    difference = largest_difference(losses, theirs)
    first, last = (f"{total:.3f}" for total in losses.sum(axis=1)[[0, -1]])
    same = difference <= TOLERANCE
    print(
        f"loss {first} to {last} in {options.check_steps} steps; no term differs by more than "
        f"{difference:.1e}: {'the same' if same else 'NOT THE SAME'}"
    )
    if not same and options.device == "cpu":  # bfloat16 there is not float32
        raise UserError(f"expected the same losses within {TOLERANCE:g}, got {difference:.1e}")
    return {"largest_difference": difference, "losses": losses.tolist(), "theirs": theirs.tolist()}


if __name__ == "__main__":
    with exit_on_user_error():
        try:
            main(parse_arguments())
        except ChildProcessError as error:
            raise UserError(str(error)) from error
