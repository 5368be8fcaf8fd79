"""torchvision's Faster R-CNNs, with weights under which there is something to compare."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from torch import nn

from .torchvision_cpu import sampled_roi_align, torchvision

detection = torchvision.models.detection
FrozenBatchNorm2d = torchvision.ops.misc.FrozenBatchNorm2d
CLASSES = 7
WIDTH = 16  # a ResNet's first stage
SLIM = {
    "width": WIDTH,
    "anchor_sizes": (16, 32, 64, 96),
    "fpn_features": 64,
    "representation_size": 128,
}
SLIM_WIDTHS = (8, 8, 16, 16, 16)  # VGG's


@pytest.fixture(autouse=True)
def _operators_in_python(monkeypatch):
    """torchvision refuses to run, or compiles with a C++ compiler, what is missing beside torch.

    Its own RoIAlign in Python, with which test_roi.py compares ours, takes most of a network's time
    and memory; test_bench_operators.py shows that this one equals it.
    """
    monkeypatch.setattr(torchvision.ops.boxes, "_assert_has_ops", lambda: None)
    names = torchvision.ops.roi_align.__globals__
    monkeypatch.setitem(names, "_roi_align", sampled_roi_align(torch))


class OneLevelLess(torchvision.ops.feature_pyramid_network.ExtraFPNBlock):
    """A pyramid without the pool behind it."""

    def forward(self, results, x, names):
        return results, names


def anchors(sizes):
    sizes = tuple(s if isinstance(s, tuple) else (s,) for s in sizes)
    return detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


class NarrowResNet(torchvision.models.ResNet):
    """Of the width `WIDTH`, which torchvision has no option for: it always begins with 64."""

    def __init__(self, *arguments, num_classes=1000, **options):
        super().__init__(*arguments, **options)
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block, planes, *arguments, **options):
        if planes == 64:  # the first stage: the stem is there already
            self.inplanes = WIDTH
            self.conv1 = nn.Conv2d(3, WIDTH, 7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(WIDTH)
        return super()._make_layer(block, planes * WIDTH // 64, *arguments, **options)


def narrow_resnet18(norm_layer=FrozenBatchNorm2d, **options):
    block = torchvision.models.resnet.BasicBlock
    return NarrowResNet(block, [2, 2, 2, 2], norm_layer=norm_layer, **options)


def narrow_resnet50(**options):
    return NarrowResNet(torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], **options)


def slim_resnet18(norm_layer=FrozenBatchNorm2d, **settings):
    """What `fasterrcnn_resnet18_fpn` is with the options `SLIM`."""
    backbone = detection.backbone_utils.BackboneWithFPN(
        narrow_resnet18(norm_layer),
        {f"layer{i + 1}": str(i) for i in range(4)},
        [WIDTH * 2**i for i in range(4)],
        SLIM["fpn_features"],
        extra_blocks=OneLevelLess(),
    )
    hidden = SLIM["representation_size"]
    return detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors(SLIM["anchor_sizes"]),
        box_head=detection.faster_rcnn.TwoMLPHead(SLIM["fpn_features"] * 49, hidden),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(hidden, CLASSES),
        **settings,
    )


def slim_vgg16(**settings):
    """What `fasterrcnn_vgg16` is with RoIAlign, narrow."""
    layers = []
    for width, count in zip(SLIM_WIDTHS, (2, 2, 3, 3, 3), strict=True):
        layers += [width] * count + ["M"]
    backbone = torchvision.models.vgg.make_layers(layers[:-1])
    backbone.out_channels = SLIM_WIDTHS[-1]
    return detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors([(16, 32, 64)]),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 7, 2),
        box_head=detection.faster_rcnn.TwoMLPHead(SLIM_WIDTHS[-1] * 49, 64),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(64, CLASSES),
        **settings,
    )


def frozen_resnet50(**settings):
    """As torchvision builds it for COCO_V1: frozen batch normalisation with an epsilon of 0."""
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=5
    )
    model = detection.FasterRCNN(backbone, 91, **settings)
    detection._utils.overwrite_eps(model, 0.0)
    return model


def by_name(name, **settings):
    return getattr(detection, name)(weights=None, weights_backbone=None, **settings)


BUILDERS = {  # our name -> (torchvision's, our options)
    "fasterrcnn_resnet18_fpn": (slim_resnet18, {**SLIM, "frozen_norm": True}),
    "fasterrcnn_vgg16": (
        slim_vgg16,
        {
            "widths": SLIM_WIDTHS,
            "hidden": 64,
            "dropout": 0.0,
            "pooling": "align",
            "anchor_sizes": (16, 32, 64),
        },
    ),
    "fasterrcnn_resnet50_fpn": (frozen_resnet50, {"norm_eps": 0.0}),
    **{
        name: (functools.partial(by_name, name), options)
        for name, options in {
            "fasterrcnn_resnet50_fpn_v2": {},
            "fasterrcnn_mobilenet_v3_large_fpn": {"frozen_norm": False},
            "fasterrcnn_mobilenet_v3_large_320_fpn": {"frozen_norm": False},
        }.items()
    },
}


def torch_detector(name, pictures, **settings):
    """torchvision's network with non-trivial statistics, and weights that tell places apart.

    Without the latter all anchors and all classes are about as likely, and which of them are best
    is a matter of rounding.
    """
    torch.manual_seed(0)
    return distinct(BUILDERS[name][0](**settings), pictures)


def distinct(model, pictures):
    """The network, with other weights: see `torch_detector`."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for module in (model.rpn.head.bbox_pred, model.roi_heads.box_predictor.bbox_pred):
        nn.init.normal_(module.bias, std=0.1)
    model.eval()
    spread(model, model.rpn.head.cls_logits, 2.0, pictures)
    spread(model, model.rpn.head.bbox_pred, 0.3, pictures)
    spread(model, model.roi_heads.box_predictor.cls_score, 3.0, pictures)
    spread(model, model.roi_heads.box_predictor.bbox_pred, 1.0, pictures)
    return model


def spread(model, layer, std, pictures):
    """Scales a layer so that its outputs have this standard deviation."""
    with recorded({"outputs": layer}) as record, torch.no_grad():
        model(pictures)
        outputs = torch.cat([x.flatten() for x in record["outputs"]])
        layer.weight *= std / outputs.std()


def centre(model, layer, pictures):
    """Makes all classes as likely on average: of two, random weights may never find the second."""
    with recorded({"logits": layer}) as record, torch.no_grad():
        model(pictures)
        layer.bias -= torch.cat(record["logits"]).mean(dim=0)


@contextlib.contextmanager
def recorded(modules):
    """Within this context, what each module returned, call by call."""
    record = {name: [] for name in modules}
    handles = [
        module.register_forward_hook(lambda _, __, y, name=name: record[name].append(y))
        for name, module in modules.items()
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def state_of(model):
    """The state under our names: torchvision has VGG's layers directly in `backbone`."""
    return {
        ours_of(name, model): tensor.detach().numpy().copy()
        for name, tensor in model.state_dict().items()
    }


def ours_of(name, model):
    if isinstance(model.backbone, nn.Sequential) and name.startswith("backbone."):
        return name.replace("backbone.", "backbone.body.features.", 1)
    return name


def padded(images, multiple=32):
    """Pictures of any sizes in one array, with poison around them, and their sizes (h, w)."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    h, w = -(-sizes.max(axis=0) // multiple) * multiple
    batch = np.full((len(images), h, w, 3), np.nan, images[0].dtype)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return batch, sizes
