"""What experiments/segmentation.py measures: scores of label maps, and what a network costs."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvision.data import ArrayDataset, Batches
from jaxvision.losses import segmentation_loss
from jaxvision.metrics.segmentation import (
    boundary_band,
    segmentation_confusion,
    segmentation_scores,
)
from jaxvision.ops import normalize_images
from jaxvision.train import TrainState, evaluate, make_eval_step, make_train_step
from jaxvision.train.resident import ResidentData
from jaxvision.types import Batch, LossFn

EVAL_BATCH = 50


def halved(dataset: ArrayDataset) -> ArrayDataset:
    """Returns the pictures at half their size, each pixel the mean of four, with maps to match.

    A pixel of a map becomes what most of the four are; of equally many, the first in reading order.
    """
    n, h, w, c = dataset.images.shape
    images = np.empty((n, h // 2, w // 2, c), np.uint8)
    labels = np.empty(images.shape[:3], np.uint8)
    for first in range(0, n, 500):  # the pictures may be in a file larger than the memory
        rows = slice(first, first + 500)
        block = np.asarray(dataset.images[rows]).reshape(-1, h // 2, 2, w // 2, 2, c)
        images[rows] = (block.sum(axis=(2, 4), dtype=np.uint16) + 2) // 4
        four = np.asarray(dataset.labels[rows]).reshape(-1, h // 2, 2, w // 2, 2)
        four = four.transpose(2, 4, 0, 1, 3).reshape(4, -1, h // 2, w // 2)
        votes = (four[:, None] == four[None]).sum(axis=1)
        chosen = votes.argmax(axis=0)
        labels[rows] = np.take_along_axis(four, chosen[None], axis=0)[0]
    return replace(dataset, images=images, labels=labels)


class Evaluation:
    """`state -> scores` on a data set that stays on the device: loss, mean IoU, accuracy, and the
    accuracy of pixels within `boundary` pixels of a boundary."""

    def __init__(
        self,
        model: nn.Module,
        dataset: ArrayDataset,
        mean: float,
        std: float,
        boundary: int,
    ):
        self.model, self.mean, self.std, self.dataset = model, mean, std, dataset
        self.band = boundary_band(dataset.labels, boundary)
        self._loss: Callable[[TrainState], dict[str, float]] | None = None

    def __call__(self, state: TrainState) -> dict[str, float]:
        if self._loss is None:
            self._loss = self._make_loss()
        maps = predicted_maps(self.model, state.variables, self.dataset, self.mean, self.std)
        return {"loss": self._loss(state)["loss"], **self.scores(maps)}

    def scores(self, maps: np.ndarray) -> dict[str, float]:
        """Returns the scores of predicted maps."""
        labels, k = self.dataset.labels, len(self.dataset.class_names)
        everywhere = segmentation_scores(segmentation_confusion(labels, maps, k))
        near = segmentation_scores(segmentation_confusion(labels, maps, k, self.band))
        return {
            "mean_iou": everywhere.mean_iou,
            "pixel_accuracy": everywhere.pixel_accuracy,
            "boundary_accuracy": near.pixel_accuracy,
        }

    def _make_loss(self) -> Callable[[TrainState], dict[str, float]]:
        loss_fn = segmentation_loss(self.model, mean=self.mean, std=self.std)
        data = ResidentData(eval_batches(self.dataset))
        eval_step = make_eval_step(loss_fn, select=data.select)
        return lambda state: evaluate(eval_step, state, data.epoch())


def eval_batches(dataset: ArrayDataset) -> Batches:
    return Batches(dataset, batch_size=min(EVAL_BATCH, len(dataset)), shuffle=False)


def predicted_maps(
    model: nn.Module, variables: Any, dataset: ArrayDataset, mean: float, std: float
) -> np.ndarray:
    """Returns the most probable class of every pixel of every picture, uint8 [n, h, w]."""
    batches = eval_batches(dataset)
    parts = [
        np.asarray(_most_probable(model, variables, batches(step)["image"], mean, std))
        for step in range(batches.steps_per_epoch)
    ]
    return np.concatenate(parts)[: len(dataset)]


@functools.partial(jax.jit, static_argnames=("model", "mean", "std"))
def _most_probable(
    model: nn.Module, variables: Any, images: jax.Array, mean: float, std: float
) -> jax.Array:
    logits = model.apply(variables, normalize_images(images, mean, std), train=False)["out"]
    return logits.argmax(axis=-1).astype(jnp.uint8)


def costs_of(
    model: nn.Module,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    variables: Any,
    batch: Batch,
) -> dict[str, int]:
    """Returns what a network costs, without running it: of `variables` only the shapes matter.

    `multiply_adds` of one picture forward, half of the floating-point operations that XLA counts
    in the program; `memory_bytes` that a training step needs for what it computes, besides the
    parameters, the optimiser's state and the batch; `parameters`.
    """
    image = jax.ShapeDtypeStruct((1, *batch["image"].shape[1:]), jnp.float32)
    forward = jax.jit(lambda variables, x: model.apply(variables, x, train=False)["out"])
    operations = forward.lower(variables, image).cost_analysis()["flops"]
    train_step = make_train_step(loss_fn, tx)

    def step(params, batch_stats, opt_state, batch):
        state, _ = train_step(TrainState(jnp.int32(0), params, batch_stats, opt_state), batch)
        return state.params, state.batch_stats, state.opt_state

    params = variables["params"]
    arguments = (params, variables["batch_stats"], jax.eval_shape(tx.init, params), batch)
    compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*arguments).compile()
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "multiply_adds": round(operations / 2),
        "memory_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }
