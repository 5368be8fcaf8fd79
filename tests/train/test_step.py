"""Train and evaluation steps: by hand, in parts, averaged, and on eight simulated devices."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from random_variables import random_variables

from jaxvision.data import ArrayDataset, Batches
from jaxvision.losses import classification_loss
from jaxvision.models import get_model
from jaxvision.train import create_state, evaluate, make_eval_step, make_train_step
from jaxvision.train.optim import rising_decay, sgd
from jaxvision.train.resident import ResidentData

MLP = get_model("mlp", hidden=(8,), num_classes=3)
TX = sgd(0.1, momentum=0.9)
EVALUATED = jax.jit(classification_loss(MLP), static_argnames="train")


class Traced:
    """A loss_fn that counts how often it is traced."""

    def __init__(self, loss_fn):
        self.loss_fn, self.count = loss_fn, 0

    def __call__(self, *args, **options):
        self.count += 1
        return self.loss_fn(*args, **options)


def distance_loss(params, batch_stats, batch, key, train=True):
    """Half the mean squared distance from w to x; draws a number, and counts in batch_stats."""
    loss = 0.5 * jnp.mean((params["w"] - batch["x"]) ** 2)
    if train:
        batch_stats = {"calls": batch_stats["calls"] + 1}
    metrics = {"draw": jax.random.uniform(key), "w": params["w"], "train": jnp.float32(train)}
    return loss, (batch_stats, metrics)


def distance_state(tx, **options):
    start = {"params": {"w": jnp.float32(1)}, "batch_stats": {"calls": jnp.float32(0)}}
    return create_state(start, tx, **options)


def mlp_variables():
    return jax.jit(MLP.init)(jax.random.key(0), jnp.zeros((1, 5, 4, 1)))


def picture_batch(size, valid=None, seed=0):
    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.integers(0, 256, (size, 5, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, 3, size).astype(np.int32),
    }
    return batch if valid is None else {**batch, "valid": np.asarray(valid)}


def copy(tree):
    return jax.tree.map(jnp.array, tree)


def assert_close(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


def test_one_step_by_hand():
    state, metrics = make_train_step(distance_loss, sgd(0.1))(
        distance_state(sgd(0.1)), {"x": np.array([3.0, 5.0], np.float32)}
    )
    # The distances are 2 and 4: half their mean square is 5, the gradient their mean, -3.
    assert float(metrics["loss"]) == 5
    assert float(metrics["grad_norm"]) == 3
    assert (float(metrics["w"]), float(metrics["train"])) == (1, 1)
    assert float(state.params["w"]) == pytest.approx(1.3)
    assert (int(state.step), state.step.dtype) == (1, jnp.int32)
    assert float(state.batch_stats["calls"]) == 1
    assert state.ema is None


def test_the_gradients_norm_is_that_of_all_parameters_together():
    loss_fn, variables, batch = classification_loss(MLP), mlp_variables(), picture_batch(6)
    gradient = jax.jit(jax.grad(loss_fn, has_aux=True))
    grads, _ = gradient(variables["params"], {}, batch, jax.random.key(0))
    expected = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    _, metrics = make_train_step(loss_fn, TX)(create_state(variables, TX), batch)
    assert float(metrics["grad_norm"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bound", [False, True])
def test_the_loss_falls_and_the_step_compiles_once(bound):
    loss_fn = Traced(classification_loss(MLP))
    train_step = make_train_step(loss_fn, TX)
    start = mlp_variables()
    if bound:
        start = jax.device_put(start, jax.devices()[0])
    state, losses = create_state(start, TX), []
    assert all(x.committed == bound for x in jax.tree.leaves(state))
    for _ in range(40):
        state, metrics = train_step(state, picture_batch(6))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 40
    assert loss_fn.count == train_step._cache_size() == 1


def test_the_state_is_donated_and_what_it_was_made_of_is_not():
    variables = mlp_variables()
    state = create_state(variables, TX, ema=True)
    make_train_step(classification_loss(MLP), TX, ema_decay=0.9)(state, picture_batch(6))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(state.params["fc1"]["kernel"])
    assert not any(x.is_deleted() for x in jax.tree.leaves(variables))


def test_the_key_is_a_function_of_seed_and_step_only():
    def draws(seed, start, values):
        step_fn = make_train_step(distance_loss, TX, seed=seed)
        state = distance_state(TX).replace(step=jnp.int32(start))
        drawn = []
        for value in values:
            state, metrics = step_fn(state, {"x": np.full(2, value, np.float32)})
            drawn.append(float(metrics["draw"]))
        return drawn

    expected = [
        float(jax.random.uniform(jax.random.fold_in(jax.random.key(7), step))) for step in range(4)
    ]
    assert len(set(expected)) == 4
    assert draws(seed=7, start=0, values=[1, 2, 3, 4]) == expected
    assert draws(seed=7, start=2, values=[8, 9]) == expected[2:]
    assert draws(seed=8, start=0, values=[1])[0] not in expected


VALID = {
    "no padding": None,
    "uneven": [True, False, False, False, True, True, False, False, True, True, False, False],
    # Part i has rows i, i + parts, ...: none of part 0 is valid, whether there are 2 or 4 parts.
    "an empty part": [row in {1, 5, 7, 11} for row in range(12)],
    "nothing": [False] * 12,
}


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("valid", VALID.values(), ids=VALID)
def test_accumulating_parts_equals_the_whole_batch(parts, valid):
    loss_fn, variables = classification_loss(MLP), mlp_variables()
    batches = [picture_batch(12, valid, seed) for seed in range(3)]
    for batch in batches if valid else []:
        batch["label"][~batch["valid"]] = -1
    results = []
    for accumulate in (1, parts):
        train_step = make_train_step(loss_fn, TX, accumulate=accumulate)
        state, rows = create_state(variables, TX), []
        for batch in batches:
            state, metrics = train_step(state, batch)
            rows.append({name: float(value) for name, value in metrics.items()})
        results.append((state, rows))
    (whole, expected), (state, got) = results
    assert_close(state.params, whole.params, rtol=1e-6, atol=1e-6)
    assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert any(row["grad_norm"] > 0.01 for row in got) == (valid is None or any(valid))


def test_a_part_without_a_valid_example_adds_nothing_whatever_it_says():
    def loss_fn(params, batch_stats, batch, key, train=True):
        valid = batch["valid"]
        losses = jnp.sqrt(params["w"] * batch["x"])  # whose gradient is infinite at 0
        loss = jnp.sum(losses, where=valid) / jnp.maximum(valid.sum(), 1)
        return loss, (batch_stats, {})

    valid = np.array([True, False, True, False])
    batch = {"x": np.array([4.0, 0.0, 9.0, 0.0], np.float32), "valid": valid}
    step = make_train_step(loss_fn, sgd(0.1), accumulate=2)
    start = create_state({"params": {"w": jnp.float32(1)}}, sgd(0.1))
    state, metrics = step(start, batch)
    assert float(metrics["loss"]) == 2.5
    assert float(state.params["w"]) == pytest.approx(1 - 0.1 * 1.25)


def test_accumulated_parts_follow_each_other_with_keys_of_their_own():
    batch = {"x": np.arange(6, dtype=np.float32)}
    state, metrics = make_train_step(distance_loss, TX, seed=3, accumulate=3)(
        distance_state(TX), batch
    )
    assert float(state.batch_stats["calls"]) == 3
    assert int(state.step) == 1
    key = jax.random.fold_in(jax.random.key(3), 0)
    draws = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(3)]
    assert float(metrics["draw"]) == pytest.approx(np.mean(draws))


def test_parts_of_unequal_size_are_an_error():
    with pytest.raises(ValueError, match="batch of 5 does not split into accumulate=2 equal parts"):
        make_train_step(distance_loss, TX, accumulate=2)(
            distance_state(TX), {"x": np.zeros(5, np.float32)}
        )


def averaged(decay, average, value):
    return decay * average + (1 - decay) * float(value)


@pytest.mark.parametrize("ema_decay", [0.75, rising_decay(0.75)], ids=["constant", "rising"])
def test_the_moving_average_by_its_formula(ema_decay):
    tx = sgd(0.5)
    train_step = make_train_step(distance_loss, tx, ema_decay=ema_decay)
    state = distance_state(tx, ema=True)
    expected = {"params": {"w": 1.0}, "batch_stats": {"calls": 0.0}}
    for step in range(5):
        decay = float(ema_decay(step)) if callable(ema_decay) else ema_decay
        state, _ = train_step(state, {"x": np.array([9.0], np.float32)})
        values = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(partial(averaged, decay), expected, values)
        assert_close(state.ema, expected, rtol=1e-6)
        assert state.variables is state.ema
    lag = 0.0 if callable(ema_decay) else 0.5
    assert float(state.ema["params"]["w"]) < float(state.params["w"]) - lag


@pytest.mark.parametrize(("decay", "ema"), [(0.9, False), (None, True)])
def test_a_moving_average_on_one_side_only_is_an_error(decay, ema):
    state = distance_state(TX, ema=ema)
    with pytest.raises(ValueError, match=rf"ema_decay is {decay}, .*ema={ema}: give both"):
        make_train_step(distance_loss, TX, ema_decay=decay)(state, {"x": np.zeros(2, np.float32)})


def test_evaluation_sums_over_valid_examples():
    loss_fn, variables = classification_loss(MLP), mlp_variables()
    state = create_state(variables, TX)
    valid = np.arange(6) < 4
    batch = picture_batch(6, valid)
    sums = make_eval_step(loss_fn)(state, batch)
    kept = {name: x[valid] for name, x in batch.items() if name != "valid"}
    mean, (_, metrics) = EVALUATED(variables["params"], {}, kept, None, train=False)
    assert set(sums) == {"loss", "accuracy", "count"}
    assert float(sums["count"]) == 4
    assert float(sums["loss"]) == pytest.approx(4 * float(mean), rel=1e-5)
    assert float(sums["accuracy"]) == pytest.approx(4 * float(metrics["accuracy"]), abs=1e-5)
    assert float(make_eval_step(loss_fn)(state, kept)["count"]) == 4
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def numbers(size):
    batch = picture_batch(size, seed=5)
    names = ("a", "b", "c")
    return ArrayDataset(batch["image"], batch["label"], names, "noise", "test", "made")


@pytest.mark.parametrize("batch_size", [11, 4, 3, 1])
def test_a_padded_last_batch_leaves_the_mean_exact(batch_size):
    dataset, loss_fn = numbers(11), Traced(classification_loss(MLP))
    state = create_state(mlp_variables(), TX)
    whole = {"image": dataset.images, "label": dataset.labels}
    loss, (_, metrics) = EVALUATED(state.params, {}, whole, None, train=False)
    batches = Batches(dataset, batch_size, shuffle=False)
    eval_step = make_eval_step(loss_fn)
    got = evaluate(eval_step, state, (batches(n) for n in range(batches.steps_per_epoch)))
    assert got["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert got["accuracy"] == pytest.approx(float(metrics["accuracy"]), rel=1e-6)
    assert loss_fn.count == eval_step._cache_size() == 1


def test_evaluation_takes_the_moving_average_in_evaluation_mode():
    average = {"params": {"w": jnp.float32(4)}, "batch_stats": {"calls": jnp.float32(2)}}
    state = distance_state(TX, ema=True).replace(ema=average)
    sums = make_eval_step(distance_loss)(state, {"x": np.zeros(3, np.float32)})
    assert float(sums["w"]) == 3 * 4
    assert float(sums["train"]) == 0
    assert float(sums["loss"]) == 3 * 8


def test_a_mesh_without_a_data_axis_is_an_error():
    mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    for make in (
        lambda: make_train_step(distance_loss, TX, mesh=mesh),
        lambda: make_eval_step(distance_loss, mesh),
    ):
        with pytest.raises(ValueError, match=r"axes \('model',\), expected one called 'data'"):
            make()


def test_eight_devices_equal_one(on_eight_devices):
    got = on_eight_devices(__file__)
    assert got["moved"] > 0.01
    assert got["difference"].keys() == {"mesh", "accumulate", "resident"}
    assert all(difference < 1e-5 for difference in got["difference"].values()), got["difference"]
    assert set(got["traces"].values()) == {1}, got["traces"]
    assert got["shards"] == [[2, 9]]
    assert got["replicated"]
    assert got["eval"]["mesh"] == pytest.approx(got["eval"]["one device"], rel=1e-5)
    assert got["eval"]["resident"] == pytest.approx(got["eval"]["one device"], rel=1e-5)
    for name, size in {"train": 12, "eval": 12, "select": 12, "accumulate": 4}.items():
        expected = f"a batch of {size} does not split over the 8 devices of the mesh's 'data' axis"
        assert got["errors"][name].startswith(expected)


def train_on_eight_devices():
    """Runs a small LeNet for 50 steps on one device and on a mesh of eight; returns what it saw."""
    auto = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 28, 28, 1), dtype=np.uint8)
    labels = rng.integers(0, 10, 90).astype(np.int32)
    dataset = ArrayDataset(images, labels, ("class",) * 10, "noise", "train", "made")
    batches = Batches(dataset, batch_size=16)  # the last of six is padded
    model = get_model("lenet", features=(4,), kernel_sizes=(5,), hidden=(16,))
    variables, tx = random_variables(model, (28, 28, 1)), sgd(0.05, momentum=0.9)
    resident = ResidentData(batches, explicit)
    variants = {
        "one device": (batches, {}),
        "mesh": (batches, {"mesh": auto}),
        "accumulate": (batches, {"mesh": auto, "accumulate": 2}),
        "resident": (resident, {"mesh": explicit, "select": resident.select}),
    }
    states, traces = {}, {}
    for name, (batch_at, options) in variants.items():
        loss_fn = Traced(classification_loss(model))
        train_step = make_train_step(loss_fn, tx, **options)
        state = create_state(variables, tx)
        for step in range(50):
            state, _ = train_step(state, batch_at(step))
        states[name], traces[name] = state, loss_fn.count // options.get("accumulate", 1)

    loss_fn, state = classification_loss(model), states["one device"]
    host = [batches(step) for step in range(batches.steps_per_epoch)]
    shards = []

    def seen_loss(params, batch_stats, batch, key, train=True):
        jax.debug.inspect_array_sharding(
            batch["image"], callback=lambda sharding: shards.append(sharding.shard_shape((16, 9)))
        )
        return loss_fn(params, batch_stats, batch, key, train)

    resident_step = make_eval_step(loss_fn, explicit, select=resident.select)
    evaluations = {
        "one device": evaluate(make_eval_step(loss_fn), state, host),
        "mesh": evaluate(make_eval_step(seen_loss, auto), state, host),
        "resident": evaluate(resident_step, state, resident.epoch()),
    }

    odd, odd_data = Batches(dataset, 12), ResidentData(Batches(dataset, 12), auto)
    calls = {
        "train": lambda: make_train_step(loss_fn, tx, mesh=auto)(state, odd(0)),
        "eval": lambda: make_eval_step(loss_fn, auto)(state, odd(0)),
        "select": lambda: make_train_step(loss_fn, tx, mesh=auto, select=odd_data.select)(
            state, odd_data(0)
        ),
        "accumulate": lambda: make_train_step(loss_fn, tx, mesh=auto, accumulate=4)(state, host[0]),
    }
    errors = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            errors[name] = str(error)
    return {
        "moved": difference(variables["params"], state.params),
        "difference": {
            name: difference(state.params, states[name].params) for name in list(states)[1:]
        },
        "traces": traces,
        "shards": shards,
        "replicated": all(
            x.sharding.is_fully_replicated and len(x.sharding.device_set) == 8
            for x in jax.tree.leaves(states["mesh"])
        ),
        "eval": evaluations,
        "errors": errors,
    }


def difference(expected, got):
    """Returns the largest relative difference of any parameter array, by its norm."""
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs)


if __name__ == "__main__":
    print(json.dumps(train_on_eight_devices()))


def test_a_state_may_be_created_within_jit():
    leaves = jax.jit(lambda v: jax.tree.leaves(create_state(v, TX, ema=True)))(mlp_variables())
    expected = jax.tree.leaves(create_state(mlp_variables(), TX, ema=True))
    for ours, theirs in zip(leaves, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
