"""torchvision's detectors of one stage, with weights under which there is something to compare."""

import functools
from collections import OrderedDict

import torch
from torch import nn

from jaxvision.models import get_model

from .torch_detectors import (
    CLASSES,
    WIDTH,
    FrozenBatchNorm2d,
    by_name,
    detection,
    narrow_resnet18,
    recorded,
)
from .torchvision_cpu import torchvision

FPN = 64
SIZES = (16, 24, 40, 64, 96)
DEPTH = 2  # convolutions of a head, instead of four
SLIM = {"width": WIDTH, "fpn_features": FPN, "head_depth": DEPTH, "num_classes": CLASSES}
RETINANET = {**SLIM, "anchor_sizes": SIZES}
SECOND = {"p6_from_p5": False, "head_group_norm": True, "box_loss": "giou"}
NARROW = {"widths": (8, 8, 16, 16, 16), "fc_features": 32, "extra_features": (32, 16, 16, 16)}


def resnet18_with_p6_p7(norm_layer=FrozenBatchNorm2d, from_p5=True):
    return detection.backbone_utils.BackboneWithFPN(
        narrow_resnet18(norm_layer),
        {f"layer{i}": str(i) for i in (2, 3, 4)},
        [2 * WIDTH, 4 * WIDTH, 8 * WIDTH],
        FPN,
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(
            FPN if from_p5 else 8 * WIDTH, FPN
        ),
    )


def slim_retinanet(second=False, depth=DEPTH, **settings):
    """What `retinanet_resnet18_fpn` is with the options RETINANET, or with SECOND too."""
    thirds = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in SIZES)
    anchors = detection.anchor_utils.AnchorGenerator(thirds, ((0.5, 1.0, 2.0),) * 5)
    norm = functools.partial(nn.GroupNorm, 32) if second else None
    head = detection.retinanet.RetinaNetHead(FPN, 9, CLASSES, norm)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[:depth]
    head.regression_head._loss_type = "giou" if second else "l1"
    backbone = resnet18_with_p6_p7(nn.BatchNorm2d if second else FrozenBatchNorm2d, not second)
    return detection.RetinaNet(backbone, CLASSES, anchor_generator=anchors, head=head, **settings)


def slim_fcos(**settings):
    head = detection.fcos.FCOSHead(FPN, 1, CLASSES, DEPTH)
    return detection.FCOS(resnet18_with_p6_p7(), CLASSES, head=head, **settings)


class NarrowVGG(detection.ssd.SSDFeatureExtractorVGG):
    """SSD's backbone with other widths, which torchvision has no option for."""

    def __init__(self):
        nn.Module.__init__(self)
        widths, fc, extra = NARROW.values()
        layers = []
        for width, count in zip(widths, (2, 2, 3, 3, 3), strict=True):
            layers += [width] * count + ["M"]
        whole = torchvision.models.vgg.make_layers(layers)
        whole[16].ceil_mode = True
        self.scale_weight = nn.Parameter(torch.ones(widths[3]) * 20)
        self.features = nn.Sequential(*whole[:23])
        dense = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(widths[4], fc, 3, padding=6, dilation=6),
            nn.ReLU(),
            nn.Conv2d(fc, fc, 1),
            nn.ReLU(),
        )
        blocks = [nn.Sequential(*whole[23:-1], dense)]
        for before, width, halve in zip((fc, *extra), extra, (1, 1, 0, 0)):  # noqa: B905
            last = nn.Conv2d(width // 2, width, 3, padding=halve, stride=1 + halve)
            blocks.append(
                nn.Sequential(nn.Conv2d(before, width // 2, 1), nn.ReLU(), last, nn.ReLU())
            )
        self.extra = nn.ModuleList(blocks)


def narrow_ssd(**settings):
    generator = detection.anchor_utils.DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    return detection.ssd.SSD(NarrowVGG(), generator, (300, 300), CLASSES, **settings)


def frozen_resnet50(name, **settings):
    """As torchvision builds it for COCO_V1, RetinaNet's with an epsilon of 0."""
    body = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    backbone = detection.backbone_utils._resnet_fpn_extractor(
        body,
        5,
        returned_layers=[2, 3, 4],
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
    )
    model = getattr(detection, name)(backbone, 91, **settings)
    if name == "RetinaNet":
        detection._utils.overwrite_eps(model, 0.0)
    return model


def partly(name):
    return functools.partial(by_name, name)


CASES = {  # name: (torchvision's, our name, our options)
    "retinanet": (slim_retinanet, "retinanet_resnet18_fpn", {**RETINANET, "frozen_norm": True}),
    "retinanet v2": (
        functools.partial(slim_retinanet, True),
        "retinanet_resnet18_fpn",
        {**RETINANET, **SECOND},
    ),
    "fcos": (slim_fcos, "fcos_resnet18_fpn", {**SLIM, "frozen_norm": True}),
    "ssd": (narrow_ssd, "ssd300_vgg16", {**NARROW, "num_classes": CLASSES}),
    "ssdlite320_mobilenet_v3_large": (
        partly("ssdlite320_mobilenet_v3_large"),
        "ssdlite320_mobilenet_v3_large",
        {},
    ),
    "retinanet_resnet50_fpn": (
        functools.partial(frozen_resnet50, "RetinaNet"),
        "retinanet_resnet50_fpn",
        {"norm_eps": 0.0},
    ),
    "retinanet_resnet50_fpn_v2": (
        partly("retinanet_resnet50_fpn_v2"),
        "retinanet_resnet50_fpn_v2",
        {},
    ),
    "fcos_resnet50_fpn": (functools.partial(frozen_resnet50, "FCOS"), "fcos_resnet50_fpn", {}),
    "ssd300_vgg16": (partly("ssd300_vgg16"), "ssd300_vgg16", {}),
}
QUICK = ("retinanet", "fcos", "ssd")


def torch_dense(case, pictures, **settings):
    """torchvision's network with non-trivial statistics, and weights that tell places apart.

    Of sigmoids' classes the first, which is the background, is never found, as after training.
    """
    torch.manual_seed(0)
    model = CASES[case][0](**settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    if isinstance(model, detection.ssd.SSD):
        keep_the_pictures(model, pictures)
    model.eval()
    classes, boxes = model.head.classification_head, model.head.regression_head
    with torch.no_grad():
        if isinstance(model, detection.ssd.SSD):
            last = [
                [m[-1] if isinstance(m, nn.Sequential) else m for m in head.module_list]
                for head in (classes, boxes)
            ]
            spread(model, {**dict.fromkeys(last[0], 1.5), **dict.fromkeys(last[1], 1.0)}, pictures)
            return model
        layers = {classes.cls_logits: 1.5, boxes.bbox_reg: 0.5}
        if hasattr(boxes, "bbox_ctrness"):
            layers[boxes.bbox_ctrness] = 1.0
            boxes.bbox_reg.bias += 1.5
        spread(model, layers, pictures)
        by_class = classes.cls_logits.bias.view(-1, classes.num_classes)
        nn.init.uniform_(by_class, -4.0, -2.0)
        classes.cls_logits.weight.view(*by_class.shape, -1)[:, 0] = 0
        by_class[:, 0] = -50
    return model


def keep_the_pictures(model, pictures):
    """SSD's layers, as they are drawn, make all pictures alike."""
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        images = model.eval().transform(pictures)[0].tensors
        model.backbone.train()(images)


def spread(model, layers, pictures):
    """Scales the heads' last layers so that their outputs have these standard deviations."""
    with recorded({layer: layer for layer in layers}) as record:
        pretend_forward(model, pictures)
    for layer, std in layers.items():
        layer.weight *= std / torch.cat([x.flatten() for x in record[layer]]).std()


def our_model(case, dtype="float32"):
    _, name, options = CASES[case]
    return get_model(name, **options, dtype=dtype)


def pretend_forward(model, images):
    """torchvision's head outputs, by name, and its anchors for pictures as its transform makes."""
    images, _ = model.transform(images)
    features = model.backbone(images.tensors)
    features = [features] if not isinstance(features, OrderedDict) else list(features.values())
    return images, model.head(features), model.anchor_generator(images, features)
