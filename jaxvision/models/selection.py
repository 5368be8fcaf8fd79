"""Which of a detector's boxes count as found: what each kind of network is known for."""

from dataclasses import dataclass, replace

import flax.linen as nn

from jaxvision.models.fcos import FCOS
from jaxvision.models.rcnn import RCNN
from jaxvision.models.retinanet import RetinaNet
from jaxvision.models.ssd import SSD


@dataclass(frozen=True)
class Selection:
    """Which of a detector's boxes count as found: see `select_detections`."""

    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100


OWN = {
    FCOS: Selection(score_threshold=0.2, iou_threshold=0.6),
    RCNN: Selection(iou_threshold=0.3),
    RetinaNet: Selection(max_detections=300),
    SSD: Selection(score_threshold=0.01, iou_threshold=0.45, max_detections=200),
}
"""Torchvision's, and of R-CNN its author's, where they are not those of Faster R-CNN."""
SSDLITE = Selection(score_threshold=0.001, iou_threshold=0.55, max_detections=300)


def selection_of(
    model: nn.Module,
    *,
    score_threshold: int | float | None = None,
    iou_threshold: int | float | None = None,
    max_detections: int | None = None,
) -> Selection:
    """Returns what is given, and for what is None the detector's own.

    >>> from jaxvision.models import get_model
    >>> selection_of(get_model("ssd300_vgg16"), score_threshold=0.3)
    Selection(score_threshold=0.3, iou_threshold=0.45, max_detections=200)
    """
    own = OWN.get(type(model), Selection())
    if isinstance(model, SSD) and model.head.lite_norm is not None:
        own = SSDLITE
    given = {
        "score_threshold": None if score_threshold is None else float(score_threshold),
        "iou_threshold": None if iou_threshold is None else float(iou_threshold),
        "max_detections": max_detections,
    }
    return replace(own, **{name: value for name, value in given.items() if value is not None})
