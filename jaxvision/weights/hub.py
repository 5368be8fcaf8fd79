"""Variables of a model from a file, an address or the name of published weights."""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import jax
import numpy as np

from jaxvision.data.download import download
from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.models.initialization import init_variables
from jaxvision.weights.catalog import CATALOG, find_weights, options_needed
from jaxvision.weights.convert import count_by_shape, count_classes, from_torch, template_leaves
from jaxvision.weights.darknet import load_darknet
from jaxvision.weights.rules import INPUT_SHAPE, Rules, find_rules
from jaxvision.weights.torch_file import read_torch

CACHE_VARIABLE = "JAXVISION_WEIGHTS"
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")
"""torch's convention: the beginning of the file's sha256 behind the last dash of its name."""


def load_weights(
    name: str,
    weights: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    key: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
    fresh_head: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Returns variables for `get_model(name, num_classes=num_classes, **options)`.

    `weights` is a file (.pth, .pt, .safetensors), an http(s) URL of one, or the name of published
    weights: "IMAGENET1K_V1", "DEFAULT" (`find_weights` has their preprocessing and classes). What
    is fetched stays in `cache_dir`, by default $JAXVISION_WEIGHTS or ~/.cache/jaxvision/weights,
    and is checked against its known hash or the one in its name. `key` is `read_torch`'s.

    With another `num_classes` than the file's, the head is a fresh one, drawn with `seed`, and all
    else is kept, unless `fresh_head` is False: it is then a `UserError`. With `features_only=True`,
    `num_classes=0` or `aux_loss=False` what those models lack is left out. Either is said in one
    printed line. Otherwise every tensor must be used, as in `from_torch`. For "yolov1" and
    "fast_yolov1" a file that ends with .weights is darknet's; a .cfg of the same name beside it
    must describe the model.

    >>> variables = load_weights("resnet18", "DEFAULT", num_classes=2)  # doctest: +SKIP
    resnet18: fresh head for 2 classes (the file has 1000); all else is from resnet18-f37072fd.pth
    """
    if str(weights).endswith(".weights"):
        path = _find_file(name, weights, cache_dir, progress)
        classes = {"num_classes": num_classes, "fresh_head": fresh_head}
        return load_darknet(name, path, seed=seed, **classes, **options)
    rules = find_rules(name)
    _say_what_they_need(name, str(weights), options)
    path = _find_file(name, weights, cache_dir, progress)
    state_dict = rules.renamed(read_torch(path, key=key))
    try:
        drawn = seed if fresh_head else None
        variables = _fit(name, rules, state_dict, num_classes, drawn, path.name, options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    broken = [where for where, leaf in _flat(variables) if not _finite(leaf)]
    if broken:
        listed = ", ".join(broken[:4]) + (", …" if len(broken) > 4 else "")
        print(f"{name}: warning: {path.name} has values that are not finite in {listed}")
    return variables


def _say_what_they_need(name: str, weights: str, options: dict[str, Any]) -> None:
    wanted = options_needed(name, weights)
    lacking = {k: v for k, v in wanted.items() if options.get(k, object()) != v}
    if lacking:
        listed = ", ".join(f"{option}={value!r}" for option, value in lacking.items())
        print(f"{name}: {weights} was trained with {listed}: give get_model that too")


def _fit(
    name: str,
    rules: Rules,
    state_dict: Mapping[str, np.ndarray],
    num_classes: int | None,
    seed: int | None,
    file: str,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Returns the variables; `seed` draws a fresh head where it needs one, without it is none."""
    in_file = count_classes(name, state_dict)
    if num_classes is not None:
        options = {**options, "num_classes": num_classes}
    if in_file is None:
        return from_torch(name, state_dict, **options)
    wanted = {leaf.torch_name: leaf.torch_shape for leaf in template_leaves(name, **options)}
    heads = [head for head in rules.heads if f"{head}.weight" in wanted]
    if any(f"{head}.weight" in state_dict for head in rules.heads if head not in heads):
        # All of the file must fit the whole model, so that nothing else goes unnoticed.
        full = {k: v for k, v in options.items() if k not in ("features_only", "aux_loss")}
        from_torch(name, state_dict, **{**full, "num_classes": in_file})
        dropped = [tensor for tensor in state_dict if tensor not in wanted]
        print(f"{name}: left out of {file}: {', '.join(dropped)}")
        state_dict = {tensor: state_dict[tensor] for tensor in state_dict if tensor in wanted}
    expected = count_by_shape(name, wanted) if heads else in_file
    keypoints = _keypoints_in_file(rules, state_dict, wanted)
    if in_file == expected and not keypoints:
        return from_torch(name, state_dict, **options)
    if in_file != expected and seed is None:
        raise UserError(
            f"its head has {in_file} classes, expected {expected}: give num_classes={in_file}, or "
            f"{in_file - rules.background} class names"
        )
    if in_file != expected and num_classes is None:
        raise UserError(
            f"its head has {in_file} classes, {name}'s {expected}: give num_classes={in_file} to "
            f"keep its head, or num_classes={expected} for a fresh one"
        )
    if keypoints and seed is None:
        count = keypoints["num_keypoints"]
        raise UserError(f"its head has {count} keypoints: give num_keypoints={count}")
    variables = from_torch(name, state_dict, **{**options, "num_classes": in_file, **keypoints})
    said, fresh_ones = [], []
    if in_file != expected:
        fresh_ones += heads
        said.append(f"{expected} classes (the file has {in_file})")
    if keypoints:
        fresh_ones.append(rules.keypoints)
        count = wanted[f"{rules.keypoints}.weight"][1]
        said.append(f"{count} keypoints (the file has {keypoints['num_keypoints']})")
    for head, fresh in zip(fresh_ones, _fresh_heads(name, fresh_ones, seed, options), strict=True):
        *parents, last = head.split(".")
        _at(variables["params"], parents)[last] = fresh
    print(f"{name}: fresh head for {' and '.join(said)}; all else is from {file}")
    return variables


def _keypoints_in_file(
    rules: Rules, state_dict: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Returns the option of a network with the file's keypoints, where it has other ones."""
    weight = f"{rules.keypoints}.weight"
    if weight not in state_dict or weight not in wanted:
        return {}
    count = np.shape(state_dict[weight])[1]
    return {} if count == wanted[weight][1] else {"num_keypoints": count}


def _fresh_heads(
    name: str, heads: list[str], seed: int, options: dict[str, Any]
) -> list[dict[str, np.ndarray]]:
    """Returns what `init_variables` draws for the heads."""
    inside = tuple(f"params/{head.replace('.', '/')}/" for head in heads)
    drawn = init_variables(
        get_model(name, **options),
        jax.random.key(seed),
        INPUT_SHAPE[1:],
        where=lambda path: path.startswith(inside),
    )
    return [jax.tree.map(np.array, _at(drawn["params"], head.split("."))) for head in heads]


def _at(tree: Any, path: list[str]) -> Any:
    return functools.reduce(lambda node, name: node[name], path, tree)


def _find_file(
    name: str,
    weights: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> Path:
    if isinstance(weights, str) and weights.startswith(("http://", "https://")):
        return fetch(weights, cache_dir, progress=progress)
    path = Path(weights)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(
            f"{path} is a folder: expected a file; load a run with load_checkpoint and a folder of "
            f"weights with load_variables, or make it a file with jaxvision convert"
        )
    text = str(weights)
    if text == "DEFAULT" or any(text in known for known in CATALOG.values()):
        found = find_weights(name, text)
        return fetch(found.url, cache_dir, progress=progress, sha256_prefix=found.sha256_prefix)
    published = ", ".join([*CATALOG.get(name, ()), "DEFAULT"])
    raise UserError(
        f"no such file: {path}; expected a file, a URL or the name of published weights "
        f"({published})"
    )


def fetch(
    url: str,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    sha256_prefix: str | None = None,
) -> Path:
    """Returns the file at `url`, fetched into the cache unless it is there already.

    How its sha256 begins, `sha256_prefix` or what is in a name such as resnet18-f37072fd.pth, is
    checked each time; a file that does not have it is deleted. Where neither is known nothing is
    checked but that all of the file came.
    """
    folder = cache_folder(cache_dir)
    file_name = PurePosixPath(unquote(urlparse(url).path)).name
    if file_name in ("", ".", "..") or not file_name.isprintable() or "\\" in file_name:
        raise UserError(f"expected a URL that ends with the name of a file, got {url}")
    hashed = _HASH_IN_NAME.search(file_name)
    if not hashed:
        # Two sites may have a model.pth: without a hash in the name, the address tells them apart.
        folder = folder / hashlib.sha256(url.encode()).hexdigest()[:12]
    path = download(url, folder / file_name, progress=progress)
    expected = sha256_prefix or (hashed and hashed[1])
    if expected:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(expected):
            path.unlink()
            raise UserError(
                f"{url}: expected a sha256 that begins with {expected}, got {digest}: the file "
                f"was deleted; try again, and if it happens again do not trust that address"
            )
    return path


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns `cache_dir`, else $JAXVISION_WEIGHTS, else ~/.cache/jaxvision/weights."""
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "jaxvision" / "weights"


def _flat(variables: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    paths, _ = jax.tree_util.tree_flatten_with_path(variables)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in paths]


def _finite(array: np.ndarray) -> bool:
    return bool(np.isfinite(array).all())
