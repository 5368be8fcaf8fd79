"""Between a torch state_dict and a linen model's variables, both ways and exactly.

The model's own tree decides: each of its leaves takes one tensor, and every tensor must be taken.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model
from jaxvision.types import Variables
from jaxvision.weights.rules import INPUT_SHAPE, Leaf, find_rules, leaves, nested

SHOWN = 12
"""At most this many differences are listed."""
_EXACT_IN_FLOAT32 = frozenset(
    [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
)


def from_torch(
    name: str, state_dict: Mapping[str, Any], *, cast: bool = False, **options: Any
) -> dict[str, Any]:
    """Returns the variables of `get_model(name, **options)` made from a torch model's state_dict.

    `state_dict` maps names to arrays, as `read_torch` returns them. Every tensor is used exactly
    once: a missing, an unexpected one or one of another shape or dtype is a `UserError` that lists
    them all. Only `num_batches_tracked` may be missing, as in files from before torch 0.4.1, or be
    there where frozen batch normalisation has none. Names from earlier torchvisions are known.
    float16 and bfloat16 become float32, which is exact; float64 must be exact too unless `cast`.
    The arrays are numpy's, copies, and float32 bits (NaNs, -0.0) stay as they are.

    >>> variables = from_torch("resnet18", read_torch("resnet18-f37072fd.pth"))  # doctest: +SKIP
    """
    template = template_leaves(name, **options)
    state_dict = find_rules(name).renamed(state_dict)
    wanted = {leaf.torch_name for leaf in template}
    problems = []
    found: dict[tuple[str, ...], np.ndarray] = {}
    for leaf in template:
        path = (leaf.collection, *leaf.path)
        if leaf.torch_name not in state_dict:
            if leaf.path[-1] == "num_batches_tracked":
                found[path] = np.zeros((), leaf.dtype)
            else:
                problems.append(f"  missing     {leaf.torch_name} {_spec(leaf)}")
            continue
        array = np.asarray(state_dict[leaf.torch_name])
        problem = _misfit(leaf, array, cast)
        if problem:
            problems.append(f"  differs     {leaf.torch_name}: {problem}")
        else:
            found[path] = leaf.from_torch(array)
    for other, value in state_dict.items():
        layer, _, last = other.rpartition(".")
        if last == "num_batches_tracked" and f"{layer}.running_mean" in wanted:
            continue  # frozen batch normalisation has no use for it, in torchvision neither
        if other not in wanted:
            array = np.asarray(value)
            problems.append(f"  unexpected  {other} {array.dtype}[{_sizes(array.shape)}]")
    if problems:
        raise UserError(_listed(f"the tensors do not fit the model {name}:", problems))
    return nested(found)


def to_torch(name: str, variables: Variables, **options: Any) -> dict[str, np.ndarray]:
    """Returns the state_dict of `get_model(name, **options)` with these variables: arrays by name.

    The exact inverse of `from_torch`, checked as strictly. float32 stays float32; in the order
    of the names. Write it with `write_torch` or `write_safetensors`.
    """
    template = {(leaf.collection, *leaf.path): leaf for leaf in template_leaves(name, **options)}
    given = {(leaf.collection, *leaf.path): leaf for leaf in leaves(_arrays(variables))}
    problems = []
    for path in sorted(template.keys() | given.keys()):
        want, have, where = template.get(path), given.get(path), "/".join(path)
        if have is None:
            problems.append(f"  missing     {where}")
        elif want is None:
            problems.append(f"  unexpected  {where}")
        elif (want.shape, want.dtype) != (have.shape, have.dtype):
            problems.append(
                f"  differs     {where}: expected {want.dtype}[{_sizes(want.shape)}], got "
                f"{have.dtype}[{_sizes(have.shape)}]"
            )
    if problems:
        raise UserError(_listed(f"the variables do not fit the model {name}:", problems))
    return {
        leaf.torch_name: leaf.to_torch(np.asarray(_at(variables, path)))
        for path, leaf in template.items()
    }


def count_classes(name: str, state_dict: Mapping[str, Any]) -> int | None:
    """Returns how many classes a state_dict's head tells apart, None if it has no such head."""
    return count_by_shape(name, {tensor: np.shape(x) for tensor, x in state_dict.items()})


def count_by_shape(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Returns `count_classes` of tensors of these shapes."""
    rules = find_rules(name)
    weight = shapes.get(f"{rules.head}.weight", ())
    if len(weight) not in (2, 4):  # a dense layer, or a convolution that classifies every pixel
        return None
    boxes = shapes.get(f"{rules.boxes}.weight", (4,))
    return weight[0] // (boxes[0] // 4)


def template_leaves(name: str, **options: Any) -> list[Leaf]:
    """Returns what the model called `name` needs, in the order of torch's names."""
    find_rules(name)
    return list(_template(name, tuple((k, _hashable(v)) for k, v in sorted(options.items()))))


def _hashable(option: Any) -> Any:
    return tuple(map(_hashable, option)) if isinstance(option, list | tuple) else option


@functools.lru_cache(maxsize=8)
def _template(name: str, options: tuple[tuple[str, Any], ...]) -> tuple[Leaf, ...]:
    model = get_model(name, **dict(options))
    bgr = f"{find_rules(name).bgr_stem}.weight"
    found = leaves(abstract_variables(model, INPUT_SHAPE[1:]))
    found = (replace(leaf, bgr=True) if leaf.torch_name == bgr else leaf for leaf in found)
    return tuple(sorted(found, key=lambda leaf: leaf.torch_name))


def _misfit(leaf: Leaf, array: np.ndarray, cast: bool) -> str | None:
    """Returns why `array` cannot become `leaf`, None if it can."""
    if array.shape != leaf.torch_shape:
        return f"expected the shape [{_sizes(leaf.torch_shape)}], got [{_sizes(array.shape)}]"
    if leaf.dtype.kind == "i":
        limits = np.iinfo(leaf.dtype)
        if array.dtype.kind not in "iu":
            return f"expected integers, got {array.dtype}"
        if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
            return f"{array.max()} is beyond {leaf.dtype}"
        return None
    if array.dtype in _EXACT_IN_FLOAT32:
        return None
    if array.dtype != np.float64:
        return f"expected float32, got {array.dtype}"
    with np.errstate(over="ignore"):
        exact = cast or np.array_equal(array.astype(np.float32), array, equal_nan=True)
    return None if exact else "float64 would lose digits in float32: pass cast=True to round it"


def _arrays(variables: Variables) -> dict[str, Any]:
    return {name: tree for name, tree in variables.items() if jax.tree.leaves(tree)}


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, name: node[name], path, tree)


def _spec(leaf: Leaf) -> str:
    return f"{leaf.dtype}[{_sizes(leaf.torch_shape)}]"


def _sizes(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def _listed(title: str, problems: list[str]) -> str:
    rest = [f"  … and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join([title, *problems[:SHOWN], *rest])
