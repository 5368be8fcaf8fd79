"""The course's exercise: other widths, kernels and depths, and the sizes that do not fit."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.models import get_model
from jaxvision.models.lenet import layer_sizes

CONFIGURATIONS = [  # options, picture, the values that are flattened
    ({}, (28, 28, 1), 4 * 4 * 16),
    ({"features": (6, 16, 32), "kernel_sizes": (5, 3, 2)}, (28, 28, 1), 2 * 2 * 32),
    ({"features": (8,), "kernel_sizes": (7,), "hidden": ()}, (28, 28, 1), 11 * 11 * 8),
    ({"features": (4, 8), "kernel_sizes": (5, 5), "padding": 2}, (28, 20, 3), 7 * 5 * 8),
    ({"features": (), "kernel_sizes": (), "hidden": (9,)}, (6, 5, 2), 6 * 5 * 2),
]


@pytest.mark.parametrize(("options", "picture", "flat"), CONFIGURATIONS)
def test_widths_kernels_and_depth_are_arguments(options, picture, flat):
    model = get_model("lenet", num_classes=5, **options)
    logits, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.zeros((2, *picture))
    )
    assert logits.shape == (2, 5)
    expected = {}
    channels = picture[-1]
    convolutions = zip(model.features, model.kernel_sizes, strict=True)
    for i, (width, kernel) in enumerate(convolutions, start=1):
        expected[f"conv{i}"] = (kernel, kernel, channels, width)
        channels = width
    widths = (flat, *model.hidden, 5)
    for i, shape in enumerate(pairwise(widths), start=1):
        expected[f"fc{i}"] = shape
    params = variables["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == expected
    assert all(layer["bias"].shape == layer["kernel"].shape[-1:] for layer in params.values())


def test_layer_sizes_by_hand():
    assert layer_sizes((28, 28), (6, 16), (5, 5)) == [(24, 24), (12, 12), (8, 8), (4, 4)]
    assert layer_sizes((9, 6), (1,), (3,), padding=1) == [(9, 6), (4, 3)]
    assert layer_sizes((28, 28), (), ()) == []


@pytest.mark.parametrize(
    ("picture", "kernels", "layer", "size", "padding"),
    [
        ((28, 28), (5, 13), "convolution 2 (kernel 13)", "12x12", 0),
        ((28, 28), (5, 5, 5), "convolution 3 (kernel 5)", "4x4", 0),
        ((28, 4), (5,), "convolution 1 (kernel 5)", "28x4", 0),
        ((6, 5), (5,), "pool 1", "2x1", 0),
        ((3, 3), (8,), "convolution 1 (kernel 8)", "3x3", 2),
    ],
)
def test_a_misfit_names_the_layer_and_the_sizes(picture, kernels, layer, size, padding):
    widths = (4,) * len(kernels)
    with pytest.raises(ValueError, match="does not fit") as error:
        layer_sizes(picture, widths, kernels, padding)
    message = str(error.value)
    assert f"lenet: {layer} does not fit: its input is {size} pixels" in message
    assert f"with padding {padding} (the picture is {picture[0]}x{picture[1]})" in message
    model = get_model("lenet", features=widths, kernel_sizes=kernels, padding=padding)
    with pytest.raises(ValueError, match="does not fit") as error:
        model.init(jax.random.key(0), jnp.zeros((1, *picture, 1)))
    assert str(error.value) == message


@pytest.mark.parametrize("kernels", [(5,), (5, 5, 5)])
def test_mismatched_lengths_are_refused(kernels):
    message = rf"2 convolution widths \(6, 16\) but {len(kernels)} kernel sizes"
    with pytest.raises(ValueError, match=message):
        layer_sizes((28, 28), (6, 16), kernels)
    with pytest.raises(ValueError, match=message):
        get_model("lenet", kernel_sizes=kernels).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


def test_the_forward_pass_equals_loops():
    model = get_model(
        "lenet", features=(2, 3), kernel_sizes=(3, 2), hidden=(6,), num_classes=4, padding=1
    )
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 2)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(3), jnp.asarray(x))
    params = jax.tree.map(np.asarray, variables["params"])
    y = x
    for name in ("conv1", "conv2"):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        size = kernel.shape[0]
        y = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = y.shape[1] - size + 1, y.shape[2] - size + 1
        z = np.empty((2, rows, columns, len(bias)))
        for i, j in np.ndindex(rows, columns):
            patch = y[:, i : i + size, j : j + size]
            z[:, i, j] = np.tensordot(patch, kernel, axes=3) + bias
        z = np.maximum(z, 0)
        y = np.empty((2, rows // 2, columns // 2, len(bias)))
        for i, j in np.ndindex(*y.shape[1:3]):
            y[:, i, j] = z[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    y = y.reshape(2, -1)  # rows, columns, channels
    y = np.maximum(y @ params["fc1"]["kernel"] + params["fc1"]["bias"], 0)
    y = y @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    got = jax.jit(model.apply)(variables, jnp.asarray(x))
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-5)
