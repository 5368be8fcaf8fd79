"""Array operators in pure jnp: fixed shapes, usable under jit, vmap and grad."""

from jaxvision.ops.anchors import (
    anchors_of_levels,
    base_anchors,
    default_boxes,
    grid_anchors,
)
from jaxvision.ops.boxes import (
    box_area,
    boxes_at_least,
    clip_boxes,
    cxcywh_to_xywh,
    cxcywh_to_xyxy,
    decode_boxes,
    encode_boxes,
    flip_boxes_horizontally,
    flip_boxes_vertically,
    rotate_boxes,
    rotate_boxes_90,
    scale_boxes,
    xywh_to_cxcywh,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from jaxvision.ops.color import normalize_images
from jaxvision.ops.convolution import (
    conv2d,
    conv_output_size,
    conv_transpose2d,
    conv_transpose_output_size,
)
from jaxvision.ops.dense import decode_distances, decode_fcos, decode_retinanet, decode_ssd
from jaxvision.ops.detections import select_detections
from jaxvision.ops.iou import (
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)
from jaxvision.ops.keypoints import bicubic_weights, heatmaps_to_keypoints
from jaxvision.ops.masks import BoxMasks, crop_masks, decode_masks, encode_masks, paste_masks
from jaxvision.ops.matching import (
    assign_to_cells,
    match,
    match_every_object,
    match_places,
    sample_balanced,
)
from jaxvision.ops.nms import batched_nms, nms, soft_nms
from jaxvision.ops.normalization import batch_norm, normalize_by, valid_rows
from jaxvision.ops.padding import zero_outside
from jaxvision.ops.pooling import (
    adaptive_avg_pool,
    avg_pool,
    global_avg_pool,
    max_pool,
    max_pool_with_argmax,
    pool_output_size,
)
from jaxvision.ops.rcnn import Proposals, decode_rcnn, decode_regions, select_proposals
from jaxvision.ops.resize import resize_bilinear, resize_nearest
from jaxvision.ops.roi_align import assign_levels, multiscale_roi_align, roi_align
from jaxvision.ops.roi_pool import roi_pool
from jaxvision.ops.simota import Assignment, simota
from jaxvision.ops.unpooling import max_unpool, unpool_bed_of_nails, unpool_nearest
from jaxvision.ops.warp import warp_rois
from jaxvision.ops.yolov1 import decode_yolov1
from jaxvision.ops.yolox import decode_yolox

__all__ = [
    "Assignment",
    "BoxMasks",
    "Proposals",
    "adaptive_avg_pool",
    "anchors_of_levels",
    "assign_levels",
    "assign_to_cells",
    "avg_pool",
    "base_anchors",
    "batch_norm",
    "batched_nms",
    "bicubic_weights",
    "box_area",
    "box_iou",
    "boxes_at_least",
    "clip_boxes",
    "complete_box_iou",
    "conv2d",
    "conv_output_size",
    "conv_transpose2d",
    "conv_transpose_output_size",
    "crop_masks",
    "cxcywh_to_xywh",
    "cxcywh_to_xyxy",
    "decode_boxes",
    "decode_distances",
    "decode_fcos",
    "decode_masks",
    "decode_rcnn",
    "decode_regions",
    "decode_retinanet",
    "decode_ssd",
    "decode_yolov1",
    "decode_yolox",
    "default_boxes",
    "distance_box_iou",
    "encode_boxes",
    "encode_masks",
    "flip_boxes_horizontally",
    "flip_boxes_vertically",
    "generalized_box_iou",
    "global_avg_pool",
    "grid_anchors",
    "heatmaps_to_keypoints",
    "match",
    "match_every_object",
    "match_places",
    "max_pool",
    "max_pool_with_argmax",
    "max_unpool",
    "multiscale_roi_align",
    "nms",
    "normalize_by",
    "normalize_images",
    "paste_masks",
    "pool_output_size",
    "resize_bilinear",
    "resize_nearest",
    "roi_align",
    "roi_pool",
    "rotate_boxes",
    "rotate_boxes_90",
    "sample_balanced",
    "scale_boxes",
    "select_detections",
    "select_proposals",
    "simota",
    "soft_nms",
    "unpool_bed_of_nails",
    "unpool_nearest",
    "valid_rows",
    "warp_rois",
    "xywh_to_cxcywh",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
    "zero_outside",
]
