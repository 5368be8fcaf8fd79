"""What a model is judged by: jnp functions for inside the jitted step, numpy for the rest."""

from jaxvision.metrics.classification import (
    ClassScores,
    accuracy,
    confusion_matrix,
    most_confident_errors,
    most_confused_pairs,
    per_class_scores,
    top_k_accuracy,
)

__all__ = [
    "ClassScores",
    "accuracy",
    "confusion_matrix",
    "most_confident_errors",
    "most_confused_pairs",
    "per_class_scores",
    "top_k_accuracy",
]
