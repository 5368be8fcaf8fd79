"""Loss functions, and for each task the `loss_fn` that a train step calls."""

from jaxvision.losses.classification import classification_loss, cross_entropy

__all__ = ["classification_loss", "cross_entropy"]
