"""What torchvision has published for the models here: addresses, preprocessing, classes, metrics.

Every value is torchvision 0.28's own (BSD 3-Clause); a parity test compares them all.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType

from jaxvision.errors import UserError

URL = "https://download.pytorch.org/models/"
IMAGENET, COCO_AS_VOC = "ImageNet-1K", "COCO-val2017-VOC-labels"
"""What the published metrics were measured on: ImageNet's validation set, and COCO's of 2017 with
the classes that VOC has too."""

VOC_SEGMENTATION_CLASSES = (
    *("__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""The names of a segmentation network's classes, by label."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of a picture, in this order: resize its shorter side to `resize_size`
    pixels, crop the centre to a square of `crop_size` (None: leave it whole), scale to [0, 1],
    (x - mean) / std."""

    resize_size: int = 256
    crop_size: int | None = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    antialias: bool = True


@dataclass(frozen=True)
class Weights:
    """One published file of weights of `model`, and what must be known to use it.

    `sha256_prefix` is the beginning of the file's sha256, in hex. `metrics` are in per cent, on
    `data`: "acc@1" and "acc@5" of classifiers, "miou" and "pixel_acc" of segmentation; it and
    `class_names` are empty for weights that cannot classify. `num_params` counts the parameters,
    without the statistics of BatchNorm.
    """

    model: str
    name: str
    url: str
    sha256_prefix: str
    num_params: int
    preprocessing: Preprocessing
    metrics: Mapping[str, float] = field(hash=False)
    data: str = IMAGENET

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def class_names(self) -> tuple[str, ...]:
        if not self.metrics:
            return ()
        return imagenet_classes() if self.data == IMAGENET else VOC_SEGMENTATION_CLASSES


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Returns the names of ImageNet-1K's classes, by label."""
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def find_weights(model: str, name: str = "DEFAULT") -> Weights:
    """Returns the published weights called `name` of a model; "DEFAULT" are the best ones.

    >>> find_weights("resnet50").name
    'IMAGENET1K_V2'
    >>> find_weights("resnet50", "IMAGENET1K_V1").metrics["acc@1"]
    76.13
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


_V1, _V2 = Preprocessing(resize_size=256), Preprocessing(resize_size=232)
_CAFFE = Preprocessing(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))
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


def _catalog() -> dict[str, dict[str, Weights]]:
    catalog: dict[str, dict[str, Weights]] = {}

    def add(
        model: str,
        name: str,
        file: str,
        num_params: int,
        preprocessing: Preprocessing,
        metrics: dict[str, float],
        data: str = IMAGENET,
    ) -> None:
        digest = file.removesuffix(".pth").rpartition("-")[2]
        measured = MappingProxyType(metrics)
        catalog.setdefault(model, {})[name] = Weights(
            model, name, URL + file, digest, num_params, preprocessing, measured, data
        )

    for model, file, num_params, preprocessing, top1, top5 in _PUBLISHED:
        name = f"IMAGENET1K_V{len(catalog.get(model, ())) + 1}"
        add(model, name, file, num_params, preprocessing, {"acc@1": top1, "acc@5": top5})
    for model, file, num_params, miou, accuracy in _PUBLISHED_FOR_SEGMENTATION:
        name, metrics = "COCO_WITH_VOC_LABELS_V1", {"miou": miou, "pixel_acc": accuracy}
        add(model, name, file, num_params, _SEGMENTATION, metrics, COCO_AS_VOC)
    # Of the SSD detector's backbone: only `features` has values, the classifier's are NaN.
    features = "vgg16_features-amdegroot-88682ab5.pth"
    add("vgg16", "IMAGENET1K_FEATURES", features, 138_357_544, _CAFFE, {})
    return catalog


CATALOG: Mapping[str, Mapping[str, Weights]] = _catalog()
"""Model -> name of weights -> `Weights`."""
