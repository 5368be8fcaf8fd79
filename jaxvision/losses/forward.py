"""What every task's loss function does first: the network's outputs for a batch."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.ops import normalize_images, valid_rows
from jaxvision.types import Batch


def forward(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    key: jax.Array | None,
    *,
    train: bool,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> tuple[Any, Any]:
    """Returns `(outputs, batch_stats)` of the batch's pictures, normalised to `(x - mean) / std`.

    In training the statistics are new ones, to which padded examples (`valid` False) add nothing,
    and `key` drives dropout; otherwise it may be None. A padded picture is
    black, whatever it holds.
    """
    images = normalize_images(jnp.asarray(batch["image"]), mean, std)
    valid = batch.get("valid")
    if valid is not None:
        images = jnp.where(jnp.asarray(valid)[:, None, None, None], images, 0.0)
    variables = {"params": params, "batch_stats": batch_stats}
    if not train:
        return model.apply(variables, images, train=False), batch_stats
    with valid_rows(valid):  # or BatchNorm would see the padding
        outputs, updated = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
    return outputs, updated.get("batch_stats", batch_stats)
