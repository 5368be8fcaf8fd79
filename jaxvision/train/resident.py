"""Data sets that live on the device: a step gathers its batch there, and nothing travels.

A step's batch is then one entry of a table of row numbers, which changes once an epoch. The same
values as `jaxvision.data.Batches` gives, so a run may switch between the two.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvision.train.step import auto_mesh
from jaxvision.types import Batch

RESIDENT_LIMIT = 1 << 30
"""Data sets of up to this many bytes are kept on the device by default."""


class ResidentData:
    """The arrays of `batches` on the device; `data(step)` goes into a step with `select`.

    `batches` is a `jaxvision.data.Batches` or `DetectionBatches` without host augmentation:
    something with `arrays()`, which its batches are gathered from by `padded_order(epoch)`.
    """

    def __init__(self, batches, mesh: Mesh | None = None):
        self._batches = batches
        mesh = auto_mesh(mesh)
        self._sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._arrays = jax.device_put(batches.arrays(), self._sharding)
        self._epoch = None
        self._order = None

    def __call__(self, step: int) -> dict[str, Any]:
        """Returns the arrays and the order of `step`'s epoch, for a step with `select`."""
        epoch = step // self._batches.steps_per_epoch
        if epoch != self._epoch:
            self._order = jax.device_put(self._batches.padded_order(epoch), self._sharding)
            self._epoch = epoch
        return {**self._arrays, "order": self._order}

    def epoch(self) -> Iterator[dict[str, Any]]:
        """Yields what an evaluation step with `select` takes, for each batch of the first epoch."""
        for step in range(self._batches.steps_per_epoch):
            yield {**self(step), "step": step}

    def select(self, data: dict[str, Any], step: jax.Array) -> Batch:
        """Returns the batch of `step`, inside jit: the same as `batches(step)` on the host."""
        size, steps = self._batches.batch_size, self._batches.steps_per_epoch
        first = (step % steps) * size
        rows = jax.lax.dynamic_slice(data["order"], (first,), (size,))
        batch = {name: data[name].at[rows].get(mode="clip") for name in self._arrays}
        if self._batches.has_padding:
            batch["valid"] = first + jnp.arange(size) < len(self._batches.dataset)
        return batch
