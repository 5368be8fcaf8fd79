"""The BatchNorm layer: its state in training and inference, padding, devices."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxvision.losses import classification_loss
from jaxvision.models import abstract_variables, get_model
from jaxvision.models.layers import BatchNorm, FrozenBatchNorm
from jaxvision.ops import valid_rows
from jaxvision.train import create_state, make_train_step
from jaxvision.train.optim import sgd


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(2, 3, shape).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def initial(layer, x):
    return layer.init(jax.random.key(0), x, train=True)


@partial(jax.jit, static_argnums=0)
def trained(layer, variables, x):
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, {**variables, **updated}


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_stored_statistics(momentum):
    """torch's: the unbiased variance is stored, the biased one normalises."""
    layer = BatchNorm(momentum=momentum)
    batches = [normal(seed, 4, 3, 2, 5) for seed in range(3)]
    variables = initial(layer, batches[0])
    assert variables["batch_stats"]["num_batches_tracked"] == 0  # initialising moves nothing
    mean, var = np.zeros(5), np.ones(5)
    for i, x in enumerate(batches, start=1):
        y, variables = trained(layer, variables, x)
        values = x.astype(np.float64).reshape(-1, 5)
        expected = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
        np.testing.assert_allclose(np.asarray(y).reshape(-1, 5), expected, atol=1e-5)
        new = 1 / i if momentum is None else momentum
        mean = (1 - new) * mean + new * values.mean(0)
        var = (1 - new) * var + new * values.var(0, ddof=1)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    assert stats["num_batches_tracked"] == 3
    y = jax.jit(partial(layer.apply, train=False))(variables, batches[0])
    expected = (batches[0] - mean.astype(np.float32).reshape(1, 1, 1, -1)) / np.sqrt(
        var.astype(np.float32) + 1e-5
    ).reshape(1, 1, 1, -1)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_frozen_has_nothing_to_learn_and_is_inference_also_in_training():
    x = normal(0, 8, 5)
    layer = FrozenBatchNorm(eps=0.5)
    variables = initial(layer, x)
    assert set(variables) == {"batch_stats"}
    stats = {name: normal(i, 5) ** 2 for i, name in enumerate(("scale", "var"))}
    stats |= {"mean": normal(2, 5), "bias": normal(3, 5)}
    y, after = trained(layer, {"params": {}, "batch_stats": stats}, x)
    factor = stats["scale"] / np.sqrt(stats["var"] + 0.5)
    expected = (x - stats["mean"][None]) * factor[None] + stats["bias"][None]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for name, value in stats.items():
        np.testing.assert_array_equal(after["batch_stats"][name], value)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_stay_where_no_row_is_valid_and_variances_where_one_is(momentum):
    """torch leaves them alone when it is given no row, and refuses a single value."""
    model = BatchNorm(momentum=momentum)
    x = normal(0, 4, 5)
    variables = initial(model, x)

    @jax.jit
    def updated(valid):
        with valid_rows(valid):
            return model.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    jax.tree.map(
        np.testing.assert_array_equal, updated(np.zeros(4, bool)), variables["batch_stats"]
    )
    one = updated(np.arange(4) == 2)
    np.testing.assert_array_equal(one["var"], 1)
    np.testing.assert_allclose(one["mean"], (momentum or 1) * x[2], rtol=1e-6)


def test_one_value_a_channel_is_an_error_in_training_only():
    layer, x = BatchNorm(), np.ones((1, 1, 1, 3), np.float32)
    variables = initial(layer, x)
    with pytest.raises(ValueError, match=r"at least 2 values a channel, .* \[1, 1, 1, 3\] has 1"):
        trained(layer, variables, x)
    assert jax.eval_shape(partial(layer.apply, train=False), variables, x).shape == x.shape


def network():
    model = get_model("resnet18", width=8, stage_sizes=(1,), stem="small", num_classes=3)
    rng = np.random.default_rng(0)
    # Not as they are drawn at first: compiling that takes as long as the rest.
    shapes = abstract_variables(model, (16, 16, 3))
    variables = jax.tree.map(lambda x: rng.normal(0.1, 0.2, x.shape).astype(x.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    images = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    batch = {"image": images, "label": rng.integers(0, 3, 16).astype(np.int32)}
    return model, variables, batch


def test_padding_is_not_seen_by_the_rows_beside_it():
    """A padded batch trains as the smaller batch without its padding does."""
    model, variables, batch = network()
    tx = sgd(0.1)
    step = make_train_step(classification_loss(model), tx)
    small = {name: x[:11] for name, x in batch.items()}
    padded = {**batch, "valid": np.arange(16) < 11}
    expected, _ = step(create_state(variables, tx), small)
    got, _ = step(create_state(variables, tx), padded)
    for name in ("params", "batch_stats"):
        pairs = zip(
            jax.tree.leaves_with_path(getattr(got, name)),
            jax.tree.leaves(getattr(expected, name)),
            strict=True,
        )
        for (path, ours), theirs in pairs:
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=5e-5, err_msg=where)


def test_statistics_are_those_of_the_whole_batch_on_eight_devices(on_eight_devices):
    differences = on_eight_devices(__file__)
    assert len(differences) == 2
    assert max(differences.values()) < 1e-4, differences


def train_on_eight_devices():
    """Two steps on one device and on eight: the largest relative difference of a leaf."""
    model, variables, batch = network()
    tx = sgd(0.01, momentum=0.9)
    states = []
    for mesh in (None, Mesh(np.array(jax.devices()), ("data",))):
        step = make_train_step(classification_loss(model), tx, mesh=mesh)
        state = create_state(variables, tx)
        for _ in range(2):
            state, _ = step(state, batch)
        states.append(jax.device_get({"params": state.params, "batch_stats": state.batch_stats}))
    return {
        name: max(
            float(np.linalg.norm(a - b) / (np.linalg.norm(a) + 1e-6))
            for a, b in zip(*(jax.tree.leaves(state[name]) for state in states), strict=True)
        )
        for name in states[0]
    }


if __name__ == "__main__":
    print(json.dumps(train_on_eight_devices()))
