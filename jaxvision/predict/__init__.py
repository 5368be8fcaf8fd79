"""A checkpoint, or published weights, to predictions on real pictures."""

from jaxvision.predict.predictor import Predictor
from jaxvision.predict.preparation import Picture
from jaxvision.predict.results import (
    Classification,
    Detections,
    Localization,
    Result,
    Segmentation,
)

__all__ = [
    "Classification",
    "Detections",
    "Localization",
    "Picture",
    "Predictor",
    "Result",
    "Segmentation",
]
