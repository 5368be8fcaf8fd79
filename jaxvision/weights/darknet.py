"""Darknet's .weights files of YOLO v1: read, written back, and for `load_weights`.

A file is a header and then nothing but float32 numbers, little-endian; only the .cfg says whose.
All is as in the author's code (github.com/pjreddie/darknet, src/parser.c), whose arrays are
[channels, height, width].
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.models.darknet_layers import DarknetLayers, parse_section
from jaxvision.models.initialization import abstract_variables, init_variables
from jaxvision.models.yolov1 import YOLOv1
from jaxvision.types import Variables
from jaxvision.weights.darknet_cfg import DarknetNetwork, read_darknet_cfg
from jaxvision.weights.rules import nested


class DarknetHeader(NamedTuple):
    """The beginning of a .weights file: the version that wrote it, and how many pictures it saw."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    @property
    def transposed(self) -> bool:
        """Files of old versions have the matrices of connected layers the other way round."""
        return self.major > 1000 or self.minor > 1000

    @property
    def dtype_of_seen(self) -> np.dtype:
        """64 bits from version 0.2 on, but for those with transposed matrices."""
        new = self.major * 10 + self.minor >= 2 and self.major < 1000 and self.minor < 1000
        return np.dtype("<u8" if new else "<u4")

    @property
    def size(self) -> int:
        """In bytes."""
        return 12 + self.dtype_of_seen.itemsize


class _Block(NamedTuple):
    """One array of a file: where it belongs, its shape there, and the order of its axes here."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def _blocks(network: DarknetNetwork, transposed: bool) -> Iterator[_Block]:
    """Yields the arrays of a file in its order."""
    try:
        params = abstract_variables(network.model, network.input_shape)["params"]
    except ValueError as error:
        raise UserError(
            f"expected layers that fit pictures of {network.input_shape}: {error}"
        ) from error
    layers = params.get("backbone", {})

    def norm(number: int) -> Iterator[_Block]:
        path, (k,) = ("backbone", f"bn{number}"), layers[f"bn{number}"]["scale"].shape
        for collection, name in (
            ("params", "scale"),
            ("batch_stats", "mean"),
            ("batch_stats", "var"),
        ):
            yield _Block((collection, *path, name), (k,), (0,))

    def matrix(path: tuple[str, ...], shape: tuple[int, int]) -> _Block:
        file = (shape, (0, 1)) if transposed else (shape[::-1], (1, 0))
        return _Block((*path, "kernel"), *file)

    for number, text in enumerate(network.layers, start=1):
        kind, options = parse_section(text)
        name = {"convolutional": "conv", "local": "local", "connected": "connected"}.get(kind)
        if name is None:
            continue
        path = ("params", "backbone", f"{name}{number}")
        shape = layers[f"{name}{number}"]["kernel"].shape
        normed = "batch_normalize" in options
        owner = ("params", "backbone", f"bn{number}") if normed else path
        if kind == "local":
            h, w, fh, fw, c, k = shape
            yield _Block((*path, "bias"), (k, h, w), (1, 2, 0))
            yield _Block((*path, "kernel"), (h, w, k, c, fh, fw), (0, 1, 4, 5, 3, 2))
            continue
        yield _Block((*owner, "bias"), (shape[-1],), (0,))
        if kind == "convolutional":
            if normed:
                yield from norm(number)
            fh, fw, c, k = shape
            flipped = ((c, fh, fw, k), (1, 2, 0, 3))
            file = flipped if "flipped" in options else ((k, c, fh, fw), (2, 3, 1, 0))
            yield _Block((*path, "kernel"), *file)
        else:
            yield matrix(path, shape)
            if normed:
                yield from norm(number)
    head = params["head"]["kernel"].shape
    yield _Block(("params", "head", "bias"), (head[1],), (0,))
    yield matrix(("params", "head"), head)


def read_darknet_weights(
    path: str | os.PathLike[str], network: DarknetNetwork
) -> tuple[dict[str, Any], DarknetHeader]:
    """Returns `network`'s variables from a .weights file, numpy's, and the file's header.

    Every number of the file is used exactly once; `UserError` where it has more of them or fewer.

    >>> network = read_darknet_cfg("yolov1.cfg")  # doctest: +SKIP
    >>> variables, header = read_darknet_weights("yolov1.weights", network)  # doctest: +SKIP
    """
    path = Path(path)
    header = _read_header(path)
    blocks = list(_blocks(network, header.transposed))
    wanted = header.size + 4 * sum(math.prod(block.shape) for block in blocks)
    found = path.stat().st_size
    if found != wanted:
        what = "it was cut off" if found < wanted else "it is longer"
        raise UserError(
            f"{path}: expected {wanted:,} bytes for this network, got {found:,}: {what}, or it is "
            f"of another network than the .cfg or the model says"
        )
    numbers = np.fromfile(path, "<f4", offset=header.size)
    entries: dict[tuple[str, ...], np.ndarray] = {}
    position = 0
    for block in blocks:
        end = position + math.prod(block.shape)
        array = numbers[position:end].reshape(block.shape).transpose(block.axes)
        entries[block.path] = np.array(array, np.float32, order="C")
        position = end
        if block.path[-1] == "var":
            tracked = (*block.path[:-1], "num_batches_tracked")
            entries[tracked] = np.zeros((), np.int32)
    return nested(entries), header


def write_darknet_weights(
    path: str | os.PathLike[str],
    network: DarknetNetwork,
    variables: Variables,
    header: DarknetHeader | None = None,
) -> None:
    """Writes a .weights file that darknet reads beside `network`'s .cfg.

    With the header that `read_darknet_weights` returned, the file is the same byte for byte.
    """
    header = DarknetHeader() if header is None else header
    seen = np.array([header.seen], header.dtype_of_seen)
    parts = [np.array(header[:3], "<i4"), seen]
    for block in _blocks(network, header.transposed):
        node: Any = variables
        for name in block.path:
            node = node[name]
        array = np.asarray(node, np.float32)
        expected = tuple(block.shape[axis] for axis in block.axes)
        if array.shape != expected:
            where = "/".join(block.path)
            raise UserError(f"{where}: expected the shape {expected}, got {array.shape}")
        parts.append(array.transpose(np.argsort(block.axes)).astype("<f4", order="C"))
    with open(path, "wb") as file:
        for part in parts:
            file.write(part.tobytes())


def _read_header(path: Path) -> DarknetHeader:
    try:
        with open(path, "rb") as file:
            start = file.read(20)
    except OSError as error:
        raise UserError(f"{path}: expected a .weights file of darknet, got {error}") from error
    if len(start) == 20:
        version = (int(n) for n in np.frombuffer(start, "<i4", 3))
        header = DarknetHeader(*version)
        if min(header) >= 0:
            seen = np.frombuffer(start, header.dtype_of_seen, 1, offset=12)[0]
            return header._replace(seen=int(seen))
    raise UserError(f"{path}: expected a .weights file of darknet, got {len(start)} bytes of none")


def load_darknet(
    name: str,
    path: Path,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    fresh_head: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Returns the variables of `get_model(name, num_classes=…, **options)` from a .weights file.

    The .cfg beside it, of the same name, says what is in it; without one it is what the model with
    these options is. `num_classes`, where the file has others, makes a fresh head, or is a
    `UserError` without `fresh_head`.
    """
    if num_classes is not None:
        options["num_classes"] = num_classes
    model = get_model(name, **options)
    asked = _network_of(name, model)
    cfg = path.with_suffix(".cfg")
    network = read_darknet_cfg(cfg) if cfg.is_file() else asked
    for field in ("layers", "num_boxes", "grid_size", "bounded"):
        if getattr(network, field) != getattr(asked, field):
            raise UserError(
                f"{cfg} describes another network than {name} with these options ({field} differs):"
                f" give **read_darknet_cfg({str(cfg)!r}).options to get_model and load_weights"
            )
    if network.num_classes != asked.num_classes and (num_classes is None or not fresh_head):
        fresh = f" to keep its head, or num_classes={asked.num_classes} for a fresh one"
        raise UserError(
            f"{path}: its head has {network.num_classes} classes, {name}'s {asked.num_classes}: "
            f"give num_classes={network.num_classes}{fresh if fresh_head else ''}"
        )
    variables, _ = read_darknet_weights(path, network)
    if network.num_classes != asked.num_classes:
        variables["params"]["head"] = _fresh_head(model, network.input_shape, seed)
        print(
            f"{name}: fresh head for {num_classes} classes (the file has {network.num_classes}); "
            f"all else is from {path.name}"
        )
    return variables


def _network_of(name: str, model: nn.Module) -> DarknetNetwork:
    if not (isinstance(model, YOLOv1) and isinstance(model.backbone, DarknetLayers)) or not (
        model.fully_connected
    ):
        raise UserError(
            f"darknet's .weights are for yolov1 and fast_yolov1 on the author's own layers, not "
            f"for {name} with these options"
        )
    return DarknetNetwork(
        model.backbone.layers, model.num_classes, model.num_boxes, model.grid_size, model.bounded
    )


def _fresh_head(model: nn.Module, input_shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Returns what `init_variables` draws for the head."""
    key = jax.random.key(seed)
    drawn = init_variables(
        model, key, input_shape, where=lambda path: path.startswith("params/head/")
    )
    return jax.tree.map(np.array, drawn["params"]["head"])
