"""Loss functions, and for each task the `loss_fn` that a train step calls."""

from jaxvision.losses.boxes import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    smooth_l1,
)
from jaxvision.losses.classification import classification_loss, cross_entropy
from jaxvision.losses.localization import (
    box_regression_loss,
    cell_cross_entropy,
    decode_picture_boxes,
    localization_loss,
    localization_metrics,
)
from jaxvision.losses.rcnn import (
    box_head_loss,
    faster_rcnn_loss,
    rpn_loss,
    sample_anchors,
    sample_rois,
)
from jaxvision.losses.segmentation import pixel_cross_entropy, segmentation_loss
from jaxvision.losses.yolov1 import yolov1_loss
from jaxvision.losses.yolox import yolox_loss, yolox_terms

__all__ = [
    "box_head_loss",
    "box_regression_loss",
    "cell_cross_entropy",
    "classification_loss",
    "complete_box_iou_loss",
    "cross_entropy",
    "decode_picture_boxes",
    "distance_box_iou_loss",
    "faster_rcnn_loss",
    "generalized_box_iou_loss",
    "localization_loss",
    "localization_metrics",
    "pixel_cross_entropy",
    "rpn_loss",
    "sample_anchors",
    "sample_rois",
    "segmentation_loss",
    "smooth_l1",
    "yolov1_loss",
    "yolox_loss",
    "yolox_terms",
]
