"""Weights without a run: the model, its variables, and the meta that a checkpoint would have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxvision.data.formats.voc import CLASS_NAMES as VOC_CLASSES
from jaxvision.models import get_model
from jaxvision.models.zoo import MODELS
from jaxvision.weights import find_weights, load_weights
from jaxvision.weights.catalog import (
    CATALOG,
    Letterbox,
    Preprocessing,
    ShortestSide,
    options_needed,
)
from jaxvision.weights.rules import RULES

SEGMENTED_SIDES = {"longest": 2080, "multiple": 32}
"""Of pictures whose shorter side is resized to 520 for segmentation. torchvision knows no bound and
no padding; without them every aspect would be a compile, and a panorama all of the memory."""

DARKNET = ("yolov1", "fast_yolov1")
"""Models of the author's files, which no catalog has: 448 x 448, VOC's classes, [0, 1] as it is."""

Meta = dict[str, Any]


def load_published(
    name: str,
    weights: str | Path,
    class_names: Sequence[str] | None,
    options: Mapping[str, Any],
) -> tuple[nn.Module, Any, Meta]:
    """Returns `(model, variables, meta)`: see `Predictor.from_weights`."""
    task, prepared, known = _expected(name, str(weights))
    options = {**options_needed(name, str(weights)), **options}
    background = int(name in RULES and RULES[name].background)
    if class_names is not None:
        options.setdefault("num_classes", len(class_names) + background)
    variables = load_weights(name, weights, **options)
    model = get_model(name, **options)
    num_classes = options.get("num_classes", len(known) + background) - background
    if class_names is None:
        published = num_classes == len(known)
        class_names = known if published else tuple(map(str, range(num_classes)))
    meta = {
        "model": name,
        "options": options,
        "task": task,
        "class_names": tuple(class_names),
        "mean": prepared.mean,
        "std": prepared.std,
        **_preparation(prepared),
    }
    return model, variables, meta


def _expected(
    name: str, weights: str
) -> tuple[str, Preprocessing | Letterbox | ShortestSide, tuple[str, ...]]:
    """Returns the task, what pictures have to be, and the classes of the published weights."""
    if name in DARKNET and name not in CATALOG and name in MODELS:
        letterbox = Letterbox((448, 448), fill=127, center=True, std=(1.0, 1.0, 1.0))
        return "detection", letterbox, VOC_CLASSES
    first = next(iter(CATALOG.get(name, {})), "DEFAULT")
    published = weights in ("DEFAULT", *CATALOG.get(name, {}))
    found = find_weights(name, weights if published else first)
    return found.task, found.preprocessing, found.class_names


def _preparation(prepared: Preprocessing | Letterbox | ShortestSide) -> Meta:
    if isinstance(prepared, Letterbox):
        return {"input_shape": (*prepared.size, 3), "preprocessing": prepared.as_meta()}
    if isinstance(prepared, ShortestSide):
        side = prepared.shortest
        return {"input_shape": (side, side, 3), "preprocessing": prepared.as_meta()}
    if prepared.crop_size is None:
        side = prepared.resize_size
        preprocessing = {"kind": "shorter_side", "shortest": side, **SEGMENTED_SIDES}
        preprocessing["antialias"] = prepared.antialias
        return {"input_shape": (side, side, 3), "preprocessing": preprocessing}
    preprocessing = {
        "resize_size": prepared.resize_size,
        "crop_size": prepared.crop_size,
        "interpolation": prepared.interpolation,
        "antialias": prepared.antialias,
    }
    side = prepared.crop_size
    return {"input_shape": (side, side, 3), "preprocessing": preprocessing}
