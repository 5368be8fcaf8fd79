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
from jaxvision.metrics.coco import CocoScores, coco_scores
from jaxvision.metrics.detection import AveragePrecision, detection_average_precision
from jaxvision.metrics.errors import (
    ERROR_KINDS,
    SIMILAR_CLASSES,
    ErrorBreakdown,
    detection_confusion,
    error_breakdown,
)
from jaxvision.metrics.proposals import ProposalScores, proposal_scores
from jaxvision.metrics.segmentation import (
    SegmentationScores,
    boundary_accuracy,
    boundary_band,
    segmentation_confusion,
    segmentation_scores,
)

__all__ = [
    "ERROR_KINDS",
    "SIMILAR_CLASSES",
    "AveragePrecision",
    "ClassScores",
    "CocoScores",
    "ErrorBreakdown",
    "ProposalScores",
    "SegmentationScores",
    "accuracy",
    "boundary_accuracy",
    "boundary_band",
    "coco_scores",
    "confusion_matrix",
    "detection_average_precision",
    "detection_confusion",
    "error_breakdown",
    "most_confident_errors",
    "most_confused_pairs",
    "per_class_scores",
    "proposal_scores",
    "segmentation_confusion",
    "segmentation_scores",
    "top_k_accuracy",
]
