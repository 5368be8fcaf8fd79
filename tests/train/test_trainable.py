"""Freezing: what is frozen stays bit for bit, costs no memory, no backward work."""

import re
from functools import cache, partial

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from random_variables import random_variables

from jaxvision.errors import UserError
from jaxvision.losses import classification_loss
from jaxvision.models import get_model
from jaxvision.train import create_state, make_train_step
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.optim import adam, freeze, sgd
from jaxvision.train.trainable import merge_params, split_params, trainable_paths

PARAMS = {"conv1": {"kernel": 1}, "layer1": {"0": {"bias": 2, "kernel": 3}}, "fc": {"bias": 4}}


@pytest.fixture(scope="module")
def network():
    options = {"width": 8, "stem": "small", "stage_sizes": (1, 1, 1, 1)}
    model = get_model("resnet18", num_classes=3, **options)
    variables = random_variables(model, (16, 16, 3))
    # A negative zero is another pattern of bits than the zero that adding 0 makes of it.
    variables["params"]["conv1"]["kernel"][0, 0, 0, 0] = -0.0
    return model, variables


@pytest.fixture(scope="module")
def training(network):
    """(patterns) -> the optimiser that trains what they match, and its step: one compile each."""
    model, variables = network

    @cache
    def of(*trainable):
        tx = freeze(sgd(0.1, momentum=0.9, weight_decay=0.01), variables["params"], trainable)
        return tx, make_train_step(classification_loss(model), tx)

    return of


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, 3, 8).astype(np.int32)}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("fc/**", ["fc/bias"]),
        ("**/bias", ["fc/bias", "layer1/0/bias"]),
        ("**/kernel", ["conv1/kernel", "layer1/0/kernel"]),
        ("layer*/*/bias", ["layer1/0/bias"]),
        (["conv1/kernel", "fc/*"], ["conv1/kernel", "fc/bias"]),
        ("**", ["conv1/kernel", "fc/bias", "layer1/0/bias", "layer1/0/kernel"]),
    ],
)
def test_patterns(patterns, expected):
    assert sorted("/".join(p) for p in trainable_paths(PARAMS, patterns)) == expected


@pytest.mark.parametrize("pattern", ["fc", "head/**", "layer1/*", "", "kernel"])
def test_a_pattern_that_matches_nothing_is_named(pattern):
    message = re.escape(f"trainable={pattern!r} matches no parameter; there are conv1/**")
    with pytest.raises(UserError, match=message):
        trainable_paths(PARAMS, ["fc/**", pattern])
    with pytest.raises(UserError, match="at least one pattern"):
        trainable_paths(PARAMS, [])


def test_split_and_merge():
    trained, frozen = split_params(PARAMS, trainable_paths(PARAMS, "layer1/**"))
    assert trained == {"layer1": PARAMS["layer1"]}
    assert merge_params(trained, frozen) == PARAMS
    with pytest.raises(ValueError, match="not there: layer9/bias"):
        split_params(PARAMS, [("layer9", "bias")])


def bits(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x).tobytes()
        for path, x in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("trainable", "trained_stats"), [(["fc/**"], ()), (["fc/**", "layer4/**"], ("layer4/",))]
)
def test_frozen_leaves_and_statistics_keep_their_bits(
    network, training, batch, trainable, trained_stats
):
    _, variables = network
    tx, step = training(*trainable)
    state = create_state(variables, tx)
    for _ in range(3):
        state, _ = step(state, batch)
    before, after = bits(variables["params"]), bits(state.params)
    chosen = {"/".join(p) for p in tx.trainable}
    assert {name for name in before if before[name] != after[name]} == chosen
    before, after = bits(variables["batch_stats"]), bits(state.batch_stats)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {name for name in before if name.startswith(trained_stats or "none")}


def test_frozen_batch_norm_normalises_by_its_stored_statistics(network, training, batch):
    model, variables = network
    tx, step = training("fc/**")
    evaluated = jax.jit(partial(classification_loss(model), train=False))
    expected, _ = evaluated(variables["params"], variables["batch_stats"], batch, jax.random.key(0))
    _, metrics = step(create_state(variables, tx), batch)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_the_optimiser_keeps_state_for_the_trained_leaves_only(network):
    _, variables = network
    tx = freeze(adam(1e-3), variables["params"], "fc/**")
    size = sum(x.size for x in jax.tree.leaves(create_state(variables, tx).opt_state))
    head = sum(x.size for x in jax.tree.leaves(variables["params"]["fc"]))
    assert size == 2 * head + 1  # two moments, and one count


def test_frozen_leaves_cost_no_backward_work(network, batch):
    """Counted in the compiled program: the head alone needs the forward convolutions only."""
    model, variables = network
    # Large enough that even the last stage's are convolutions, and not matrix products.
    batch = {**batch, "image": np.zeros((len(batch["image"]), 64, 64, 3), np.uint8)}
    loss_fn = classification_loss(model)

    def convolutions(function, *arguments):
        leaves, structure = jax.tree.flatten(arguments)
        flat = jax.jit(lambda leaves: function(*jax.tree.unflatten(structure, leaves)))
        text = flat.lower(leaves).compile().as_text()
        return len(re.findall(r" = \S+ convolution\(", text))

    forward = convolutions(
        jax.jit(lambda v, x: model.apply(v, x, train=False)),
        variables,
        batch["image"].astype(np.float32),
    )
    counts = {}
    for trainable in ("fc/**", "layer4/**", "**"):
        tx = freeze(sgd(0.1, momentum=0.9), variables["params"], trainable)
        counts[trainable] = convolutions(
            make_train_step(loss_fn, tx), create_state(variables, tx), batch
        )
    assert counts["fc/**"] == forward > 8
    assert forward < counts["layer4/**"] < forward + 10
    assert counts["**"] > 2 * forward


def test_outside_our_step_the_updates_of_frozen_leaves_are_zero(network):
    _, variables = network
    params = variables["params"]
    tx = freeze(sgd(0.1), params, "fc/**")

    @jax.jit
    def update(params):
        updates, _ = tx.update(params, tx.init(params), params)
        return updates, optax.apply_updates(params, updates)

    updates, updated = update(params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    frozen = {name: x for name, x in updates.items() if name != "fc"}
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(frozen))
    np.testing.assert_allclose(updates["fc"]["kernel"], -0.1 * params["fc"]["kernel"], rtol=1e-6)
    assert jax.tree.structure(updated) == jax.tree.structure(params)


def test_freezing_with_accumulation_and_moving_average_and_a_checkpoint(network, batch, tmp_path):
    model, variables = network
    tx = freeze(sgd(0.1, momentum=0.9), variables["params"], "fc/**")
    state = create_state(variables, tx, ema=True)
    step = make_train_step(classification_loss(model), tx, accumulate=2, ema_decay=0.9)
    for _ in range(2):
        state, _ = step(state, batch)
    assert bits(state.batch_stats) == bits(variables["batch_stats"])
    with CheckpointStore(tmp_path / "run") as store:
        store.save(state)
        restored = store.restore(like=create_state(variables, tx, ema=True))
    assert bits(restored) == bits(state)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(4, name="backbone")(x.reshape(x.shape[0], -1))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3, name="fc")(x)


def test_dropout_of_a_parent_that_is_trained_stays_on(batch):
    model = Dropped()
    variables = random_variables(model, batch["image"].shape[1:])
    tx = freeze(sgd(0.0), variables["params"], "fc/**")
    step = make_train_step(classification_loss(model), tx)
    state = create_state(variables, tx)
    losses = set()
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.add(float(metrics["loss"]))
    assert len(losses) == 3
