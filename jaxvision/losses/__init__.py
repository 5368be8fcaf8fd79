"""Loss functions, and for each task the `loss_fn` that a train step calls."""

from jaxvision.losses.boxes import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    smooth_l1,
)
from jaxvision.losses.classification import classification_loss, cross_entropy
from jaxvision.losses.dense import (
    fcos_loss,
    fcos_terms,
    retinanet_loss,
    retinanet_terms,
    ssd_loss,
    ssd_terms,
)
from jaxvision.losses.fast_rcnn import fast_rcnn_loss
from jaxvision.losses.focal import sigmoid_focal_loss
from jaxvision.losses.localization import (
    box_regression_loss,
    cell_cross_entropy,
    decode_picture_boxes,
    localization_loss,
    localization_metrics,
)
from jaxvision.losses.mask_rcnn import (
    keypoint_head_loss,
    keypoint_rcnn_loss,
    keypoint_targets,
    mask_head_loss,
    mask_rcnn_loss,
)
from jaxvision.losses.rcnn import (
    box_head_loss,
    faster_rcnn_loss,
    rpn_loss,
    sample_anchors,
    sample_rois,
)
from jaxvision.losses.regions import (
    box_regression_targets,
    finetuning_targets,
    region_classification_loss,
    svm_targets,
)
from jaxvision.losses.segmentation import pixel_cross_entropy, segmentation_loss
from jaxvision.losses.yolov1 import yolov1_loss
from jaxvision.losses.yolox import yolox_loss, yolox_terms

__all__ = [
    "box_head_loss",
    "box_regression_loss",
    "box_regression_targets",
    "cell_cross_entropy",
    "classification_loss",
    "complete_box_iou_loss",
    "cross_entropy",
    "decode_picture_boxes",
    "distance_box_iou_loss",
    "fast_rcnn_loss",
    "faster_rcnn_loss",
    "fcos_loss",
    "fcos_terms",
    "finetuning_targets",
    "generalized_box_iou_loss",
    "keypoint_head_loss",
    "keypoint_rcnn_loss",
    "keypoint_targets",
    "localization_loss",
    "localization_metrics",
    "mask_head_loss",
    "mask_rcnn_loss",
    "pixel_cross_entropy",
    "region_classification_loss",
    "retinanet_loss",
    "retinanet_terms",
    "rpn_loss",
    "sample_anchors",
    "sample_rois",
    "segmentation_loss",
    "sigmoid_focal_loss",
    "smooth_l1",
    "ssd_loss",
    "ssd_terms",
    "svm_targets",
    "yolov1_loss",
    "yolox_loss",
    "yolox_terms",
]
