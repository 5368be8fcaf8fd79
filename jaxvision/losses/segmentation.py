"""Cross-entropy of every pixel, and the segmentation task built on it."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from jaxvision.losses.classification import cross_entropy
from jaxvision.losses.forward import forward
from jaxvision.metrics import accuracy
from jaxvision.metrics.segmentation import IGNORED
from jaxvision.types import Array, Batch, LossFn, PerChannel


def pixel_cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b h w"],
    valid: Bool[Array, " b"] | None = None,
    ignore_label: int = IGNORED,
) -> Float[Array, ""]:
    """Returns the mean over pixels of -log softmax(logits)[label]: torch's, with `ignore_index`.

    Pixels whose label is `ignore_label`, and all of a padded picture (`valid` False), add nothing
    to loss or gradient, even where they hold NaN. With no pixel left the loss is 0.

    >>> labels = jnp.array([[[0, 255]]])
    >>> round(float(pixel_cross_entropy(jnp.zeros((1, 1, 2, 4)), labels)), 4)
    1.3863
    """
    return cross_entropy(*_by_pixel(logits, labels, valid, ignore_label))


def segmentation_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    ignore_label: int = IGNORED,
    aux_weight: float = 0.5,
) -> LossFn:
    """Returns the segmentation task's `loss_fn(params, batch_stats, batch, key, train=True)`.

    The batch holds `image` [b, h, w, c], uint8 or float in [0, 1], `label` int [b, h, w], where 0
    is the background, and, where it is padded, `valid` bool [b]. The model returns logits
    {"out": [b, h, w, k]}, and perhaps "aux", whose loss is added with `aux_weight`. The metrics are
    `loss`, of "out" alone, and `pixel_accuracy`, the share of pixels that are right; both are means
    over all of the batch's pixels that are not ignored.
    """

    def loss_fn(params, batch_stats, batch: Batch, key, train: bool = True):
        outputs, batch_stats = forward(
            model, params, batch_stats, batch, key, train=train, mean=mean, std=std
        )
        labels, valid = jnp.asarray(batch["label"]), batch.get("valid")
        pixels = _by_pixel(outputs["out"], labels, valid, ignore_label)
        loss = cross_entropy(*pixels)
        metrics = {"loss": loss, "pixel_accuracy": accuracy(*pixels)}
        if "aux" in outputs and aux_weight:
            aux_loss = pixel_cross_entropy(outputs["aux"], labels, valid, ignore_label)
            loss = loss + aux_weight * aux_loss
        return loss, (batch_stats, metrics)

    return loss_fn


def _by_pixel(logits, labels, valid, ignore_label):
    """Returns (logits [n, k], labels [n], counted [n]) of all pixels of all pictures."""
    counted = labels != ignore_label
    if valid is not None:
        counted &= jnp.asarray(valid)[:, None, None]
    labels = labels.astype(jnp.int32)  # uint8 would be too narrow to index with
    return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), counted.reshape(-1)
