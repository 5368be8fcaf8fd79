"""Saving and loading: VGG16's weights alone, and with the architecture, in three formats.

    python experiments/save_and_load.py                            # VGG16, random weights of seed 0
    python experiments/save_and_load.py --weights IMAGENET1K_V1    # torchvision's, downloaded
    python experiments/save_and_load.py --model resnet18 --options num_classes=10

VGG16 has 138,357,544 parameters: 553.4 MB as .pth and .safetensors, 512.2 MB as orbax, which
compresses. A save or a load took 2 to 7 s on two busy cores. Every format gives the same bits and
the same logits; the run ends with "All checks hold." after about two minutes, and needs 4 GB of
disk meanwhile.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tyro
from findings import Finding
from weight_files import (
    blueprint,
    digest,
    disk_bytes,
    known_options,
    load_exactly,
    make_picture,
    num_bytes,
    parse_options,
    predict,
    refused,
    same,
    ways,
    write_pickled_model,
)

from jaxvision.errors import UserError, describe_os_error, exit_on_user_error
from jaxvision.models import init_variables
from jaxvision.train.checkpoint import load_variables
from jaxvision.train.run import enable_compilation_cache
from jaxvision.weights import load_weights, read_torch
from jaxvision.weights.convert import template_leaves

CHILD = Path(__file__).with_name("save_and_load_devices.py")


@dataclass(frozen=True)
class Config:
    model: str = "vgg16"
    """Any model that has a torch counterpart: vgg11 to vgg19, resnet18, alexnet, ..."""
    options: tuple[str, ...] = ()
    """Options of the model as name=value, the value in JSON: hidden=32 widths=[4,4,8,8,8]."""
    weights: str | None = None
    """A .pth or .safetensors file, a URL or IMAGENET1K_V1; by default random, drawn with --seed."""
    other_model: str = "vgg13"
    """A model that the weights do not fit, to show what is said then."""
    picture_size: int = 224
    """Side of the picture on which logits are compared."""
    devices: int = 4
    """CPU devices of the second process, on which the weights are restored."""
    seed: int = 0
    run_dir: Path | None = None
    """An empty or new folder for the files, by default a temporary one."""
    keep: bool = False
    """Leave the files there."""


def main(config: Config) -> list[Finding]:
    options = parse_options(config.options)
    if config.devices < 2:
        raise UserError(f"expected --devices of at least 2, got {config.devices}")
    template_leaves(config.model, **options)  # refuses what has no torch counterpart, before work
    if config.other_model == config.model:
        raise UserError(f"expected --other-model to be another one than {config.model}")
    known_options(config.other_model)  # refuses an unknown name
    model, like = blueprint(config.model, options, config.picture_size)
    with folder(config, 7 * num_bytes(like)) as work:
        variables = start_weights(config, model, options)
        count = sum(x.size for x in jax.tree.leaves(variables["params"]))
        origin = config.weights or f"random weights of seed {config.seed}"
        print(f"{config.model}: {count:,} parameters, {origin}\nfiles in {work}\n")
        picture = make_picture(config.picture_size, config.seed)
        logits = np.asarray(predict(model, variables, picture))
        findings = []
        for make in (
            lambda: files(config, options, variables, logits, picture, work),
            lambda: train_flag(model, variables, picture),
            lambda: wrong_models(config, options, variables, work),
            lambda: other_devices(config, options, variables, logits, picture, work),
        ):
            findings.append(make())
            findings[-1].print()
        if config.keep:
            print(f"the files are kept in {work}")
    print("All checks hold.")
    return findings


def files(
    config: Config,
    options: dict[str, Any],
    variables: Any,
    logits: np.ndarray,
    picture: Any,
    work: Path,
) -> Finding:
    """Saves and loads in each way, and compares."""
    finding = Finding(
        "1. Weights only, and with the architecture",
        (
            "Weights only: whoever loads them builds the same model first. With the architecture: "
            "one call gives model and weights; a checkpoint's meta, or a safetensors file's "
            "metadata, names the model and its options. What torch.save(model) writes is "
            "neither: a pickled Python object, which loading would execute.",
            "Times are of one save and one load, to arrays on the device, of files that the "
            "system still holds in memory; a .pth and a .safetensors have torch's names and "
            "layout, so their times include the conversion.",
        ),
    )
    rows = []
    for way in ways(config.model, options, config.picture_size, variables):
        path = work / way.file
        since = time.perf_counter()
        way.save(path)
        saved = time.perf_counter() - since
        since = time.perf_counter()
        loaded_model, loaded = way.load(path)
        loaded = jax.block_until_ready(jax.device_put(loaded))
        seconds = time.perf_counter() - since
        size = disk_bytes(path)
        finding.check(f"{way.file}: every weight is the same, bit for bit", same(variables, loaded))
        again = np.asarray(predict(loaded_model, loaded, picture))
        finding.check(f"{way.file}: the same logits, bit for bit", np.array_equal(again, logits))
        rows.append((way.what, way.file, f"{size / 1e6:.1f}", f"{saved:.2f}", f"{seconds:.2f}"))
        finding.numbers[way.file] = {"bytes": size, "save": saved, "load": seconds}
    finding.table("Files", ("what", "file", "MB", "save, s", "load, s"), rows)
    pickled = work / "whole_model.pth"
    write_pickled_model(pickled)
    error = refused(lambda: read_torch(pickled)).removeprefix(f"{work}{os.sep}")
    finding.check(f"a file of torch.save(model) is refused: {error}", "state_dict" in error)
    return finding


def train_flag(model: nn.Module, variables: Any, picture: Any) -> Finding:
    """What PyTorch's forgotten model.eval() is here: a train=True that was left in."""
    finding = Finding(
        "2. Evaluating with train=True",
        (
            "PyTorch's loaded model is in training mode until model.eval(). Here nothing is kept: "
            "each call says it, and train=False is what get_model's networks do unless told. With "
            "train=True dropout drops other units in each call, and BatchNorm takes the batch's "
            "own statistics.",
        ),
    )
    calls = {
        "train=False": predict(model, variables, picture),
        "train=False, again": predict(model, variables, picture),
        "train=True": predict(model, variables, picture, key=jax.random.key(1)),
        "train=True, again": predict(model, variables, picture, key=jax.random.key(2)),
    }
    reference = np.asarray(calls["train=False"])
    spread = float(reference.std(axis=1).mean())
    rows, differences = [], {}
    for name, logits in calls.items():
        logits = np.asarray(logits)
        differences[name] = float(np.abs(logits - reference).max())
        rows.append((name, f"{differences[name] / spread:.3f}", int(logits[0].argmax())))
    finding.table(
        "The same picture: the largest difference to the first call, in standard deviations of the "
        "logits, and the class with the largest logit",
        ("call", "difference", "class"),
        rows,
    )
    finding.check(
        "with train=False two calls agree, bit for bit", not differences["train=False, again"]
    )
    if getattr(model, "dropout", 0):
        again = np.abs(np.asarray(calls["train=True"]) - np.asarray(calls["train=True, again"]))
        finding.check("with train=True two calls differ: dropout", again.max() > 0)
    finding.check("train=True gives other logits", differences["train=True"] > 1e-3 * spread)
    finding.numbers = {name: value / spread for name, value in differences.items()}
    return finding


def wrong_models(config: Config, options: dict[str, Any], variables: Any, work: Path) -> Finding:
    """Weights loaded into another model: an error that says what differs, and nothing loaded."""
    finding = Finding(
        "3. Weights that do not fit",
        (
            "Nothing is loaded in part: every array must be there, have its shape, and be used. "
            "The errors say what differs.",
        ),
    )
    classes = options.get("num_classes", 1000)
    fewer = {**options, "num_classes": 10 if classes != 10 else 11}
    shared = {k: v for k, v in options.items() if k in known_options(config.other_model)}
    cases = ((config.other_model, shared), (config.model, fewer))
    rows = []
    for name, chosen in cases:
        what = name + (f" with {chosen['num_classes']} classes" if name == config.model else "")
        _, like = blueprint(name, chosen, config.picture_size)
        for file, load in (
            ("weights.orbax", lambda path, like=like: load_variables(path, like)),
            ("weights.safetensors", lambda path, n=name, o=chosen: load_exactly(n, path, o)),
            ("weights.pth", lambda path, n=name, o=chosen: load_exactly(n, path, o)),
        ):
            error = refused(lambda load=load, file=file: load(work / file))
            lines = [line.strip() for line in error.replace(f"{work}{os.sep}", "").splitlines()]
            finding.check(f"{file} into {what} is refused", "fit the model" in lines[0])
            rows += [(what, file, lines[0])]
            rows += [("", "", " ".join(line.split())) for line in lines[1:3]]
            if len(lines) > 3:
                rows.append(("", "", f"({len(lines) - 3} lines more)"))
    finding.table(
        f"What is said of {config.model}'s weights", ("loaded into", "file", "error"), rows
    )
    new = load_weights(config.model, work / "weights.pth", **fewer)
    kept = sum(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(new), strict=True)
        if a.shape == b.shape
    )
    total = len(jax.tree.leaves(variables))
    finding.check(
        f"asked for with num_classes={fewer['num_classes']}, the head is fresh and the other "
        f"{kept} of {total} arrays are the file's",
        kept == total - 2,
    )
    return finding


def other_devices(
    config: Config,
    options: dict[str, Any],
    variables: Any,
    logits: np.ndarray,
    picture: Any,
    work: Path,
) -> Finding:
    """Saved on one device, restored on several by another process, saved there, restored here."""
    finding = Finding(
        "4. On another number of devices",
        (
            f"A second process with {config.devices} CPU devices restores what this one saved: "
            "each array as a copy on every device, and each cut into pieces, one a device. It "
            "saves the pieces, and this process restores them whole.",
        ),
    )
    flags = f"{os.environ.get('XLA_FLAGS', '')} "
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags}--xla_force_host_platform_device_count={config.devices}",
    }
    np.save(work / "logits.npy", logits)
    command = [sys.executable, str(CHILD), "--work", str(work), "--model", config.model]
    command += ["--picture-size", str(config.picture_size), "--seed", str(config.seed)]
    command += ["--options", *config.options] if config.options else []
    command += ["--digest", digest(variables)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise UserError(f"the process on {config.devices} devices failed:\n{child.stderr[-2000:]}")
    reports = json.loads((work / "devices.json").read_text())
    rows = []
    for report in reports:
        placed, total = report["placed"], num_bytes(variables)
        difference = f"{report['difference']:.1e}"
        share = f"{100 * report['bytes_per_device'] / total:.0f} %"
        rows.append((placed, report["devices"], share, difference))
        finding.check(f"{placed} on {report['devices']} devices: the same bits", report["same"])
        finding.check(
            f"{placed}: the logits are one device's, within 1e-4 of the largest", report["close"]
        )
        finding.check(
            f"{placed}: the arrays are where they were asked to be",
            report["devices"] == config.devices and report["placed_as_asked"],
        )
    finding.table(
        "Restored there",
        (
            "arrays",
            "devices",
            "of all bytes on each device",
            "largest difference of the logits, in the largest",
        ),
        rows,
    )
    model, like = blueprint(config.model, options, config.picture_size)
    back = load_variables(work / "from_devices.orbax", like)
    finding.check("saved there in pieces and restored here: the same bits", same(variables, back))
    again = np.asarray(predict(model, back, picture))
    finding.check("... and the same logits, bit for bit", np.array_equal(again, logits))
    finding.numbers = {report["placed"]: report for report in reports}
    return finding


def start_weights(config: Config, model: nn.Module, options: dict[str, Any]) -> Any:
    """Returns the variables to be saved, on the device."""
    if config.weights is not None:
        return jax.device_put(load_weights(config.model, config.weights, **options))
    side = config.picture_size
    return init_variables(model, jax.random.key(config.seed), (side, side, 3))


@contextmanager
def folder(config: Config, need: int) -> Iterator[Path]:
    """Gives an empty folder with room for `need` bytes, and empties it again unless --keep."""
    made = config.run_dir is None or not config.run_dir.exists()
    try:
        if config.run_dir is None:
            work = Path(tempfile.mkdtemp(prefix="save-and-load-"))
        else:
            work = config.run_dir
            work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise UserError(f"expected an empty or new folder, and {work} has files: give another")
        free = shutil.disk_usage(work).free
    except OSError as error:
        raise UserError(f"cannot write to {config.run_dir}: {describe_os_error(error)}") from error
    try:
        if free < need:
            raise UserError(
                f"expected {need / 1e9:.1f} GB of room in {work}, found {free / 1e9:.1f} GB: free "
                f"some, or give --run-dir on another disk"
            )
        yield work
    finally:
        if not config.keep:
            for path in list(work.iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if made:
                work.rmdir()


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        main(tyro.cli(Config, description=__doc__))
