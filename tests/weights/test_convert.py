"""From torch's names and layouts to linen's and back, and everything that does not fit."""

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.models import get_model, list_models
from jaxvision.weights import from_torch, to_torch
from jaxvision.weights.convert import count_classes, template_leaves
from jaxvision.weights.rules import RULES

SMALL = {"resnet18": {"width": 8, "num_classes": 5}, "vgg11_bn": {"widths": (4,) * 5, "hidden": 6}}


def state_dict_of(name, seed=0, **options):
    """Random tensors as torch would have them, some values odd, with counters."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for leaf in template_leaves(name, **options):
        if leaf.dtype.kind == "i":
            tensors[leaf.torch_name] = np.array(rng.integers(1, 1000))
        else:
            tensors[leaf.torch_name] = rng.normal(size=leaf.torch_shape).astype(np.float32)
    return tensors


def bits_of(tensors):
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in tensors.items()}


def refused(name, tensors, **options):
    with pytest.raises(UserError) as caught:
        from_torch(name, tensors, **options)
    return str(caught.value)


@pytest.fixture
def small():
    return state_dict_of("resnet18", **SMALL["resnet18"])


@pytest.mark.parametrize("name", SMALL)
def test_the_round_trip_is_exact(name):
    tensors = state_dict_of(name, **SMALL[name])
    first = next(iter(n for n, a in tensors.items() if a.ndim == 4))
    # A quiet NaN with a payload, a signalling one, -0.0, an infinity, a denormal.
    odd = np.array([0x7FC12345, 0x7F812345, 0x80000000, 0xFF800000, 1], np.uint32)
    tensors[first].reshape(-1)[:5] = odd.view(np.float32)
    variables = from_torch(name, tensors, **SMALL[name])
    back = to_torch(name, variables, **SMALL[name])
    assert bits_of(back) == bits_of(tensors)
    for leaf in jax.tree.leaves(variables):
        assert type(leaf) is np.ndarray
        assert leaf.flags.c_contiguous
        assert not any(np.shares_memory(leaf, a) for a in tensors.values())
    assert all(array.flags.c_contiguous for array in back.values())


@pytest.mark.parametrize("name", SMALL)
def test_the_tree_is_that_of_the_model(name):
    model = get_model(name, **SMALL[name])
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = from_torch(name, state_dict_of(name, **SMALL[name]), **SMALL[name])
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    shapes = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), variables)
    assert shapes == jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), expected)


def test_layouts_by_hand(small):
    variables = from_torch("resnet18", small, **SMALL["resnet18"])
    params, stats = variables["params"], variables["batch_stats"]
    kernel = params["layer2"]["0"]["downsample"]["0"]["kernel"]
    assert kernel.shape == (1, 1, 8, 16)
    weight = small["layer2.0.downsample.0.weight"]
    assert kernel[0, 0, 3, 7] == weight[7, 3, 0, 0]
    assert params["conv1"]["kernel"][1, 2, 0, 3] == small["conv1.weight"][3, 0, 1, 2]
    assert params["fc"]["kernel"][9, 2] == small["fc.weight"][2, 9]
    assert params["layer1"]["0"]["bn1"]["scale"][3] == small["layer1.0.bn1.weight"][3]
    assert stats["bn1"]["var"][2] == small["bn1.running_var"][2]
    assert stats["bn1"]["mean"][2] == small["bn1.running_mean"][2]
    tracked = stats["bn1"]["num_batches_tracked"]
    assert (tracked, tracked.dtype) == (small["bn1.num_batches_tracked"], np.int32)


def test_everything_that_does_not_fit_is_listed(small):
    broken = dict(small)
    del broken["layer1.0.conv1.weight"]
    broken["extra.weight"] = np.zeros((2, 3), np.float16)
    broken["fc.bias"] = np.zeros(7, np.float32)
    broken["bn1.weight"] = np.zeros(8, np.int32)
    broken["bn1.num_batches_tracked"] = np.zeros((), np.float32)
    message = refused("resnet18", broken, **SMALL["resnet18"])
    assert message.splitlines() == [
        "the tensors do not fit the model resnet18:",
        "  differs     bn1.num_batches_tracked: expected integers, got float32",
        "  differs     bn1.weight: expected float32, got int32",
        "  differs     fc.bias: expected the shape [5], got [7]",
        "  missing     layer1.0.conv1.weight float32[8,8,3,3]",
        "  unexpected  extra.weight float16[2,3]",
    ]
    many = refused("resnet18", {}, **SMALL["resnet18"])
    assert many.count("\n") == 13
    assert many.endswith("… and 90 more")


def test_a_transposed_tensor_of_the_same_size_is_refused(small):
    small["fc.weight"] = small["fc.weight"].T.copy()
    message = refused("resnet18", small, **SMALL["resnet18"])
    assert "fc.weight: expected the shape [5,64], got [64,5]" in message


def test_old_files_have_no_counters(small):
    old = {k: v for k, v in small.items() if not k.endswith("num_batches_tracked")}
    assert len(old) == len(small) - 20
    variables = from_torch("resnet18", old, **SMALL["resnet18"])
    tracked = variables["batch_stats"]["layer4"]["1"]["bn2"]["num_batches_tracked"]
    assert (tracked, tracked.dtype, tracked.shape) == (0, np.int32, ())


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_a_counter_beyond_int32_is_refused(small, value):
    small["bn1.num_batches_tracked"] = np.array(value)
    assert f"{value} is beyond int32" in refused("resnet18", small, **SMALL["resnet18"])
    small["bn1.num_batches_tracked"] = np.array(2**31 - 1)
    back = to_torch(
        "resnet18",
        from_torch("resnet18", small, **SMALL["resnet18"]),
        **SMALL["resnet18"],
    )
    assert back["bn1.num_batches_tracked"] == 2**31 - 1


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32_exactly(small, dtype):
    half = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in small.items()}
    variables = from_torch("resnet18", half, **SMALL["resnet18"])
    bias = variables["params"]["fc"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, half["fc.bias"].astype(np.float64))


def test_float64_is_rounded_only_when_asked(small):
    small["fc.bias"] = small["fc.bias"].astype(np.float64)
    from_torch("resnet18", small, **SMALL["resnet18"])  # each is a float32: nothing is lost
    small["fc.bias"][2] = 0.1
    assert "float64 would lose digits" in refused("resnet18", small, **SMALL["resnet18"])
    small["fc.bias"][3] = 1e300
    variables = from_torch("resnet18", small, cast=True, **SMALL["resnet18"])
    assert variables["params"]["fc"]["bias"][2] == np.float32(0.1)
    assert variables["params"]["fc"]["bias"][3] == np.inf


def test_to_torch_lists_what_does_not_fit(small):
    options = SMALL["resnet18"]
    variables = from_torch("resnet18", small, **options)
    del variables["params"]["fc"]["bias"]
    variables["params"]["extra"] = {"kernel": np.zeros((2, 2), np.float32)}
    variables["params"]["bn1"]["scale"] = np.zeros(9, np.float32)
    variables["params"]["bn1"]["bias"] = np.zeros(8, ml_dtypes.bfloat16)
    with pytest.raises(UserError) as caught:
        to_torch("resnet18", variables, **options)
    assert str(caught.value).splitlines() == [
        "the variables do not fit the model resnet18:",
        "  differs     params/bn1/bias: expected float32[8], got bfloat16[8]",
        "  differs     params/bn1/scale: expected float32[8], got float32[9]",
        "  unexpected  params/extra/kernel",
        "  missing     params/fc/bias",
    ]
    variables["params"]["bn1"]["other"] = np.zeros(8)
    with pytest.raises(UserError, match="no conversion to torch is known for params/bn1/other"):
        to_torch("resnet18", variables, **options)


def test_variables_on_a_device_convert_too(small):
    variables = jax.device_put(from_torch("resnet18", small, **SMALL["resnet18"]))
    assert bits_of(to_torch("resnet18", variables, **SMALL["resnet18"])) == bits_of(small)


def test_models_without_rules_say_so(small):
    assert set(RULES) <= set(list_models())
    for name in ("lenet", "none"):
        assert f"the model '{name}'" in refused(name, small)


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18"])
def test_the_head_of_each_family_is_known(name):
    leaves = template_leaves(name, num_classes=7)
    heads = [leaf for leaf in leaves if leaf.torch_shape[:1] == (7,)]
    assert {leaf.torch_name for leaf in heads} == {
        f"{RULES[name].head}.{n}" for n in ("weight", "bias")
    }
    assert count_classes(name, {leaf.torch_name: np.zeros(leaf.torch_shape) for leaf in heads}) == 7
    assert count_classes(name, {}) is None
