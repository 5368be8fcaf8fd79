"""What R-CNN learns from behind its network: regions' features, kept in files, and what they solve.

A file has the regions of some batches of pictures: `features` float16 [n, d] and their `targets`
int8 [n, k], as SVMs take them; and of the pairs that boxes are learnt from `cells` float16 [p, e],
`pair_labels` int32 [p] and `deltas` float32 [p, 4].
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.data.prepared import track
from jaxvision.errors import UserError, describe_os_error
from jaxvision.losses.regions import box_regression_targets, svm_targets
from jaxvision.models.rcnn import RCNN, describe_regions
from jaxvision.ops import normalize_images
from jaxvision.train.linear import Linear, fit_ridge, mine_svms
from jaxvision.types import Variables

BATCHES_A_FILE = 16
"""As many as a process that is killed computes again at most."""
NORM = 20.0
"""The mean length of a vector of features as the solvers see it, for which the authors chose the
SVMs' and the regression's penalties."""
POSITIVE_WEIGHT = 2.0
"""Of an object in the SVMs' loss, in the authors' code."""


def write_regions(
    folder: Path,
    model: RCNN,
    variables: Variables,
    batches: Any,
    *,
    mean: Any,
    std: Any,
) -> list[Path]:
    """Computes the regions of an epoch of `batches`, with proposals, where no file has them yet.

    Returns the files. `variables` may lack what is solved for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    describe = make_describe(model, mean=mean, std=std)
    variables = jax.device_put(variables)
    steps = batches.steps_per_epoch
    starts = range(0, steps, BATCHES_A_FILE)
    paths = [folder / f"{start:06d}.npz" for start in starts]
    todo = [(start, path) for start, path in zip(starts, paths, strict=True) if not path.exists()]
    for start, path in track(todo, "features of regions", len(todo)):
        rows = range(start, min(start + BATCHES_A_FILE, steps))
        parts = [chosen_rows(jax.device_get(describe(variables, batches(i)))) for i in rows]
        _write(path, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return paths


def make_describe(model: RCNN, *, mean: Any, std: Any) -> Callable[[Variables, Any], Any]:
    """Returns the jitted `(variables, batch) -> arrays` [b, n, …]: features and targets of the
    proposals and, behind them, of the objects' own boxes."""

    @jax.jit
    def describe(variables, batch):
        images = normalize_images(batch["image"], mean, std)
        here = batch.get("valid", jnp.ones(len(images), bool))[:, None]
        proposals, proposal_valid = batch["proposals"], batch["proposal_valid"] & here
        boxes, labels, box_valid = batch["boxes"], batch["labels"], batch["box_valid"] & here
        scenes = (proposals, proposal_valid, boxes, labels, box_valid)
        num_labels = model.num_classes - 1
        targets = jax.vmap(lambda *scene: svm_targets(*scene, num_labels=num_labels))(*scenes)
        pair_labels, deltas = jax.vmap(box_regression_targets)(*scenes)
        regions = jnp.concatenate([proposals, boxes], axis=1)
        valid = (targets != 0).any(axis=-1)
        is_pair = pair_labels >= 0
        wanted = valid.at[:, : proposals.shape[1]].max(is_pair)
        found = describe_regions(model, variables, images, batch["size"], regions, wanted)
        return {
            "features": found.features.astype(jnp.float16),
            "targets": targets.astype(jnp.int8),
            "cells": found.cells[:, : proposals.shape[1]].astype(jnp.float16),
            "pair_labels": pair_labels,
            "deltas": deltas,
        }

    return describe


def chosen_rows(described: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the rows of all pictures that SVMs and boxes learn from, one after another."""
    for_svms = (described["targets"] != 0).any(axis=-1)
    is_pair = described["pair_labels"] >= 0
    chosen = {name: described[name][for_svms] for name in ("features", "targets")}
    chosen |= {name: described[name][is_pair] for name in ("cells", "pair_labels", "deltas")}
    cells = chosen["cells"]
    chosen["cells"] = cells.reshape(len(cells), int(np.prod(cells.shape[1:])))
    return chosen


class Rows(Sequence):
    """The rows of files, read when they are asked for: (features * scale, targets) of each."""

    def __init__(self, paths: Sequence[Path], scale: float):
        self._paths, self._scale = paths, scale

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        with np.load(self._paths[index]) as file:
            features = file["features"].astype(np.float32) * self._scale
            return features, file["targets"].astype(np.int32)


class Solved(NamedTuple):
    """What is put behind the network, and figures of how it was found."""

    svms: Linear
    box_regressors: Linear
    figures: dict[str, Any]


def solve(
    paths: Sequence[Path],
    num_labels: int,
    *,
    c: float,
    max_rounds: int,
    box_penalty: float,
    seed: int,
    announce: Callable[[str], object] = print,
) -> Solved:
    """Solves for SVMs and box regressors on the regions that the files have."""
    scale = _scale(paths, "features")
    mined = mine_svms(
        Rows(paths, scale),
        c=c,
        positive_weight=POSITIVE_WEIGHT,
        max_rounds=max_rounds,
        seed=seed,
        announce=announce,
    )
    cells, labels, deltas = (
        np.concatenate([_read(path, name) for path in paths])
        for name in ("cells", "pair_labels", "deltas")
    )
    cell_scale = _scale(paths, "cells")
    lines = []
    for label in track(range(num_labels), "box regressors", num_labels):
        rows = labels == label
        x = cells[rows].astype(np.float32) * cell_scale
        lines.append(fit_ridge(x, deltas[rows], penalty=box_penalty))
    announce(f"boxes: regressed from {len(labels):,} regions")
    figures = {
        "svm_rows": list(mined.rows),
        "svms_converged": mined.converged,
        "box_pairs": len(labels),
    }
    return Solved(
        Linear(np.asarray(mined.svms.kernel) * scale, np.asarray(mined.svms.bias)),
        Linear(
            np.concatenate([line.kernel for line in lines], axis=1) * cell_scale,
            np.concatenate([line.bias for line in lines]),
        ),
        figures,
    )


def _scale(paths: Sequence[Path], name: str) -> float:
    """Returns the factor that brings the vectors' mean length to NORM; 1 where there are none."""
    total, count = 0.0, 0
    for path in paths:
        lengths = np.linalg.norm(_read(path, name).astype(np.float32), axis=1)
        total, count = total + float(lengths.sum()), count + len(lengths)
    return NORM * count / total if total else 1.0


def _read(path: Path, name: str) -> np.ndarray:
    with np.load(path) as file:
        return file[name]


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a file whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"cannot keep the regions in {path.parent}: {describe_os_error(error)}; free some "
            "space, or take fewer with --svm-pictures"
        ) from error
