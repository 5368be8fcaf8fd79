"""A detector that starts from a classifier's features."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxvision.errors import UserError
from jaxvision.types import Variables
from jaxvision.weights.rules import nested

VGG_CUT, MOBILENET_CUT = 23, 13
"""The layer of `features` where SSD takes VGG-16 apart, and SSDlite MobileNetV3."""
HIDDEN_LAYERS = {("classifier", "0"): "fc6", ("classifier", "3"): "fc7"}
"""VGG's hidden layers, which are its box head's too."""
HEADS = ("fc", "classifier")
SHOWN = 6


def put_backbone(variables: Variables, classifier: Variables) -> dict[str, Any]:
    """Returns a detector's variables, with the backbone, and its statistics, of a classifier.

    The detector is one on a pyramid or on VGG, an SSD, or `Localizer`; `classifier` are the
    variables of the network that is its backbone, as `load_weights` or a checkpoint have them:
    every array of the backbone comes from there, and what is left over there may only be its head,
    or what frozen batch normalisation does not have. It does not matter whether normalisation is
    frozen. VGG's hidden layers become fc6 and fc7, where they fit. What does not fit is a
    `UserError` that lists it.

    >>> from jaxvision.models import get_model, init_variables
    >>> key, shape = jax.random.key(0), (64, 64, 3)
    >>> resnet = init_variables(get_model("resnet18"), key, shape)
    >>> detector = get_model("fasterrcnn_resnet18_fpn", num_classes=3)
    >>> variables = put_backbone(init_variables(detector, key, shape), resnet)
    """
    given = {path[1:]: leaf for path, leaf in _flat(classifier)}
    flat = dict(_flat(variables))
    inside = {path: source for path in flat if (source := _source_of(path))}
    if not inside:  # Localizer's is the classifier itself
        inside = {path: path[2:] for path in flat if path[1] == "backbone"}
    if not inside:
        raise UserError("expected a detector's variables: there is no backbone in them")
    if not any(source[0] == "features" for source in inside.values()):
        # torchvision's MobileNet detectors have the layers of `features` themselves.
        given = {path[1:] if path[0] == "features" else path: x for path, x in given.items()}
    for path in flat:
        for location, name in HIDDEN_LAYERS.items():
            source = (*location, path[-1])
            here = path[1:-1] == ("roi_heads", "box_head", name) and source in given
            if here and np.shape(given[source]) == np.shape(flat[path]):
                inside[path] = source

    problems = []
    for path, source in inside.items():
        where = "/".join(source)
        if source not in given and path[-1] == "num_batches_tracked":
            continue  # of a normalisation that was frozen there
        if source not in given:
            problems.append(f"missing {where}")
        elif np.shape(given[source]) != np.shape(flat[path]):
            shapes = [list(np.shape(x)) for x in (flat[path], given[source])]
            problems.append(f"{where} should be {shapes[0]}, is {shapes[1]}")
        else:
            flat[path] = given[source]
    for path in given.keys() - set(inside.values()):
        if path[0] not in HEADS and path[-1] != "num_batches_tracked":
            problems.append(f"unexpected {'/'.join(path)}")
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = ", ".join(sorted(problems)[:SHOWN])
        raise UserError(f"expected a classifier with the detector's backbone: {listed}{more}")
    return nested(flat)


def _source_of(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns where a classifier has a leaf of a detector's backbone, None where it has none."""
    match path[1:]:
        case ("backbone", "body", *rest):
            return tuple(rest)
        case ("backbone", "features", layer, leaf):  # SSD's
            return ("features", layer, leaf)
        case ("backbone", "extra", "0", layer, leaf):
            return ("features", str(VGG_CUT + int(layer)), leaf)
        case ("backbone", "features", "0", layer, *rest):  # SSDlite's
            inside = ("block", "0") if int(layer) == MOBILENET_CUT else ()
            return ("features", layer, *inside, *rest)
        case ("backbone", "features", "1", "0", *rest):
            return ("features", str(MOBILENET_CUT), "block", *rest)
        case ("backbone", "features", "1", layer, *rest):
            return ("features", str(MOBILENET_CUT + int(layer)), *rest)
    return None


def _flat(tree: Mapping[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(tree))
    return [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
