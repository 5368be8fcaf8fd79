"""What every task's loss function does first: the network's outputs for a batch."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jaxvision.ops import normalize_images, valid_rows
from jaxvision.types import Array, Batch, PerChannel


def forward(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    key: jax.Array | None,
    *,
    train: bool,
    mean: PerChannel,
    std: PerChannel,
) -> tuple[Any, Any]:
    """Returns `(outputs, batch_stats)` of the batch's pictures, normalised to `(x - mean) / std`.

    In training the statistics are new ones, to which padded examples (`valid` False) add nothing,
    and `key` drives dropout; otherwise it may be None. A padded picture is
    black, whatever it holds.
    """
    images = normalized_pictures(batch, mean, std)
    rows = batch.get("valid")
    return call(model, params, batch_stats, key, images, train=train, rows=rows)


def normalized_pictures(batch: Batch, mean: PerChannel, std: PerChannel) -> Float[Array, "b h w c"]:
    """Returns the batch's pictures as `(x - mean) / std`; zeros where an example is padding."""
    images = normalize_images(jnp.asarray(batch["image"]), mean, std)
    valid = batch.get("valid")
    if valid is not None:
        images = jnp.where(jnp.asarray(valid)[:, None, None, None], images, 0.0)
    return images


def call(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    key: jax.Array | None,
    *args: Any,
    train: bool,
    rows: Bool[Array, " b"] | None = None,
    method: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:
    """Returns `(outputs, batch_stats)` of the model, or of one method, such as `model.decode`.

    In training the statistics are new ones, from those of the input's rows that `rows` names, by
    default all of them, and `key` drives dropout.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    if not train:
        return model.apply(variables, *args, train=False, method=method), batch_stats
    with valid_rows(rows):  # or BatchNorm would see the padding
        outputs, updated = model.apply(
            variables,
            *args,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            method=method,
        )
    return outputs, updated.get("batch_stats", batch_stats)
