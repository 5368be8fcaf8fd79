"""torchvision's Mask R-CNNs and Keypoint R-CNN, with weights under which they find something."""

import functools

import torch
from torch import nn

from .torch_detectors import (
    CLASSES,
    SLIM,
    WIDTH,
    anchors,
    by_name,
    centre,
    detection,
    distinct,
    narrow_resnet18,
    slim_resnet18,
    spread,
)

KEYPOINTS = 5
SLIM_KEYPOINTS = {
    "width": WIDTH,
    "fpn_features": 16,
    "representation_size": 32,
    "num_classes": 3,
    "num_keypoints": KEYPOINTS,
}


def slim_mask_rcnn(second=False, **settings):
    """What `maskrcnn_resnet18_fpn` is with the options SLIM, or with batch normalisation too."""
    norm = nn.BatchNorm2d if second else None
    faster, width = slim_resnet18(), SLIM["fpn_features"]
    return detection.MaskRCNN(
        faster.backbone,
        rpn_anchor_generator=anchors(SLIM["anchor_sizes"]),
        box_head=faster.roi_heads.box_head,
        box_predictor=faster.roi_heads.box_predictor,
        mask_head=detection.mask_rcnn.MaskRCNNHeads(width, (width,) * 4, 1, norm_layer=norm),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(width, width, CLASSES),
        **settings,
    )


def slim_keypoint_rcnn(**settings):
    """What `keypointrcnn_resnet18_fpn` is with the options SLIM_KEYPOINTS."""
    _, width, hidden, classes, keypoints = SLIM_KEYPOINTS.values()
    backbone = detection.backbone_utils.BackboneWithFPN(
        narrow_resnet18(),
        {f"layer{i + 1}": str(i) for i in range(4)},
        [WIDTH * 2**i for i in range(4)],
        width,
    )
    return detection.KeypointRCNN(
        backbone,
        box_head=detection.faster_rcnn.TwoMLPHead(width * 49, hidden),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(hidden, classes),
        keypoint_head=detection.keypoint_rcnn.KeypointRCNNHeads(width, (2 * width,) * 8),
        keypoint_predictor=detection.keypoint_rcnn.KeypointRCNNPredictor(2 * width, keypoints),
        **settings,
    )


def frozen(kind, classes, **settings):
    """As torchvision builds it for COCO_V1: frozen batch normalisation with an epsilon of 0."""
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=5
    )
    model = getattr(detection, kind)(backbone, classes, **settings)
    detection._utils.overwrite_eps(model, 0.0)
    return model


CASES = {  # name: (torchvision's, our name, our options)
    "mask": (
        slim_mask_rcnn,
        "maskrcnn_resnet18_fpn",
        {**SLIM, "num_classes": CLASSES, "frozen_norm": True},
    ),
    "keypoint": (
        slim_keypoint_rcnn,
        "keypointrcnn_resnet18_fpn",
        {**SLIM_KEYPOINTS, "frozen_norm": True},
    ),
    "maskrcnn_resnet50_fpn": (
        functools.partial(frozen, "MaskRCNN", 91),
        "maskrcnn_resnet50_fpn",
        {"norm_eps": 0.0},
    ),
    "maskrcnn_resnet50_fpn_v2": (
        functools.partial(by_name, "maskrcnn_resnet50_fpn_v2"),
        "maskrcnn_resnet50_fpn_v2",
        {},
    ),
    "keypointrcnn_resnet50_fpn": (
        functools.partial(frozen, "KeypointRCNN", 2),
        "keypointrcnn_resnet50_fpn",
        {"norm_eps": 0.0},
    ),
}


def torch_instances(case, pictures, **settings):
    """torchvision's network, as `torch_detector` makes one, whose masks or maps differ too."""
    torch.manual_seed(0)
    model = distinct(CASES[case][0](**settings), pictures)
    heads = model.roi_heads
    if heads.has_mask():
        spread(model, heads.mask_predictor.mask_fcn_logits, 2.0, pictures)
    else:
        centre(model, heads.box_predictor.cls_score, pictures)
        spread(model, heads.keypoint_predictor.kps_score_lowres, 3.0, pictures)
    return model


def found_by(model, pictures):
    """What it finds: as the heads say it, and in the pictures' own pixels."""
    raw = []
    hook = model.roi_heads.register_forward_hook(
        lambda _, __, outputs: raw.extend(dict(each) for each in outputs[0])
    )
    with torch.no_grad():
        found = model(pictures)
    hook.remove()
    return raw, found
