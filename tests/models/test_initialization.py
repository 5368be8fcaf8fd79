"""First variables: those of the model's own `init`, and how much XLA optimises what draws them."""

import jax
import numpy as np
import pytest

from jaxvision.models import get_model, init_variables
from jaxvision.models.initialization import jit_once

LEVEL = "xla_backend_optimization_level"


def test_the_variables_are_those_of_init():
    model, key = get_model("mlp", hidden=[8]), jax.random.key(3)
    expected = jax.jit(model.init)(key, np.zeros((1, 4, 4, 1), np.float32))
    jax.tree.map(np.testing.assert_array_equal, init_variables(model, key, (4, 4, 1)), expected)


def test_what_is_not_wanted_is_its_shape():
    model, key = get_model("mlp", hidden=[8]), jax.random.key(3)
    whole = init_variables(model, key, (4, 4, 1))
    part = init_variables(model, key, (4, 4, 1), where=lambda path: path.endswith("kernel"))
    assert jax.tree.structure(part) == jax.tree.structure(whole)
    for path, leaf in jax.tree_util.tree_flatten_with_path(part)[0]:
        expected = whole
        for step in path:
            expected = expected[step.key]
        if path[-1].key == "kernel":
            np.testing.assert_array_equal(leaf, expected)
        else:
            assert leaf == jax.ShapeDtypeStruct(expected.shape, expected.dtype)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (None, {LEVEL: 1}),
        ("--xla_cpu_max_isa=AVX2", {LEVEL: 1}),
        (f"--{LEVEL}=0", None),
    ],
)
def test_a_level_that_the_environment_asks_for_stands(monkeypatch, flags, options):
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", flags)
    asked = []

    def jit(function, compiler_options):
        asked.append(compiler_options)
        return function

    monkeypatch.setattr(jax, "jit", jit)
    jit_once(sum)
    assert asked == [options]
