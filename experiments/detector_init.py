"""What a detector on a backbone starts from: a detector, or only a classifier's features."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model, init_variables
from jaxvision.train.checkpoint import load_checkpoint, load_meta
from jaxvision.types import Variables
from jaxvision.weights import find_weights, load_weights, put_backbone, read_torch
from jaxvision.weights.catalog import CATALOG
from jaxvision.weights.rules import INPUT_SHAPE

PARTS = ("backbone", "rpn", "roi_heads")
BODY_OPTIONS = ("width", "stem", "stage_sizes", "widths", "hidden")
"""Of a detector, those that its backbone has as a classifier too."""
SHOWN = 4


class Start(NamedTuple):
    """The first variables, and by what mean and standard deviation pictures are normalised."""

    variables: Variables
    mean: Any
    std: Any


def drawn_variables(
    model: str,
    options: Mapping[str, Any],
    seed: int,
    where: Callable[[str], bool] | None = None,
) -> Variables:
    network = get_model(model, **options)
    return init_variables(network, jax.random.key(seed), INPUT_SHAPE[1:], where=where)


def _around_the_classifier(path: str) -> bool:
    """Whether a leaf of a detector or a localizer is not of the classifier that it is built on."""
    _, part, *inside = path.split("/")
    of_pyramid = inside[0] in ("fpn", "extra", "features")
    return part != "backbone" or of_pyramid or inside[-1] == "num_batches_tracked"


def start_from(
    init: str, model: str, options: Mapping[str, Any], *, backbone: str, seed: int
) -> Start:
    """Returns the variables of `get_model(model, **options)` that `--init` says.

    `init` is the folder of a run, a file of torch's or the name of published weights: of this
    detector, or of a classifier that is its `backbone`, such as IMAGENET1K_V1. A detector whose
    classes are others keeps all but the layers of the classes; of another detector of the family
    comes every part that both have, and to a localizer, or where the pyramids are of other levels,
    the network below a detector's pyramid. What does not fit is a `UserError`.
    """
    draw = partial(drawn_variables, model, options, seed)
    if Path(init).is_dir():
        _, given, meta = load_checkpoint(init)
        mean, std = meta.get("mean", 0.0), meta.get("std", 1.0)
        inside = given["params"].get("backbone", {})
        if "body" in inside and model == "localizer":
            body = {kind: given[kind]["backbone"]["body"] for kind in ("params", "batch_stats")}
            return Start(put_backbone(draw(_around_the_classifier), body), mean, std)
        if inside:
            wanted = abstract_variables(get_model(model, **options), INPUT_SHAPE[1:])
            if "body" in inside and _maps(wanted["params"]["backbone"]) != _maps(inside):
                print(f"of {init} the network below the pyramid: {model} has another above it")
                body = {kind: given[kind]["backbone"]["body"] for kind in ("params", "batch_stats")}
                return Start(put_backbone(draw(_around_the_classifier), body), mean, std)
            return Start(shared(wanted, given, init, draw), mean, std)
        return Start(put_backbone(draw(_around_the_classifier), given), mean, std)
    if is_detector(init, model):
        given = load_weights(model, init, seed=seed, **options)
        published = find_weights(model, next(iter(CATALOG[model]))) if model in CATALOG else None
        normal = (published or find_weights(backbone, "DEFAULT")).preprocessing
        return Start(given, normal.mean, normal.std)
    of_backbone = options.get("backbone_options", options)
    body = {name: of_backbone[name] for name in BODY_OPTIONS if name in of_backbone}
    classifier = load_weights(backbone, init, num_classes=0, **body)
    published = init if init in CATALOG.get(backbone, {}) else "DEFAULT"
    normal = find_weights(backbone, published).preprocessing
    return Start(put_backbone(draw(_around_the_classifier), classifier), normal.mean, normal.std)


def _maps(backbone: Mapping[str, Any]) -> Any:
    """Returns the layers of the pyramid, whatever their shapes."""
    return jax.tree.structure(dict(backbone.get("fpn", {})))


def options_of_run(init: str | None, model: str) -> dict[str, Any] | None:
    """Returns the options of the run in the folder `init`, if it is one of `model`."""
    if init is None or not Path(init).is_dir():
        return None
    meta = load_meta(init)
    return dict(meta["options"]) if meta["model"] == model else None


def body_of(name: str, variables: Variables) -> str:
    """Returns the classifier that the model `name` is, or is built on below its pyramid."""
    inside = variables["params"].get("backbone")
    if inside is None:
        return name
    if "body" not in inside:
        raise UserError(
            f"expected a classifier or a detector with a pyramid, as Faster R-CNN's, got {name}"
        )
    body = name.partition("_")[2].removesuffix("_v2").removesuffix("_fpn")
    return body.removesuffix("_320")


def shared(
    wanted: Variables,
    given: Variables,
    origin: str,
    draw: Callable[[Callable[[str], bool]], Variables],
) -> dict[str, Any]:
    """Returns variables of the shapes `wanted`: from `given` the parts that it has too.

    A layer whose shape is another, as that of the classes is for other classes, is drawn, which is
    printed; a backbone that does not fit is a `UserError`.
    """
    old = dict(jax.tree_util.tree_flatten_with_path(dict(given))[0])
    leaves, tree = jax.tree_util.tree_flatten_with_path(dict(wanted))
    fits = [path in old and np.shape(old[path]) == leaf.shape for path, leaf in leaves]
    if all(fits):
        return jax.tree.unflatten(tree, [old[path] for path, _ in leaves])
    names = ("/".join(key.key for key in path) for path, _ in leaves)
    fresh = [name for name, fit in zip(names, fits, strict=True) if not fit]
    wrong = [name for name in fresh if name.split("/")[1] == "backbone"]
    if wrong:
        raise UserError(
            f"{origin}: expected a detector with the same backbone, got another "
            f"{', '.join(wrong[:SHOWN])}: give the flags that it has, as --width, --fpn-features"
        )
    more = f" and {len(fresh) - SHOWN} more" if len(fresh) > SHOWN else ""
    print(f"fresh, because {origin} has none that fits: {', '.join(fresh[:SHOWN])}{more}")
    drawn = jax.tree.leaves(dict(draw(set(fresh).__contains__)))
    kept = [
        old[path] if fit else new for (path, _), fit, new in zip(leaves, fits, drawn, strict=True)
    ]
    return jax.tree.unflatten(tree, kept)


def check_anchor_sizes(model: str, options: Mapping[str, Any]) -> None:
    """Refuses other than one of --anchor-sizes for each map of a pyramid, or one more, for the pool
    of the last."""
    network = get_model(model, **options)
    backbone, sizes = network.backbone, network.rpn.anchor_sizes
    count = len(backbone.stages)
    if len(sizes) != count + backbone.fpn.last_level_max_pool:
        listed = " ".join("/".join(map(str, level)) for level in sizes)
        raise UserError(
            f"expected {count} or {count + 1} --anchor-sizes, one for each map of {model}, got "
            f"{len(sizes)}: {listed}"
        )


def is_detector(init: str, model: str) -> bool:
    """Whether a file, or a published name, holds a whole detector and not a classifier."""
    if not Path(init).is_file():
        return init in CATALOG.get(model, {})
    return any(name.startswith(("roi_heads.", "head.")) for name in read_torch(init))
