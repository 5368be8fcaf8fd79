"""Comparing two trees of arrays, so that a mismatch is one readable error."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxvision.errors import UserError

SHOWN = 12
"""At most this many differences are listed."""


def check_same_tree(expected: Any, found: Any, what: str) -> None:
    """Raises `UserError` where `found` differs from `expected` in structure, shape or dtype.

    Leaves need a shape and a dtype; containers may differ in kind (a named tuple comes back from a
    file as a dictionary), names and positions may not.
    """
    want, have = _leaves(expected), _leaves(found)
    lines = []
    # The optimiser's state mirrors the params: a difference there explains itself after theirs.
    for name in sorted(want.keys() | have.keys(), key=lambda n: (n.startswith("opt_state"), n)):
        if name not in have:
            lines.append(f"  missing     {name} {_spec(want[name])}")
        elif name not in want:
            lines.append(f"  unexpected  {name} {_spec(have[name])}")
        elif _spec(want[name]) != _spec(have[name]):
            lines.append(
                f"  differs     {name}: expected {_spec(want[name])}, found {_spec(have[name])}"
            )
    if lines:
        shown = lines[:SHOWN]
        rest = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise UserError("\n".join([f"{what} does not fit the model:", *shown, *rest]))


def _leaves(tree: Any) -> Mapping[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _spec(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
