"""A network of YOLO v1 as darknet's .cfg files describe it (github.com/pjreddie/darknet)."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvision.errors import UserError
from jaxvision.models.darknet_layers import ACTIVATIONS, parse_section
from jaxvision.models.yolov1 import YOLOv1, darknet_yolov1

INPUT_SHAPE = (448, 448, 3)
"""(h, w, c) of the pictures of the author's networks."""
_ALIASES = {"conv": "convolutional", "conn": "connected", "max": "maxpool", "network": "net"}
# The options of a layer that are known, with darknet's defaults, in the order of a layer's text.
_KNOWN = {
    "convolutional": {
        **{"batch_normalize": "0", "filters": "1", "size": "1", "stride": "1"},
        **{"pad": "0", "padding": "0", "flipped": "0", "activation": "logistic"},
    },
    "local": {"filters": "1", "size": "1", "stride": "1", "pad": "0", "activation": "logistic"},
    "connected": {"batch_normalize": "0", "output": "1", "activation": "logistic"},
    "maxpool": {"size": None, "stride": "1", "padding": None},
    "dropout": {"probability": "0.2"},
}


@dataclass(frozen=True)
class DarknetNetwork:
    """What a .cfg file says of a network of YOLO v1: `input_shape` is (h, w, c) of its pictures.

    `layers` are its sections in front of the head, as `DarknetLayers` takes them.
    """

    layers: tuple[str, ...]
    num_classes: int
    num_boxes: int
    grid_size: int
    bounded: bool = False
    input_shape: tuple[int, int, int] = INPUT_SHAPE

    @property
    def options(self) -> dict[str, Any]:
        """What to give to `get_model("yolov1", …)` for this network."""
        return {
            "layers": self.layers,
            "num_classes": self.num_classes,
            "num_boxes": self.num_boxes,
            "grid_size": self.grid_size,
            "bounded": self.bounded,
        }

    @property
    def model(self) -> YOLOv1:
        return darknet_yolov1(**self.options)

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint's meta says of the network, but for the names of its classes."""
        return {"model": "yolov1", "options": self.options, **darknet_meta(self.input_shape)}


def darknet_meta(input_shape: tuple[int, int, int] = (448, 448, 3)) -> dict[str, Any]:
    """What darknet's YOLO v1 does with a picture: RGB in [0, 1], its sides stretched to fit."""
    return {
        "task": "detection",
        "input_shape": input_shape,
        "mean": 0.0,
        "std": 1.0,
        "preprocessing": {"kind": "resize", "size": list(input_shape[:2])},
    }


def read_darknet_cfg(path: str | os.PathLike[str]) -> DarknetNetwork:
    """Returns the network of YOLO v1 that a .cfg file describes.

    `UserError` for what is none: another last section than [detection], a head that is not
    connected or does not have the numbers that [detection] asks for, unknown layers and options.

    >>> network = read_darknet_cfg("yolov1.cfg")  # doctest: +SKIP
    >>> model = get_model("yolov1", **network.options)  # doctest: +SKIP
    """
    path = Path(path)
    sections = _sections(path)
    kinds = [kind for kind, _ in sections]
    if len(sections) < 3 or kinds[0] != "net" or kinds[-2:] != ["connected", "detection"]:
        raise UserError(
            f"{path}: expected a network of YOLO v1, which begins with [net] and ends with "
            f"[connected] and [detection], got {', '.join(f'[{kind}]' for kind in kinds) or 'none'}"
        )
    net, detection = sections[0][1], sections[-1][1]

    def number(options: Mapping[str, str], name: str, default: int) -> int:
        try:
            return int(options.get(name, default))
        except ValueError as error:
            raise UserError(f"{path}: {name}={options[name]}: expected a number") from error

    shape = tuple(number(net, name, 0) for name in ("height", "width", "channels"))
    if min(shape) < 1:
        raise UserError(f"{path}: expected height, width and channels in [net], got {shape}")
    if number(detection, "coords", 1) != 4 or number(detection, "sqrt", 0) != 1:
        raise UserError(f"{path}: expected coords=4 and sqrt=1 in [detection], as YOLO v1 has them")
    network = DarknetNetwork(
        tuple(_layer(path, kind, options) for kind, options in sections[1:-2]),
        num_classes=number(detection, "classes", 1),
        num_boxes=number(detection, "num", 1),
        grid_size=number(detection, "side", 7),
        bounded=number(detection, "softmax", 0) != 0,
        input_shape=shape,
    )
    if min(network.num_classes, network.num_boxes, network.grid_size) < 1:
        raise UserError(f"{path}: expected classes, num and side of at least 1 in [detection]")
    _, head = parse_section(_layer(path, *sections[-2]))
    wanted = network.grid_size**2 * (5 * network.num_boxes + network.num_classes)
    expected = {"output": str(wanted), "activation": "linear"}
    if head != expected:
        raise UserError(
            f"{path}: expected the last [connected] to have {expected}, {network.num_boxes} boxes "
            f"and {network.num_classes} classes for each cell, got {head}"
        )
    return network


def _sections(path: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a .cfg file of darknet, got {error}") from error
    sections: list[tuple[str, dict[str, str]]] = []
    for number, line in enumerate(lines, start=1):
        line = "".join(line.split())  # darknet too takes all spaces out
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            sections.append((_ALIASES.get(line[1:-1], line[1:-1]), {}))
            continue
        name, equals, value = line.partition("=")
        if not equals or not sections:
            raise UserError(f"{path}: line {number}: expected [section] or name=value, got {line}")
        sections[-1][1].setdefault(name, value)  # the first one counts, as in darknet
    return sections


def _number(path: Path, kind: str, name: str, value: str) -> str:
    """Returns an option's number, the same for all ways to write it."""
    least = 1 if name in ("filters", "size", "stride", "output") else 0
    try:
        number = float(value) if name == "probability" else int(value)
    except ValueError:
        number = -1
    if not least <= number < (1 if name == "probability" else math.inf):
        raise UserError(f"{path}: [{kind}] {name}={value}: expected a number of at least {least}")
    return str(number)


def _layer(path: Path, kind: str, options: Mapping[str, str]) -> str:
    """Returns a section as one line, the same for all ways to write it."""
    if kind not in _KNOWN:
        raise UserError(f"{path}: expected {', '.join(f'[{k}]' for k in _KNOWN)}, got [{kind}]")
    known = _KNOWN[kind]
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"{path}: [{kind}] with {', '.join(unknown)}: not known of YOLO v1")
    values = {k: v if k == "activation" else _number(path, kind, k, v) for k, v in options.items()}
    values = {k: values.get(k, default) for k, default in known.items()}
    if kind == "maxpool":
        size = values["size"] = values["size"] or values["stride"]
        if values["padding"] == str(int(size) - 1):
            values["padding"] = None
    if values.get("pad", "0") != "0":
        values.pop("padding", None)
        if kind == "local" and values["size"] != "3":
            raise UserError(f"{path}: [local] with pad and size={values['size']}: expected 3")
    activation = values.get("activation", "linear")
    if activation not in ACTIVATIONS:
        raise UserError(f"{path}: expected one of {', '.join(ACTIVATIONS)}, got {activation}")
    silent = ("batch_normalize", "pad", "padding", "flipped")
    shown = {k: v for k, v in values.items() if v is not None and not (k in silent and v == "0")}
    return " ".join([kind, *(f"{k}={v}" for k, v in shown.items())])
