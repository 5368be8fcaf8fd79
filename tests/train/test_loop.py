"""The loop: batches by step, records, evaluation, checkpoints, signals, divergence."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvision.errors import UserError
from jaxvision.train import create_state, evaluate, fit, make_eval_step, make_train_step
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.log import RunLog
from jaxvision.train.loop import DivergedError
from jaxvision.train.optim import sgd

TX = sgd(0.1)


def loss_fn(params, batch_stats, batch, key, train=True):
    """Fits w to the mean of x: the gradient at w is w - mean(x)."""
    loss = 0.5 * jnp.mean(jnp.square(params["w"] - batch["x"]))
    return loss, (batch_stats, {"w": params["w"]})


def batch_at(step):
    return {"x": np.full(4, step, np.float32)}


@pytest.fixture
def train_step():
    return make_train_step(loss_fn, TX)


def new_state():
    return create_state({"params": {"w": jnp.float32(1.0)}}, TX)


def expected_w(steps, w=1.0):
    for step in range(steps):
        w -= np.float32(0.1) * (w - step)
    return w


def read(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_takes_each_step_with_its_own_batch(train_step, workers):
    result = fit(new_state(), train_step, batch_at, steps=9, steps_per_epoch=4, workers=workers)
    assert int(result.state.step) == 9
    assert result.stopped_by is None
    np.testing.assert_allclose(result.state.params["w"], expected_w(9), rtol=1e-6)


def test_goes_on_from_the_state_it_is_given(train_step):
    half = fit(new_state(), train_step, batch_at, steps=5, steps_per_epoch=4).state
    result = fit(half, train_step, batch_at, steps=9, steps_per_epoch=4)
    np.testing.assert_allclose(result.state.params["w"], expected_w(9), rtol=1e-6)
    done = fit(result.state, train_step, batch_at, steps=9, steps_per_epoch=4)
    assert int(done.state.step) == 9


def test_records_hold_every_step_once(tmp_path, train_step):
    with RunLog(tmp_path, quiet=True) as log:
        fit(
            new_state(),
            train_step,
            batch_at,
            steps=10,
            steps_per_epoch=4,
            batch_size=4,
            log=log,
            log_every=3,
            schedule=lambda step: 0.5 + step,
            evaluate=lambda state: {"loss": float(state.step), "accuracy": 0.5},
        )
    train = [r for r in read(tmp_path) if "train/loss" in r]
    assert [(r["step"], r["epoch"]) for r in train] == [
        (3, 1),
        (4, 1),
        (6, 2),
        (8, 2),
        (9, 3),
        (10, 3),
    ]
    assert [r["train/learning_rate"] for r in train] == [2.5, 3.5, 5.5, 7.5, 8.5, 9.5]
    ws = [expected_w(n) for n in range(10)]  # w before each step
    np.testing.assert_allclose(train[0]["train/w"], np.mean(ws[:3]), rtol=1e-5)
    np.testing.assert_allclose(train[-1]["train/w"], ws[9], rtol=1e-5)
    assert all(r["train/examples_per_second"] > 0 for r in train)
    validation = [r for r in read(tmp_path) if "val/loss" in r]
    assert [(r["step"], r["epoch"], r["val/loss"]) for r in validation] == [
        (4, 1, 4.0),
        (8, 2, 8.0),
        (10, 3, 10.0),
    ]
    assert any((tmp_path / "tensorboard").iterdir())


def test_checkpoints_at_epochs_ends_and_in_between(tmp_path, train_step):
    saved = []

    class Watched(CheckpointStore):
        def save(self, state, metrics=None, meta=None):
            saved.append((int(state.step), metrics))
            super().save(state, metrics, meta)

    losses = iter([3.0, 1.0, 2.0])
    with Watched(tmp_path, best="val/loss") as store:
        fit(
            new_state(),
            train_step,
            batch_at,
            steps=9,
            steps_per_epoch=4,
            store=store,
            checkpoint_every=3,
            evaluate=lambda state: {"loss": next(losses)},
        )
        assert saved == [
            (3, None),
            (4, {"val/loss": 3.0}),
            (6, None),
            (8, {"val/loss": 1.0}),
            (9, {"val/loss": 2.0}),
        ]
        assert (store.step("best"), store.step("latest")) == (8, 9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, train_step, number):
    def batches(step):
        if step == 5:
            signal.raise_signal(number)
        return batch_at(step)

    before = signal.getsignal(number)
    with CheckpointStore(tmp_path) as store:
        result = fit(new_state(), train_step, batches, steps=20, steps_per_epoch=10, store=store)
        assert result.stopped_by == number
        assert int(result.state.step) == 6
        assert store.steps() == [6]
    assert signal.getsignal(number) == before


def test_a_signal_after_the_last_step_is_not_lost(tmp_path, train_step):
    def evaluate(state):
        if int(state.step) == 20:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": 1.0}

    with CheckpointStore(tmp_path) as store:
        options = {"steps": 20, "steps_per_epoch": 10, "store": store, "evaluate": evaluate}
        result = fit(new_state(), train_step, batch_at, **options)
        assert result.stopped_by == signal.SIGTERM
        assert store.step("latest") == 20


@pytest.fixture
def pythons_own_ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, as from a shell; pytest-xdist's workers ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_ctrl_c")
def test_a_second_ctrl_c_interrupts_at_once(train_step):
    def batches(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        fit(new_state(), train_step, batches, steps=20, steps_per_epoch=10)


@pytest.mark.parametrize("log_every", [1, 4, 100])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nan_in_a_batch_is_reported_with_its_step(tmp_path, train_step, poison, log_every):
    def batches(step):
        x = batch_at(step)["x"]
        if step == 6:
            x[2] = poison
        return {"x": x}

    with CheckpointStore(tmp_path) as store:
        with pytest.raises(
            DivergedError, match=r"is not finite at step 7 \(epoch 2.*step 5 is kept"
        ):
            fit(
                new_state(),
                train_step,
                batches,
                steps=100,
                steps_per_epoch=5,
                store=store,
                log_every=log_every,
            )
        assert store.steps() == [5]
        assert np.isfinite(store.restore(like=new_state()).params["w"])


def test_parameters_that_overflow_are_never_saved(tmp_path):
    """The loss of the last step is still finite: only the parameters tell."""
    tx = optax.chain(optax.scale(-1e38), optax.scale(1e38))
    state = create_state({"params": {"w": jnp.float32(1.0)}}, tx)
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(DivergedError, match=r"the parameters .*step 1 \(epoch 1\)"):
            fit(
                state,
                make_train_step(loss_fn, tx),
                batch_at,
                steps=1,
                steps_per_epoch=1,
                store=store,
            )
        assert store.steps() == []


def test_validation_that_is_not_finite_stops_the_run(tmp_path, train_step):
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(DivergedError, match="validation"):
            fit(
                new_state(),
                train_step,
                batch_at,
                steps=4,
                steps_per_epoch=2,
                store=store,
                evaluate=lambda state: {"loss": float("nan")},
            )
        assert store.steps() == []


def test_the_loop_does_not_wait_for_the_device(train_step, monkeypatch):
    """Within an epoch nothing is fetched but the interval before the last one."""
    fetched = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(calls) or device_get(tree))
    calls = 0

    def counted(state, batch):
        nonlocal calls
        calls += 1
        return train_step(state, batch)

    fit(new_state(), counted, batch_at, steps=20, steps_per_epoch=20, log_every=5)
    assert fetched == [10, 15, 20, 20]  # the interval that ended at 5 is read at 10, and so on


def test_an_error_in_a_batch_reaches_the_caller(train_step):
    def batches(step):
        raise UserError("picture 7 is truncated")

    for workers in (0, 2):
        with pytest.raises(UserError, match="picture 7"):
            fit(new_state(), train_step, batches, steps=3, steps_per_epoch=3, workers=workers)


def test_nonsense_arguments_are_refused(train_step):
    with pytest.raises(ValueError, match="at least 1"):
        fit(new_state(), train_step, batch_at, steps=3, steps_per_epoch=0)


def test_evaluate_is_the_mean_over_valid_examples():
    def mean_x(params, batch_stats, batch, key, train):
        total = jnp.sum(batch["x"], where=batch["valid"])
        mean = total / jnp.maximum(batch["valid"].sum(), 1)
        return mean, (batch_stats, {"x": mean})

    valid = np.array([True, True, False, False])
    batches = [
        {"x": np.array([1, 2, 3, 4], np.float32), "valid": np.ones(4, bool)},
        {"x": np.array([6, 8, 99, 99], np.float32), "valid": valid},
    ]
    metrics = evaluate(make_eval_step(mean_x), new_state(), batches)
    assert metrics == {"loss": 4.0, "x": 4.0}
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(make_eval_step(mean_x), new_state(), [])
