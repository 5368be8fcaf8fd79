"""How the leaves of a linen model are called and laid out in torch, for each family of models.

Modules have torch's names already, nested where torch has dots, so a rule is about the last name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxvision.errors import UserError


@dataclass(frozen=True)
class Rules:
    """What conversion must know of a family, under torch's names.

    `heads` are the layers that tell the classes apart; behind the first come those of other levels,
    or one that only the loss in training looks at. Where the first does so for several anchors,
    `boxes` is the layer that has four outputs for each of these. `bgr_stem` is a first convolution
    that sees the colours in the order blue, green, red there: here pictures are RGB, and conversion
    turns the order of the weights' input channels around, both ways and exactly. With a
    `background` the network has one class more than there are kinds of objects: its class 0.
    `keypoints` is the layer that tells the keypoints apart, a transposed convolution.
    `older_names` are patterns of names that files from earlier versions of torchvision have, and
    what they are now.
    """

    heads: tuple[str, ...]
    boxes: str | None = None
    bgr_stem: str | None = None
    background: bool = False
    keypoints: str | None = None
    older_names: tuple[tuple[str, str], ...] = ()

    @property
    def head(self) -> str:
        return self.heads[0]

    def renamed(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the tensors under the names that they have now."""
        tensors = {}
        for name, tensor in state_dict.items():
            for pattern, now in self.older_names:
                name = re.sub(pattern, now, name)
            tensors[name] = tensor
        return tensors


_RESNET, _SEQUENTIAL = Rules(("fc",)), Rules(("classifier.6",))
_SEGMENTER = Rules(("classifier.4", "aux_classifier.4"))
_YOLOX_HEADS = tuple(f"head.cls_preds.{level}" for level in range(3))
_YOLOX = Rules(_YOLOX_HEADS, bgr_stem="backbone.backbone.stem.conv.conv")
_PYRAMID = (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2")
_RCNN = Rules(
    ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
    background=True,
    older_names=(
        (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
        _PYRAMID,
    ),
)
_MASK_RCNN = Rules(
    # As the tutorial does it, all of the mask predictor is fresh for other classes.
    (*_RCNN.heads, *(f"roi_heads.mask_predictor.{x}" for x in ("conv5_mask", "mask_fcn_logits"))),
    background=True,
    older_names=(
        *_RCNN.older_names,
        *(
            (rf"^(roi_heads\.mask_head)\.mask_fcn{i + 1}\.(weight|bias)$", rf"\1.{i}.0.\2")
            for i in range(4)
        ),
    ),
)
_KEYPOINT_RCNN = replace(_RCNN, keypoints="roi_heads.keypoint_predictor.kps_score_lowres")
_SIGMOID_DETECTOR = {
    "heads": ("head.classification_head.cls_logits",),
    "boxes": "head.regression_head.bbox_reg",
    "background": True,
}
_FCOS = Rules(**_SIGMOID_DETECTOR, older_names=(_PYRAMID,))
_RETINANET = Rules(
    **_SIGMOID_DETECTOR,
    older_names=(
        *((rf"^(head\.\w+\.conv)\.{2 * i}\.(weight|bias)$", rf"\1.{i}.0.\2") for i in range(4)),
        _PYRAMID,
    ),
)


def _ssd(last: str = "") -> Rules:
    """`last` is what follows the number of a map in the name of its last layer."""
    layer = "head.{}_head.module_list.{}" + last
    classes = tuple(layer.format("classification", i) for i in range(6))
    return Rules(classes, boxes=layer.format("regression", 0), background=True)


RULES: dict[str, Rules] = {
    "alexnet": _SEQUENTIAL,
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), _SEQUENTIAL),
    **dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"), _SEQUENTIAL),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _RESNET),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), _RESNET),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), _RESNET),
    **dict.fromkeys(("fcn_resnet50", "fcn_resnet101"), _SEGMENTER),
    **dict.fromkeys(("deeplabv3_resnet50", "deeplabv3_resnet101"), _SEGMENTER),
    **dict.fromkeys(("mobilenet_v3_large", "mobilenet_v3_small"), Rules(("classifier.3",))),
    **dict.fromkeys(("fasterrcnn_resnet18_fpn", "fasterrcnn_resnet50_fpn"), _RCNN),
    **dict.fromkeys(("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_vgg16"), _RCNN),
    "fasterrcnn_mobilenet_v3_large_fpn": _RCNN,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _RCNN,
    **dict.fromkeys(("fastrcnn_resnet18_fpn", "fastrcnn_resnet50_fpn", "fastrcnn_vgg16"), _RCNN),
    **dict.fromkeys(("maskrcnn_resnet18_fpn", "maskrcnn_resnet50_fpn"), _MASK_RCNN),
    "maskrcnn_resnet50_fpn_v2": _MASK_RCNN,
    **dict.fromkeys(("keypointrcnn_resnet18_fpn", "keypointrcnn_resnet50_fpn"), _KEYPOINT_RCNN),
    **dict.fromkeys(("fcos_resnet18_fpn", "fcos_resnet50_fpn"), _FCOS),
    **dict.fromkeys(("retinanet_resnet18_fpn", "retinanet_resnet50_fpn"), _RETINANET),
    "retinanet_resnet50_fpn_v2": _RETINANET,
    "ssd300_vgg16": _ssd(),
    "ssdlite320_mobilenet_v3_large": _ssd(".1"),
    **dict.fromkeys(("yolox_nano", "yolox_tiny", "yolox_s"), _YOLOX),
    **dict.fromkeys(("yolox_m", "yolox_l", "yolox_x"), _YOLOX),
    "yolox_darknet53": Rules(_YOLOX_HEADS, bgr_stem="backbone.backbone.stem.0.conv"),
}

INPUT_SHAPE = (1, 320, 320, 3)
"""Of the pictures with which a model is traced to learn its leaves: large enough for all."""


def find_rules(name: str) -> Rules:
    """Returns the rules of the model called `name`; `UserError` where torchvision has no such."""
    if name not in RULES:
        raise UserError(
            f"no conversion from or to torch is known for the model {name!r}; there is one for "
            f"{', '.join(RULES)}"
        )
    return RULES[name]


@dataclass(frozen=True)
class Leaf:
    """One array: where it is in the variables, and its name and shape in a state_dict."""

    collection: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    torch_name: str
    torch_shape: tuple[int, ...]
    bgr: bool = False
    """Whether torch's input channels are blue, green, red, once or several times over."""

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Lays out torch's array as ours: a copy, contiguous, of this leaf's dtype."""
        if self.bgr:
            array = _colours_reversed(array)
        with np.errstate(over="ignore", invalid="ignore"):  # float64 that was asked to be cast
            return np.array(
                _transposed(array, self.path[-1], to_torch=False), self.dtype, order="C"
            )

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The inverse: a copy, contiguous; counters are int64 in torch."""
        dtype = np.int64 if self.dtype.kind == "i" else None
        array = _transposed(array, self.path[-1], to_torch=True)
        return np.array(_colours_reversed(array) if self.bgr else array, dtype, order="C")


def leaves(variables: Mapping[str, Any]) -> Iterator[Leaf]:
    """Yields the leaves of a linen model's variables, or of what `jax.eval_shape` says of them."""
    for collection, tree in variables.items():
        names = TORCH_NAMES.get(collection)
        if names is None:
            raise UserError(f"no conversion to torch is known for the collection {collection!r}")
        for path, leaf in _walk(tree, ()):
            if path[-1] not in names:
                where = "/".join((collection, *path))
                raise UserError(f"no conversion to torch is known for {where}")
            shape = tuple(leaf.shape)
            torch_shape = tuple(shape[i] for i in _axes(path[-1], len(shape), to_torch=True))
            torch_name = ".".join((*path[:-1], names[path[-1]]))
            yield Leaf(collection, path, shape, np.dtype(leaf.dtype), torch_name, torch_shape)


TORCH_NAMES: dict[str, dict[str, str]] = {
    "params": {
        "kernel": "weight",
        "bias": "bias",
        "scale": "weight",
        "scale_weight": "scale_weight",  # SSD's, of conv4_3
    },
    "batch_stats": {
        "mean": "running_mean",
        "var": "running_var",
        "num_batches_tracked": "num_batches_tracked",
        "scale": "weight",  # of frozen batch normalisation
        "bias": "bias",
    },
}
_KERNEL_AXES: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # dimensions: (from torch, to torch)
    2: ((1, 0), (1, 0)),  # [k, c] <-> [c, k]
    # OIHW <-> HWIO. A ConvTranspose2d's IOHW too: our kernel is that of the convolution which it
    # transposes, so its inputs come last as a convolution's outputs do, and nothing is flipped.
    4: ((2, 3, 1, 0), (3, 2, 0, 1)),
}


def _axes(name: str, ndim: int, *, to_torch: bool) -> tuple[int, ...]:
    same = tuple(range(ndim))
    return _KERNEL_AXES.get(ndim, (same, same))[to_torch] if name == "kernel" else same


def _transposed(array: np.ndarray, name: str, *, to_torch: bool) -> np.ndarray:
    return array.transpose(_axes(name, array.ndim, to_torch=to_torch))


def _colours_reversed(weight: np.ndarray) -> np.ndarray:
    """Of a Conv2d's weight, [k, c, fh, fw], the input channels in each three the other way round.

    YOLOX's stem joins four pixels, each with its three colours.
    """
    k, c, fh, fw = weight.shape
    return weight.reshape(k, c // 3, 3, fh, fw)[:, :, ::-1].reshape(k, c, fh, fw)


def _walk(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, (*path, name))
        else:
            yield (*path, name), value


def nested(entries: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Returns the tree of dictionaries whose leaves are at these paths."""
    tree: dict[str, Any] = {}
    for path, value in entries.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree
