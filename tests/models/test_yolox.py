"""YOLOX: published sizes, the stem's and the pooling's layout, its options, what it begins with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.models import get_model
from jaxvision.models.csp_darknet import ConvNorm, SpatialPyramidPooling, Stem
from jaxvision.models.yolox import DecoupledHead
from jaxvision.ops import max_pool
from jaxvision.weights import find_weights

PUBLISHED = {  # millions of parameters, Megvii's model zoo
    "yolox_nano": 0.91,
    "yolox_tiny": 5.06,
    "yolox_s": 9.0,
    "yolox_m": 25.3,
    "yolox_l": 54.2,
    "yolox_x": 99.1,
    "yolox_darknet53": 63.7,
}
TINY = {"num_classes": 5, "width": 0.125, "depth": 0.1}


@functools.cache
def traced(name, size=(32, 32), **options):
    model = get_model(name, **options)
    images = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    """That the model has as many as the catalog says is among test_contract's."""
    digits = len(str(PUBLISHED[name]).partition(".")[2])
    assert round(find_weights(name, "COCO").num_params / 1e6, digits) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({}, (8, 16, 32)),
        ({"stem": "small"}, (4, 8, 16)),
        ({"depthwise": True}, (8, 16, 32)),
        ({"dtype": "bfloat16"}, (8, 16, 32)),
        ({"darknet": "53"}, (8, 16, 32)),
    ],
)
def test_a_map_a_level_the_finest_first(options, strides):
    outputs, variables = traced("yolox_s", (64, 96), **TINY, **options)
    assert get_model("yolox_s", **options).strides == strides
    assert [x.shape for x in outputs] == [(2, 64 // s, 96 // s, 5 + 5) for s in strides]
    assert {x.dtype for x in outputs} == {jnp.dtype(options.get("dtype", "float32"))}
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiples of 32, got 32 x 48"):
        traced("yolox_nano", (32, 48))
    with pytest.raises(ValueError, match="neither depthwise"):
        traced("yolox_darknet53", depthwise=True)
    with pytest.raises(ValueError, match="nor another stem"):
        traced("yolox_darknet53", stem="small")


def normal(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_stem_joins_pixels_in_torchs_order():
    x = normal((2, 4, 6, 3))
    joined = [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]

    @jax.jit
    def both(x, joined):
        y, variables = Stem(8).init_with_output(jax.random.key(0), x, train=False)
        inner = {name: tree["conv"] for name, tree in variables.items()}
        return y, ConvNorm(8, 3).apply(inner, joined, train=False)

    found, wanted = both(x, np.concatenate(joined, axis=-1))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_pooling_sees_five_nine_and_thirteen_pixels():
    @jax.jit
    def both(x):
        layer = SpatialPyramidPooling(8)
        found, variables = layer.init_with_output(jax.random.key(1), x, train=False)

        def conv(features, name, x):
            part = {collection: tree[name] for collection, tree in variables.items()}
            return ConvNorm(features, 1).apply(part, x, train=False)

        y = conv(4, "conv1", x)
        maps = [y, *(max_pool(y, k, stride=1, padding=k // 2) for k in (5, 9, 13))]
        return found, conv(8, "conv2", jnp.concatenate(maps, axis=-1))

    found, wanted = both(normal((1, 15, 15, 8)))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_batch_norm_has_yoloxs_constants():
    x = normal((4, 2, 2, 3)) * np.float32(0.01)

    @jax.jit
    def trained(x):
        layer = ConvNorm(2, 1, activation=lambda x: x)
        variables = layer.init(jax.random.key(1), x, train=False)
        return variables, *layer.apply(variables, x, train=True, mutable=["batch_stats"])

    variables, y, updated = trained(x)
    z = x @ np.asarray(variables["params"]["conv"]["kernel"])[0, 0]
    mean, var = z.mean(axis=(0, 1, 2)), z.var(axis=(0, 1, 2))
    np.testing.assert_allclose(y, (z - mean) / np.sqrt(var + 1e-3), atol=1e-5)
    stats = updated["batch_stats"]["bn"]
    np.testing.assert_allclose(stats["mean"], 0.03 * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.97 + 0.03 * var * 16 / 15, rtol=1e-5)


def test_the_head_begins_with_rare_objects():
    head = DecoupledHead(num_classes=3, features=4)
    maps = tuple(np.zeros((1, size, size, 4), np.float32) for size in (4, 2))

    @jax.jit
    def first(maps):
        return head.init_with_output(jax.random.key(0), maps, train=False)[0]

    for level in first(maps):
        logits = np.asarray(level)[..., 4:]
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), 0.01, rtol=1e-5)


def test_pictures_are_independent_and_compiled_once():
    rng = np.random.default_rng(0)
    model = get_model("yolox_s", **TINY)
    shapes = traced("yolox_s", (64, 96), **TINY)[1]
    # Not as they are drawn at first: deep down nothing is left of the picture then.
    variables = jax.tree.map(lambda x: rng.uniform(-1, 1, x.shape).astype(x.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    x = rng.random((2, 32, 32, 3)).astype(np.float32)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    changed = np.stack([x[0], np.full_like(x[1], 5)])
    outputs, others = (jax.tree.map(np.asarray, apply(variables, x)) for x in (x, changed))
    assert apply._cache_size() == 1
    for one, other in zip(outputs, others, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-5)
        assert np.abs(one[1] - other[1]).max() > 0.01
