"""Which parameters are trained and which stay as they are, chosen by their paths."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvision.errors import UserError

Path = tuple[str, ...]


def trainable_paths(params: Mapping[str, Any], trainable: str | Sequence[str]) -> frozenset[Path]:
    """Returns the paths of the leaves of `params` that one of the patterns matches.

    A leaf's path is written with slashes, `layer4/0/conv1/kernel`. In a pattern `*` stands for
    anything within one name, `**` for any number of names: `fc/**`, `layer4/**`, `**/bias`.
    Raises `UserError` for a pattern that matches nothing.

    >>> params = {"conv1": {"kernel": 1}, "fc": {"kernel": 2, "bias": 3}}
    >>> sorted("/".join(path) for path in trainable_paths(params, "fc/**"))
    ['fc/bias', 'fc/kernel']
    """
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    paths = {"/".join(path): path for path in flatten_dict(params)}
    chosen = set()
    for pattern in patterns:
        expression = re.compile(_expression(pattern))
        found = [path for name, path in paths.items() if expression.fullmatch(name)]
        if not found:
            tops = ", ".join(f"{top}/**" for top in params)
            raise UserError(f"trainable={pattern!r} matches no parameter; there are {tops}")
        chosen.update(found)
    if not chosen:
        raise UserError("trainable names no parameter: give at least one pattern, such as 'fc/**'")
    return frozenset(chosen)


def _expression(pattern: str) -> str:
    any_depth, any_name = re.escape("**"), re.escape("*")
    expression = re.escape(pattern).replace(any_depth + "/", "(?:.+/)?").replace(any_depth, ".+")
    return expression.replace(any_name, "[^/]*")


def split_params(
    params: Mapping[str, Any], trainable: Iterable[Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns `(trainable, frozen)`: two trees that together have the leaves of `params`."""
    trainable = frozenset(trainable)
    flat = flatten_dict(params)
    if missing := trainable - flat.keys():
        names = ", ".join("/".join(path) for path in sorted(missing))
        raise ValueError(f"these parameters are to be trained, but are not there: {names}")
    return (
        unflatten_dict({path: x for path, x in flat.items() if path in trainable}),
        unflatten_dict({path: x for path, x in flat.items() if path not in trainable}),
    )


def merge_params(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_params`."""
    return unflatten_dict({**flatten_dict(trainable), **flatten_dict(frozen)})


@contextmanager
def frozen_as_in_inference(params: Mapping[str, Any], trainable: Iterable[Path]) -> Iterator[None]:
    """Within this context a module whose parameters are all frozen is called with `train=False`.

    So frozen batch normalisation uses its stored statistics and leaves them as they are; moved by
    the new data, they would no longer fit the frozen weights. A module without parameters of its
    own is called as its parent is.
    """
    with_params = {path[:i] for path in flatten_dict(params) for i in range(len(path))}
    with_trained = {path[:i] for path in trainable for i in range(len(path))}
    frozen = with_params - with_trained

    def interceptor(call, args, kwargs, context):
        if kwargs.get("train") and context.module.path in frozen:
            kwargs = {**kwargs, "train": False}
        return call(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        yield
