"""Cross-entropy, and the classification task built on it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from jaxvision.losses.forward import forward
from jaxvision.metrics import accuracy
from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array, Batch, LossFn, PerChannel


def cross_entropy(
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"] | Float[Array, "b k"],
    valid: Bool[Array, " b"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """torch's CrossEntropyLoss: the mean over valid examples of -log softmax(logits)[label].

    Labels are classes, or each class's share, as mixup and CutMix make them. With `label_smoothing`
    s the target is (1 - s) of that plus s / k for every class. A padded example (`valid` False)
    adds nothing to loss or gradient, even when it holds NaN; with no valid example at all the loss
    is 0.

    >>> loss = jax.jit(cross_entropy)(jnp.zeros((1, 10)), jnp.array([3]))
    >>> round(float(loss), 4)
    2.3026
    """
    if valid is None:
        valid = jnp.ones(labels.shape[:1], bool)
    logits = at_least_float32(logits)
    logits = jnp.where(valid[:, None], logits, 0.0)
    if labels.ndim == 2:
        shares = jnp.where(valid[:, None], labels, 0.0)
        losses = optax.softmax_cross_entropy(logits, shares)
    else:
        labels = jnp.where(valid, labels, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    return jnp.sum(losses, where=valid) / jnp.maximum(valid.sum(), 1)


def classification_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    label_smoothing: float = 0.0,
) -> LossFn:
    """Returns the classification task's `loss_fn(params, batch_stats, batch, key, train=True)`.

    The batch holds `image` [b, h, w, c], uint8 or float in [0, 1], `label` int [b] and, where it is
    padded, `valid` bool [b]; where it is mixed, `soft_label` float [b, k] is what the loss takes.
    Pictures are normalised to `(x - mean) / std` inside the function. The metrics are `loss` and
    `accuracy`.
    """

    def loss_fn(params, batch_stats, batch: Batch, key, train: bool = True):
        logits, batch_stats = forward(
            model, params, batch_stats, batch, key, train=train, mean=mean, std=std
        )
        valid = batch.get("valid")
        labels = jnp.asarray(batch["label"])
        targets = jnp.asarray(batch.get("soft_label", labels))
        loss = cross_entropy(logits, targets, valid, label_smoothing)
        metrics = {"loss": loss, "accuracy": accuracy(logits, labels, valid)}
        return loss, (batch_stats, metrics)

    return loss_fn
