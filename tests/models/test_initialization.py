"""First variables: those of the model's own `init`, and how little is traced and compiled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

from jaxvision.models import abstract_variables, get_model, init_variables
from jaxvision.models.initialization import jit_once
from jaxvision.models.layers import Conv, parameter

LEVEL = "xla_backend_optimization_level"


def test_the_variables_are_those_of_init():
    model, key = get_model("mlp", hidden=[8]), jax.random.key(3)
    expected = jax.jit(model.init)(key, np.zeros((1, 4, 4, 1), np.float32))
    jax.tree.map(np.testing.assert_array_equal, init_variables(model, key, (4, 4, 1)), expected)


@pytest.mark.parametrize("flags", ["", f"--{LEVEL}=0"])
def test_what_is_not_wanted_is_its_shape(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    model, key = get_model("mlp", hidden=[9 + len(flags)]), jax.random.key(3)
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


def test_equal_models_are_traced_once():
    """Drawn, restored into, and drawn in part."""
    traced = []

    class Counted(nn.Module):
        features: int

        def setup(self):
            self.conv = Conv(self.features, (3, 3))

        def __call__(self, x, train=False):
            traced.append(self.features)
            return self.conv(x)

    drawn = init_variables(Counted(4), jax.random.key(0), (8, 8, 3))
    shapes = abstract_variables(Counted(4), [8, 8, 3])
    assert shapes == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), drawn)
    init_variables(Counted(4), jax.random.key(1), (8, 8, 3), where=lambda path: "bias" in path)
    assert traced == [4]
    abstract_variables(Counted(4), (8, 8, 1))
    abstract_variables(Counted(5), (8, 8, 1))
    assert traced == [4, 4, 5]


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


def test_a_parameter_is_linens():
    init = nn.initializers.normal(0.3)

    class Linens(nn.Module):
        @nn.compact
        def __call__(self):
            return self.param("kernel", init, (3, 4), jnp.float32)

    class Ours(nn.Module):
        @nn.compact
        def __call__(self):
            return parameter(self, "kernel", init, (3, 4))

    expected = jax.jit(Linens().init)(jax.random.key(0))
    variables = jax.jit(Ours().init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    kernel = expected["params"]["kernel"]
    np.testing.assert_array_equal(Ours().apply(variables), kernel)
    partitioned = {"params": {"kernel": nn.Partitioned(kernel, ("in", "out"))}}
    np.testing.assert_array_equal(Ours().apply(partitioned), kernel)


def test_equal_layers_share_a_draws_trace_and_what_is_there_is_not_drawn():
    traced = []

    def init(key, shape, dtype):
        traced.append(shape)
        return jax.random.uniform(key, shape, dtype)

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            conv = {"features": 3, "kernel_size": (1, 1), "kernel_init": init}
            return Conv(**conv, name="second")(Conv(**conv, name="first")(x))

    x = np.ones((1, 2, 2, 3), np.float32)
    variables = jax.jit(Two().init)(jax.random.key(0), x)
    assert traced == [(1, 1, 3, 3)]
    first, second = (variables["params"][name]["kernel"] for name in ("first", "second"))
    assert not np.array_equal(first, second)
    jax.eval_shape(Two().apply, variables, x)
    assert traced == [(1, 1, 3, 3)]


def test_parameters_that_do_not_fit_or_are_missing_are_linens_errors():
    conv, x = Conv(4, (3, 3), padding=1), np.ones((1, 5, 5, 2), np.float32)
    params = jax.tree.map(np.asarray, conv.init(jax.random.key(0), x)["params"])
    with pytest.raises(ScopeParamShapeError, match=r'"kernel".*\(3, 3, 3, 4\).*\(3, 3, 2, 4\)'):
        conv.apply({"params": params}, np.ones((1, 5, 5, 3), np.float32))
    with pytest.raises(ScopeParamNotFoundError, match="bias"):
        conv.apply({"params": {"kernel": params["kernel"]}}, x)
