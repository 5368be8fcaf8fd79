"""MobileNetV3: its tables, its options, its stages. Parity with torchvision is tests/parity's."""

import jax
import numpy as np
import pytest

from jaxvision.models import get_model
from jaxvision.models.layers import Norm
from jaxvision.models.mobilenet_v3 import SqueezeExcitation, divisible_by_8

SIZES = {
    "mobilenet_v3_large": {"C0": (33, 16), "C1": (17, 24), "C2": (9, 40), "C3": (5, 80)},
    "mobilenet_v3_small": {"C0": (33, 16), "C1": (17, 16), "C2": (9, 24), "C3": (5, 40)},
}


def shapes(name, size=65, **options):
    x = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    return jax.eval_shape(get_model(name, **options).init_with_output, jax.random.key(0), x)


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", SIZES)
def test_stages_for_detectors(name):
    stages, variables = shapes(name, features_only=True)
    for stage, (side, channels) in SIZES[name].items():
        assert stages[stage].shape == (2, side, side, channels), stage
    last = 960 if name.endswith("large") else 576
    assert stages["C5"].shape == (2, 3, 3, last)
    assert list(stages) == ["C0", "C1", "C2", "C3", "C4", "C5"]
    assert set(variables["params"]) == {"features"}


def test_options():
    full, variables = shapes("mobilenet_v3_small")
    assert (full.shape, count(variables)) == ((2, 1000), 2_542_856)
    assert count(shapes("mobilenet_v3_small", width_mult=0.5)[1]) < 0.5 * count(variables)
    narrow = shapes("mobilenet_v3_small", reduced_tail=True, features_only=True)[0]
    assert narrow["C5"].shape == (2, 3, 3, 288)
    dilated = shapes("mobilenet_v3_small", dilated=True, features_only=True)[0]
    assert dilated["C5"].shape == (2, 5, 5, 576)
    pooled, without = shapes("mobilenet_v3_small", num_classes=0)
    assert pooled.shape == (2, 576)
    assert set(without["params"]) == {"features"}
    frozen = shapes("mobilenet_v3_small", norm=Norm("frozen"))[1]["batch_stats"]
    assert set(frozen["features"]["0"]["1"]) == {"scale", "bias", "mean", "var"}


@pytest.mark.parametrize(
    ("channels", "expected"), [(8, 8), (12, 16), (11, 16), (35, 32), (36, 40), (3, 8), (75.6, 72)]
)
def test_widths_are_multiples_of_8_and_lose_a_tenth_at_most(channels, expected):
    assert divisible_by_8(channels) == expected


def test_squeeze_and_excitation_by_hand():
    layer = SqueezeExcitation(1)
    x = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 3.0)], axis=-1)[None]
    params = {
        "fc1": {"kernel": np.ones((1, 1, 2, 1)), "bias": np.array([-2.0])},
        "fc2": {"kernel": np.array([[[[1.0, -2.0]]]]), "bias": np.array([-1.0, 0.0])},
    }
    x, params = jax.tree.map(np.float32, (x, params))
    # Means 1 + 3 - 2 = 2; (2 - 1 + 3) / 6 and (-4 + 3) / 6, of which the latter is below 0.
    y = np.asarray(jax.jit(layer.apply)({"params": params}, x))
    np.testing.assert_allclose(y[0, 0, 0], [4 / 6, 0.0], rtol=1e-6)
