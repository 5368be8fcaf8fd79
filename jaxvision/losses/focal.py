"""Focal loss (arXiv:1708.02002): cross-entropy in which what is easy counts little."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxvision.ops.precision import at_least_float32
from jaxvision.types import Array


def sigmoid_focal_loss(
    logits: Float[Array, "*n"],
    targets: Float[Array, "*#n"],
    alpha: float | None = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*n"]:
    """Returns -alpha_t (1 - p_t)^gamma log(p_t) of each logit, for the caller to sum.

    p_t is the probability of what is true: the logit's sigmoid where the target is 1, one less it
    where the target is 0; alpha_t is `alpha` there and 1 - `alpha` here (equation 5), or 1 where
    `alpha` is None. With `gamma` 0 it is cross-entropy. Float32 or better, also of bfloat16 logits.
    Padding: set the logits to 0 first, and leave the result out.

    >>> logits, targets = jnp.array([0.0, 4.0, 4.0]), jnp.array([1.0, 1.0, 0.0])
    >>> [round(loss, 5) for loss in jax.jit(sigmoid_focal_loss)(logits, targets).tolist()]
    [0.04332, 0.0, 2.90618]
    """
    logits = jnp.asarray(logits)
    logits = at_least_float32(logits)
    p = jax.nn.sigmoid(logits)
    wrong = p * (1 - targets) + (1 - p) * targets
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    if gamma:
        # Where p_t rounds to 1, a power below 1 has no gradient.
        losses *= jnp.where(wrong > 0, jnp.where(wrong > 0, wrong, 1.0) ** gamma, 0.0)
    if alpha is None:
        return losses
    return (alpha * targets + (1 - alpha) * (1 - targets)) * losses
