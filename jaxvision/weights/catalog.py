"""What has been published for the models here: addresses, preprocessing, classes, metrics.

But for YOLOX every value is torchvision 0.28's own (BSD 3-Clause); parity tests compare them all.
YOLOX's are those of Megvii's release 0.1.1rc0 (Apache-2.0). Megvii gives no hashes; these are what
several projects independently found its files to have.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal

from jaxvision.errors import UserError
from jaxvision.weights.preprocessing import (
    AnyPreprocessing,
    Letterbox,
    Preprocessing,
    ShortestSide,
    Stretch,
)

TORCHVISION_URL = "https://download.pytorch.org/models/"
YOLOX_URL = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/"
IMAGENET, COCO_AS_VOC, COCO = "ImageNet-1K", "COCO-val2017-VOC-labels", "COCO-val2017"
"""What the published metrics were measured on: ImageNet's validation set, and COCO's of 2017, with
the classes that VOC has too or with all."""

VOC_SEGMENTATION_CLASSES = (
    *("__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""The names of a segmentation network's classes, by label."""

COCO_IDS_NEVER_GIVEN = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


@dataclass(frozen=True)
class Weights:
    """One published file of weights of `model`, and what must be known to use it.

    `sha256_prefix` is the beginning of the file's sha256, in hex, or all of it. `metrics` are in
    per cent, on `data`: "acc@1" and "acc@5" of classifiers, "miou" and "pixel_acc" of segmentation,
    "AP" of detection, COCO's mean over IoUs, and "mask_AP" or "keypoint_AP"; it and `class_names`
    are empty for weights that cannot classify. `num_params` counts the parameters, without the
    statistics of BatchNorm. `options` are those that the model needs to have been built with, where
    they are not its defaults.
    """

    model: str
    name: str
    url: str
    sha256_prefix: str
    num_params: int
    preprocessing: AnyPreprocessing
    metrics: Mapping[str, float] = field(hash=False)
    data: str = IMAGENET
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def task(self) -> Literal["classification", "segmentation", "detection"]:
        return _TASKS[self.data]

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def class_names(self) -> tuple[str, ...]:
        if not self.metrics:
            return ()
        if self.data == COCO_AS_VOC:
            return VOC_SEGMENTATION_CLASSES
        if self.data == IMAGENET:
            return imagenet_classes()
        if "keypoint_AP" in self.metrics:
            return ("person",)
        return coco_classes() if self.model.startswith("yolox") else coco_categories()


def imagenet_classes() -> tuple[str, ...]:
    """Returns the names of ImageNet-1K's classes, by label."""
    return _lines_of("imagenet_classes.txt")


def coco_classes() -> tuple[str, ...]:
    """Returns the names of the 80 classes of COCO's objects, by label, which counts from 0."""
    return _lines_of("coco_classes.txt")


def coco_categories() -> tuple[str, ...]:
    """Returns the names of torchvision's 90 classes by label: COCO's category ids, less one.

    The background, 0 there, is left out. Ten ids were never given; their name is "N/A".

    >>> coco_categories()[0], coco_categories()[11], coco_categories()[89]
    ('person', 'N/A', 'toothbrush')
    """
    names = iter(coco_classes())
    return tuple("N/A" if i in COCO_IDS_NEVER_GIVEN else next(names) for i in range(1, 91))


@functools.cache
def _lines_of(file: str) -> tuple[str, ...]:
    text = resources.files(__package__).joinpath(file).read_text("utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def find_weights(model: str, name: str = "DEFAULT") -> Weights:
    """Returns the published weights called `name` of a model; "DEFAULT" are the best ones.

    >>> find_weights("resnet50").name
    'IMAGENET1K_V2'
    >>> find_weights("resnet50", "IMAGENET1K_V1").metrics["acc@1"]
    76.13
    >>> find_weights("yolox_s", "COCO").preprocessing.size
    (640, 640)
    """
    if model not in CATALOG:
        raise UserError(
            f"no weights are published for the model {model!r}; there are some for "
            f"{', '.join(CATALOG)}"
        )
    known = CATALOG[model]
    if name == "DEFAULT":
        return known[max(name for name, weights in known.items() if weights.metrics)]
    if name not in known:
        raise UserError(
            f"no weights {name!r} are published for {model}; there are {', '.join(known)} and "
            f"DEFAULT"
        )
    return known[name]


def options_needed(model: str, weights: str) -> Mapping[str, Any]:
    """Returns the options that a model must be built with for some of its weights.

    These are told by their name, or by the name of their published file.

    >>> dict(options_needed("fasterrcnn_resnet50_fpn", "COCO_V1"))
    {'norm_eps': 0.0}
    """
    known = CATALOG.get(model, {})
    if weights == "DEFAULT" and known:
        return find_weights(model).options
    for name, found in known.items():
        if weights == name or PurePath(weights).name == found.file_name:
            return found.options
    return {}


_V1, _V2 = Preprocessing(resize_size=256), Preprocessing(resize_size=232)
_CAFFE = {"mean": (0.48235, 0.45882, 0.40784), "std": (1 / 255, 1 / 255, 1 / 255)}
# Model, file, parameters, preprocessing, top-1, top-5. The weights are IMAGENET1K_V1 where a model
# is named first, and _V2 where it is named again.
_PUBLISHED = (
    ("alexnet", "alexnet-owt-7be5be79.pth", 61_100_840, _V1, 56.522, 79.066),
    ("vgg11", "vgg11-8a719046.pth", 132_863_336, _V1, 69.02, 88.628),
    ("vgg11_bn", "vgg11_bn-6002323d.pth", 132_868_840, _V1, 70.37, 89.81),
    ("vgg13", "vgg13-19584684.pth", 133_047_848, _V1, 69.928, 89.246),
    ("vgg13_bn", "vgg13_bn-abd245e5.pth", 133_053_736, _V1, 71.586, 90.374),
    ("vgg16", "vgg16-397923af.pth", 138_357_544, _V1, 71.592, 90.382),
    ("vgg16_bn", "vgg16_bn-6c64b313.pth", 138_365_992, _V1, 73.36, 91.516),
    ("vgg19", "vgg19-dcbb9e9d.pth", 143_667_240, _V1, 72.376, 90.876),
    ("vgg19_bn", "vgg19_bn-c79401a0.pth", 143_678_248, _V1, 74.218, 91.842),
    ("resnet18", "resnet18-f37072fd.pth", 11_689_512, _V1, 69.758, 89.078),
    ("resnet34", "resnet34-b627a593.pth", 21_797_672, _V1, 73.314, 91.42),
    ("resnet50", "resnet50-0676ba61.pth", 25_557_032, _V1, 76.13, 92.862),
    ("resnet50", "resnet50-11ad3fa6.pth", 25_557_032, _V2, 80.858, 95.434),
    ("resnet101", "resnet101-63fe2227.pth", 44_549_160, _V1, 77.374, 93.546),
    ("resnet101", "resnet101-cd907fc2.pth", 44_549_160, _V2, 81.886, 95.78),
    ("resnet152", "resnet152-394f9c45.pth", 60_192_808, _V1, 78.312, 94.046),
    ("resnet152", "resnet152-f82ba261.pth", 60_192_808, _V2, 82.284, 96.002),
    ("resnext50_32x4d", "resnext50_32x4d-7cdf4587.pth", 25_028_904, _V1, 77.618, 93.698),
    ("resnext50_32x4d", "resnext50_32x4d-1a0047aa.pth", 25_028_904, _V2, 81.198, 95.34),
    ("resnext101_32x8d", "resnext101_32x8d-8ba56ff5.pth", 88_791_336, _V1, 79.312, 94.526),
    ("resnext101_32x8d", "resnext101_32x8d-110c445d.pth", 88_791_336, _V2, 82.834, 96.228),
    ("resnext101_64x4d", "resnext101_64x4d-173b62eb.pth", 83_455_272, _V2, 83.246, 96.454),
    ("mobilenet_v3_large", "mobilenet_v3_large-8738ca79.pth", 5_483_032, _V1, 74.042, 91.34),
    ("mobilenet_v3_large", "mobilenet_v3_large-5c1a4163.pth", 5_483_032, _V2, 75.274, 92.566),
    ("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth", 2_542_856, _V1, 67.668, 87.402),
    ("wide_resnet50_2", "wide_resnet50_2-95faca4d.pth", 68_883_240, _V1, 78.468, 94.086),
    ("wide_resnet50_2", "wide_resnet50_2-9ba9bcbe.pth", 68_883_240, _V2, 81.602, 95.758),
    ("wide_resnet101_2", "wide_resnet101_2-32ee1156.pth", 126_886_696, _V1, 78.848, 94.284),
    ("wide_resnet101_2", "wide_resnet101_2-d733dc28.pth", 126_886_696, _V2, 82.51, 96.02),
)

_SEGMENTATION = Preprocessing(resize_size=520, crop_size=None)
# Model, file, parameters, mean IoU, share of the pixels that are right.
_PUBLISHED_FOR_SEGMENTATION = (
    ("fcn_resnet50", "fcn_resnet50_coco-1167a1af.pth", 35_322_218, 60.5, 91.4),
    ("fcn_resnet101", "fcn_resnet101_coco-7ecb50ca.pth", 54_314_346, 63.7, 91.9),
    ("deeplabv3_resnet50", "deeplabv3_resnet50_coco-cd0a2569.pth", 42_004_074, 66.4, 92.4),
    ("deeplabv3_resnet101", "deeplabv3_resnet101_coco-586e9e4e.pth", 60_996_202, 67.4, 92.4),
)

# Model, parameters, side of the pictures, AP on val2017, the first half of the sha256.
_PUBLISHED_FOR_DETECTION = (
    ("yolox_nano", 912_159, 416, 25.8, "cd28f55fbbc1829f99d9ac9b38a16d25"),
    ("yolox_tiny", 5_055_855, 416, 32.8, "9de513de589ac98bb92d3bca53b5af7b"),
    ("yolox_s", 8_968_255, 640, 40.5, "f55ded7181e1b0c13285c56e7790b8f0"),
    ("yolox_m", 25_326_495, 640, 46.9, "60076992b32da82951c90cfa7bd6ab70"),
    ("yolox_l", 54_208_895, 640, 49.7, "1e6b7fa6240375370b2a8a8eab9066b3"),
    ("yolox_x", 99_071_455, 640, 51.1, "5652330b6ae860043f091b8f550a60c1"),
    ("yolox_darknet53", 63_724_767, 640, 47.7, "b5905e9faf500a2608c93991f91a41a6"),
)
# Model, file, parameters, AP on val2017, preprocessing, options.
_PUBLISHED_RCNNS = (
    (
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        *(41_755_286, 37.0, ShortestSide(), {"norm_eps": 0.0}),
    ),
    (
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
        *(43_712_278, 46.7, ShortestSide(), {}),
    ),
    (
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth",
        *(19_386_354, 32.8, ShortestSide(), {}),
    ),
    (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth",
        *(19_386_354, 22.8, ShortestSide(320, 640), {}),
    ),
)
_HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_PUBLISHED_ONE_STAGE = (
    (
        "fcos_resnet50_fpn",
        "fcos_resnet50_fpn_coco-99b0c9b7.pth",
        *(32_269_600, 39.2, ShortestSide(), {}),
    ),
    (
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_coco-eeacb38b.pth",
        *(34_014_999, 36.4, ShortestSide(), {"norm_eps": 0.0}),
    ),
    (
        "retinanet_resnet50_fpn_v2",
        "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
        *(38_198_935, 41.5, ShortestSide(), {}),
    ),
    (
        "ssd300_vgg16",
        "ssd300_vgg16_coco-b556d3b4.pth",
        *(35_641_826, 25.1, Stretch((300, 300), **_CAFFE), {}),
    ),
    (
        "ssdlite320_mobilenet_v3_large",
        "ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
        *(3_440_060, 21.3, Stretch((320, 320), **_HALVES), {}),
    ),
)
# Model, name, file, parameters, what is measured, options.
_PUBLISHED_WITH_MORE_THAN_BOXES = (
    (
        *("maskrcnn_resnet50_fpn", "COCO_V1", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"),
        *(44_401_393, {"AP": 37.9, "mask_AP": 34.6}, {"norm_eps": 0.0}),
    ),
    (
        *("maskrcnn_resnet50_fpn_v2", "COCO_V1", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"),
        *(46_359_409, {"AP": 47.4, "mask_AP": 41.8}, {}),
    ),
    (
        *(
            "keypointrcnn_resnet50_fpn",
            "COCO_LEGACY",
            "keypointrcnn_resnet50_fpn_coco-9f466800.pth",
        ),
        *(59_137_258, {"AP": 50.6, "keypoint_AP": 61.1}, {}),
    ),
    (
        *("keypointrcnn_resnet50_fpn", "COCO_V1"),
        "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
        *(59_137_258, {"AP": 54.6, "keypoint_AP": 65.0}, {"norm_eps": 0.0}),
    ),
)
_TASKS = {IMAGENET: "classification", COCO_AS_VOC: "segmentation", COCO: "detection"}


def _catalog() -> dict[str, dict[str, Weights]]:
    catalog: dict[str, dict[str, Weights]] = {}

    def add(weights: Weights) -> None:
        catalog.setdefault(weights.model, {})[weights.name] = weights

    def torchvisions(
        model: str,
        name: str,
        file: str,
        num_params: int,
        preprocessing: AnyPreprocessing,
        metrics: dict[str, float],
        data: str = IMAGENET,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Weights:
        digest = file.removesuffix(".pth").rpartition("-")[2]
        url, measured = TORCHVISION_URL + file, MappingProxyType(metrics)
        return Weights(model, name, url, digest, num_params, preprocessing, measured, data, options)

    for model, file, num_params, preprocessing, top1, top5 in _PUBLISHED:
        name = f"IMAGENET1K_V{len(catalog.get(model, ())) + 1}"
        metrics = {"acc@1": top1, "acc@5": top5}
        add(torchvisions(model, name, file, num_params, preprocessing, metrics))
    for model, file, num_params, miou, accuracy in _PUBLISHED_FOR_SEGMENTATION:
        name, metrics = "COCO_WITH_VOC_LABELS_V1", {"miou": miou, "pixel_acc": accuracy}
        add(torchvisions(model, name, file, num_params, _SEGMENTATION, metrics, COCO_AS_VOC))
    for model, num_params, side, ap, sha256 in _PUBLISHED_FOR_DETECTION:
        letterbox, metrics = Letterbox((side, side)), MappingProxyType({"AP": ap})
        url = f"{YOLOX_URL}{model.removesuffix('53')}.pth"
        add(Weights(model, "COCO", url, sha256, num_params, letterbox, metrics, COCO))
    for model, file, num_params, ap, prepared, options in _PUBLISHED_RCNNS + _PUBLISHED_ONE_STAGE:
        options = MappingProxyType(options)
        add(torchvisions(model, "COCO_V1", file, num_params, prepared, {"AP": ap}, COCO, options))
    for model, name, file, num_params, metrics, options in _PUBLISHED_WITH_MORE_THAN_BOXES:
        options = MappingProxyType(options)
        add(torchvisions(model, name, file, num_params, ShortestSide(), metrics, COCO, options))
    # Of the SSD detector's backbone: only `features` has values, the classifier's are NaN.
    features = "vgg16_features-amdegroot-88682ab5.pth"
    add(
        torchvisions(
            "vgg16", "IMAGENET1K_FEATURES", features, 138_357_544, Preprocessing(**_CAFFE), {}
        )
    )
    return catalog


CATALOG: Mapping[str, Mapping[str, Weights]] = _catalog()
"""Model -> name of weights -> `Weights`."""
