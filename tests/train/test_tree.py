"""A mismatch of two trees is one readable error."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.train.tree import check_same_tree


class Moments(NamedTuple):
    count: np.ndarray
    mean: dict


def tree(**changes):
    params = {"conv1": {"kernel": np.zeros((5, 5, 1, 6), np.float32), "bias": np.zeros(6)}}
    return {"params": params, "step": np.int32(0), **changes}


def message(expected, found):
    with pytest.raises(UserError) as error:
        check_same_tree(expected, found, "the checkpoint in runs/demo")
    first, *lines = str(error.value).split("\n")
    assert first == "the checkpoint in runs/demo does not fit the model:"
    return lines


def test_values_do_not_matter():
    check_same_tree(tree(), jax.tree.map(lambda x: x + 1, tree()), "it")
    check_same_tree({}, {}, "it")


def test_leaves_need_only_a_shape_and_a_dtype():
    shapes = jax.tree.map(lambda x: SimpleNamespace(shape=x.shape, dtype=x.dtype), tree())
    check_same_tree(tree(), shapes, "it")
    check_same_tree(
        tree(), jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree()), "it"
    )


def test_missing():
    found = tree()
    del found["params"]["conv1"]["kernel"]
    assert message(tree(), found) == ["  missing     params/conv1/kernel float32[5,5,1,6]"]


def test_unexpected():
    assert message(tree(), tree(ema=np.zeros((2, 3), np.float16))) == [
        "  unexpected  ema float16[2,3]"
    ]


@pytest.mark.parametrize(
    ("step", "spec"),
    [(np.int64(0), "int64[]"), (np.zeros(1, np.int32), "int32[1]"), (np.uint32(7), "uint32[]")],
)
def test_differs_in_shape_or_dtype(step, spec):
    assert message(tree(), tree(step=step)) == [
        f"  differs     step: expected int32[], found {spec}"
    ]


def test_a_leaf_where_a_branch_is_expected():
    assert message(tree(), tree(params=np.zeros(2))) == [
        "  unexpected  params float64[2]",
        "  missing     params/conv1/bias float64[6]",
        "  missing     params/conv1/kernel float32[5,5,1,6]",
    ]


def test_the_optimisers_state_comes_last():
    found = {"z": np.zeros(1), "opt_state": {"a": np.zeros(2)}}
    lines = message({"a": np.zeros(3), "opt_state": {}}, found)
    assert [line.split()[1] for line in lines] == ["a", "z", "opt_state/a"]


@pytest.mark.parametrize(("count", "rest"), [(12, []), (13, ["  … and 1 more"])])
def test_at_most_twelve_differences_are_listed(count, rest):
    found = {f"layer{i:02}": np.zeros(1) for i in range(count)}
    lines = message({}, found)
    assert lines == [f"  unexpected  layer{i:02} float64[1]" for i in range(12)] + rest


def test_kinds_of_containers_do_not_matter_but_names_do():
    mean = {"w": np.zeros(4)}
    moments = (Moments(np.int32(0), mean), ())
    # What a file gives back for optax's named tuples.
    check_same_tree(moments, [{"count": np.int32(0), "mean": mean}], "it")
    check_same_tree([{"count": np.int32(0), "mean": mean}], moments, "it")
    assert message(moments, [{"count": np.int32(0), "nu": mean}]) == [
        "  missing     0/mean/w float64[4]",
        "  unexpected  0/nu/w float64[4]",
    ]
    assert message([np.zeros(1), np.zeros(2)], [np.zeros(2), np.zeros(1)]) == [
        "  differs     0: expected float64[1], found float64[2]",
        "  differs     1: expected float64[2], found float64[1]",
    ]
