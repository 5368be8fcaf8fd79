"""Weights without a run: the model, its variables, and the meta that a checkpoint would have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxvision.data.formats.voc import CLASS_NAMES as VOC_CLASSES
from jaxvision.models import get_model
from jaxvision.weights import find_weights, load_weights
from jaxvision.weights.catalog import CATALOG, options_needed
from jaxvision.weights.darknet_cfg import darknet_meta
from jaxvision.weights.preprocessing import AnyPreprocessing, Letterbox, ShortestSide, Stretch
from jaxvision.weights.rules import RULES

SEGMENTED_SIDES = {"longest": 2080, "multiple": 32}
"""Of pictures whose shorter side is resized to 520 for segmentation. torchvision knows no bound and
no padding; without them every aspect would be a compile, and a panorama all of the memory."""

DARKNET = ("yolov1", "fast_yolov1")
"""Models of the author's files, which no catalogue has, and which tell VOC's classes apart."""

Meta = dict[str, Any]


def load_published(
    name: str,
    weights: str | Path,
    class_names: Sequence[str] | None,
    options: Mapping[str, Any],
) -> tuple[nn.Module, Any, Meta]:
    """Returns `(model, variables, meta)`: see `Predictor.from_weights`."""
    expected, known = _expected(name, str(weights))
    options = {**options_needed(name, str(weights)), **options}
    background = int(name in RULES and RULES[name].background)
    if class_names is not None:
        options.setdefault("num_classes", len(class_names) + background)
    variables = load_weights(name, weights, fresh_head=False, **options)
    model = get_model(name, **options)
    num_classes = options.get("num_classes", len(known) + background) - background
    if class_names is None:
        published = num_classes == len(known)
        class_names = known if published else tuple(map(str, range(num_classes)))
    meta = {
        "model": name,
        "options": options,
        "class_names": tuple(class_names),
        **expected,
    }
    return model, variables, meta


def _expected(name: str, weights: str) -> tuple[Meta, tuple[str, ...]]:
    """Returns the task and what pictures have to be, and the classes of the published weights."""
    if name in DARKNET:
        return darknet_meta(), VOC_CLASSES
    first = next(iter(CATALOG.get(name, {})), "DEFAULT")
    published = weights in ("DEFAULT", *CATALOG.get(name, {}))
    found = find_weights(name, weights if published else first)
    prepared = found.preprocessing
    meta = {"task": found.task, "mean": prepared.mean, "std": prepared.std}
    return {**meta, **_preparation(prepared)}, found.class_names


def _preparation(prepared: AnyPreprocessing) -> Meta:
    if isinstance(prepared, Letterbox | Stretch):
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
