"""Every model by name: one explicit dictionary, name -> builder of a linen module."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvision.errors import UserError
from jaxvision.models import (
    deeplab,
    fast_rcnn,
    faster_rcnn,
    fcn,
    fcos,
    keypoint_rcnn,
    mask_rcnn,
    mobilenet_v3,
    resnet,
    retinanet,
    ssd,
    vgg,
    yolox,
)
from jaxvision.models.alexnet import AlexNet
from jaxvision.models.darknet_layers import YOLOV1_LAYERS
from jaxvision.models.encoder_decoder import EncoderDecoder
from jaxvision.models.lenet import LeNet
from jaxvision.models.localizer import Localizer
from jaxvision.models.mlp import MLP
from jaxvision.models.rcnn import RCNN
from jaxvision.models.segnet import SegNet
from jaxvision.models.yolov1 import YOLOv1, darknet_yolov1, fast_yolov1, yolov1_tiny


def localizer(
    num_classes: int = 10,
    backbone: str = "resnet18",
    backbone_options: Mapping[str, Any] | None = None,
    num_maps: int = 3,
    dtype: DTypeLike = jnp.float32,
) -> Localizer:
    """Returns a `Localizer` on the model called `backbone`: any that has `features_only`."""
    options = {**(backbone_options or {}), "features_only": True, "dtype": dtype}
    return Localizer(get_model(backbone, **options), num_classes, num_maps, dtype)


def yolov1(
    num_classes: int = 20,
    num_boxes: int | None = None,
    grid_size: int | None = None,
    layers: Sequence[str] = YOLOV1_LAYERS,
    backbone: str | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    neck: Sequence[int] = (512, 512),
    bounded: bool | None = None,
    dtype: DTypeLike = jnp.float32,
) -> YOLOv1:
    """Returns YOLO v1 as the author's yolov1.cfg has it, or on the model called `backbone`.

    The author's has 7 x 7 cells of 3 boxes (the paper's has 2), unbounded outputs, and pictures of
    448 x 448. On a backbone, any that has `features_only`, convolutions as wide as `neck` and a
    head predict 2 boxes, with `bounded` outputs, for each cell of its last map.
    """
    if backbone is None:
        return darknet_yolov1(
            layers, num_classes, num_boxes or 3, grid_size or 7, bool(bounded), dtype
        )
    options = {**(backbone_options or {}), "features_only": True, "dtype": dtype}
    return YOLOv1(
        get_model(backbone, **options),
        num_classes,
        num_boxes or 2,
        grid_size,
        neck=tuple(neck),
        bounded=bounded is None or bounded,
        dtype=dtype,
    )


def rcnn(
    num_classes: int = 21,
    backbone: str = "resnet18",
    backbone_options: Mapping[str, Any] | None = None,
    crop_size: int = 224,
    padding: int | None = None,
    grid: int = 7,
    dtype: DTypeLike = jnp.float32,
) -> RCNN:
    """Returns R-CNN on the classification network called `backbone`.

    `num_classes` counts the background. `padding` is by default the paper's: 16 pixels of 227. The
    smaller `grid`, the fewer numbers the boxes are regressed from: see `RCNN`.
    """
    options = {**(backbone_options or {}), "num_classes": 0, "dtype": dtype}
    padding = round(16 * crop_size / 227) if padding is None else padding
    network = get_model(backbone, **options)
    return RCNN(network, num_classes, crop_size, padding, grid, dtype)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": AlexNet,
    "deeplabv3_resnet50": deeplab.deeplabv3_resnet50,
    "deeplabv3_resnet101": deeplab.deeplabv3_resnet101,
    "encoder_decoder": EncoderDecoder,
    "fast_yolov1": fast_yolov1,
    "fasterrcnn_mobilenet_v3_large_320_fpn": faster_rcnn.fasterrcnn_mobilenet_v3_large_320_fpn,
    "fasterrcnn_mobilenet_v3_large_fpn": faster_rcnn.fasterrcnn_mobilenet_v3_large_fpn,
    "fasterrcnn_resnet18_fpn": faster_rcnn.fasterrcnn_resnet18_fpn,
    "fasterrcnn_resnet50_fpn": faster_rcnn.fasterrcnn_resnet50_fpn,
    "fasterrcnn_resnet50_fpn_v2": faster_rcnn.fasterrcnn_resnet50_fpn_v2,
    "fasterrcnn_vgg16": faster_rcnn.fasterrcnn_vgg16,
    "fastrcnn_resnet18_fpn": fast_rcnn.fastrcnn_resnet18_fpn,
    "fastrcnn_resnet50_fpn": fast_rcnn.fastrcnn_resnet50_fpn,
    "fastrcnn_vgg16": fast_rcnn.fastrcnn_vgg16,
    "fcn_resnet50": fcn.fcn_resnet50,
    "fcn_resnet101": fcn.fcn_resnet101,
    "fcos_resnet18_fpn": fcos.fcos_resnet18_fpn,
    "fcos_resnet50_fpn": fcos.fcos_resnet50_fpn,
    "keypointrcnn_resnet18_fpn": keypoint_rcnn.keypointrcnn_resnet18_fpn,
    "keypointrcnn_resnet50_fpn": keypoint_rcnn.keypointrcnn_resnet50_fpn,
    "lenet": LeNet,
    "localizer": localizer,
    "maskrcnn_resnet18_fpn": mask_rcnn.maskrcnn_resnet18_fpn,
    "maskrcnn_resnet50_fpn": mask_rcnn.maskrcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": mask_rcnn.maskrcnn_resnet50_fpn_v2,
    "mlp": MLP,
    "mobilenet_v3_large": mobilenet_v3.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3.mobilenet_v3_small,
    "rcnn": rcnn,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "resnext101_32x8d": resnet.resnext101_32x8d,
    "resnext101_64x4d": resnet.resnext101_64x4d,
    "retinanet_resnet18_fpn": retinanet.retinanet_resnet18_fpn,
    "retinanet_resnet50_fpn": retinanet.retinanet_resnet50_fpn,
    "retinanet_resnet50_fpn_v2": retinanet.retinanet_resnet50_fpn_v2,
    "segnet": SegNet,
    "ssd300_vgg16": ssd.ssd300_vgg16,
    "ssdlite320_mobilenet_v3_large": ssd.ssdlite320_mobilenet_v3_large,
    "vgg11": vgg.vgg11,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg13": vgg.vgg13,
    "vgg13_bn": vgg.vgg13_bn,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19": vgg.vgg19,
    "vgg19_bn": vgg.vgg19_bn,
    "wide_resnet50_2": resnet.wide_resnet50_2,
    "wide_resnet101_2": resnet.wide_resnet101_2,
    "yolov1": yolov1,
    "yolov1_tiny": yolov1_tiny,
    "yolox_darknet53": yolox.yolox_darknet53,
    "yolox_l": yolox.yolox_l,
    "yolox_m": yolox.yolox_m,
    "yolox_nano": yolox.yolox_nano,
    "yolox_s": yolox.yolox_s,
    "yolox_tiny": yolox.yolox_tiny,
    "yolox_x": yolox.yolox_x,
}


def list_models() -> list[str]:
    """Returns the names that `get_model` takes, sorted."""
    return sorted(MODELS)


def get_model(name: str, **options) -> nn.Module:
    """Returns the linen module called `name`, built with `options` (`num_classes=…`, widths, …).

    Lists in the options become tuples, so that options read from JSON rebuild the same module.
    Raises `UserError` for an unknown name, with the nearest known ones, and for an unknown option.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(list_models())}"
        )
        raise UserError(f"unknown model {name!r}; {hint}")
    builder = MODELS[name]
    known = [p for p in inspect.signature(builder).parameters if p not in ("parent", "name")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(
            f"model {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return builder(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
