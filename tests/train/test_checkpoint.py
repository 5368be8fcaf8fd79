"""Checkpoints: exact round trips, latest and best, and readable refusals."""

import asyncio
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from random_variables import random_variables

from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.train import create_state
from jaxvision.train.checkpoint import (
    CheckpointStore,
    load_checkpoint,
    load_meta,
    load_variables,
    save_variables,
)
from jaxvision.train.optim import adamw, sgd

OPTIONS = {"features": [2, 3], "hidden": [8], "num_classes": 4}
META = {
    "model": "lenet",
    "options": OPTIONS,
    "input_shape": [28, 28, 1],
    "class_names": list("abcd"),
}
IMAGES = jnp.zeros((1, 28, 28, 1))


@functools.cache
def new_variables(model, options, seed):
    return random_variables(get_model(model, **json.loads(options)), IMAGES.shape[1:], seed)


def new_state(*, tx=None, ema=False, seed=0, step=0, model="lenet", **options):
    variables = new_variables(model, json.dumps(options or OPTIONS), seed)
    state = create_state(variables, tx or sgd(0.1, momentum=0.9), ema=ema)
    return state.replace(step=jnp.int32(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("tx", [sgd(0.1), sgd(0.1, momentum=0.9), adamw(1e-3)])
def test_a_state_comes_back_bit_for_bit(tmp_path, tx, ema):
    state = new_state(tx=tx, ema=ema, seed=1, step=7)
    with CheckpointStore(tmp_path) as store:
        store.save(state, meta=META)
    with CheckpointStore(tmp_path) as store:
        assert_same(store.restore(like=new_state(tx=tx, ema=ema)), state)
        assert store.meta() == META


def test_a_state_is_bound_to_a_device_only_where_its_like_is(tmp_path):
    """The program that jax compiles depends on it: a resumed run's is then in the cache."""
    state, device = new_state(step=1), jax.devices()[0]
    with CheckpointStore(tmp_path) as store:
        store.save(state, meta=META)
        for like in (state, jax.device_put(state, device)):
            restored = store.restore(like=like)
            assert all(
                x.committed == y.committed
                for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True)
            )
            assert restored.step.devices() == {device}
    save_variables(tmp_path / "weights", {"params": state.params})
    alone = load_variables(tmp_path / "weights", {"params": state.params})
    for variables in (load_checkpoint(tmp_path)[1], alone):
        assert not any(x.committed for x in jax.tree.leaves(variables))


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    """The write goes on in the background while steps donate the very buffers being written."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.tree.map(lambda x: jnp.ones((512, 512)), new_state().params)
    full = new_state().replace(params=state)
    with CheckpointStore(tmp_path) as store:
        store.save(full)
        for _ in range(20):
            full = step(full)
        restored = store.restore(like=full)
    assert all((np.asarray(x) == 1).all() for x in jax.tree.leaves(restored.params))


def test_keeps_the_latest_and_the_best(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for step, loss in enumerate([0.5, 0.1, 0.4, 0.3], start=1):
            store.save(new_state(step=step), metrics={"val_loss": loss, "val_accuracy": 1 - loss})
        store.save(new_state(step=5))
        store.wait()
        assert store.steps() == [2, 5]
        assert (store.step("latest"), store.step("best")) == (5, 2)
        assert store.metrics("best") == {"val_loss": 0.1, "val_accuracy": 0.9}
        assert store.metrics("latest") == {}
        assert int(store.restore(like=new_state(), which="best").step) == 2
        assert int(store.restore(like=new_state(), which=5).step) == 5


@pytest.mark.parametrize(
    ("best", "mode", "expected"),
    [("val/accuracy", None, 2), ("val/loss", None, 1), ("val/loss", "max", 2), (None, None, 1)],
)
def test_best_is_by_the_named_metric(tmp_path, best, mode, expected):
    with CheckpointStore(tmp_path, best=best, mode=mode) as store:
        store.save(new_state(step=1), metrics={"val/loss": 0.1, "val/accuracy": 0.2})
        store.save(new_state(step=2), metrics={"val/loss": 0.3, "val/accuracy": 0.8})
    with CheckpointStore(tmp_path, read_only=True) as store:
        assert store.step("best") == expected


def test_an_older_step_is_refused_and_the_same_step_kept(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(new_state(step=5, seed=1))
        store.save(new_state(step=5, seed=2))
        with pytest.raises(UserError, match="already holds a checkpoint of step 5"):
            store.save(new_state(step=4))
        assert_same(store.restore(like=new_state()), new_state(step=5, seed=1))


def test_mismatches_are_one_error_with_a_diff(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(new_state(step=1))
        wider = new_state(**{**OPTIONS, "hidden": [9]})
        with pytest.raises(
            UserError, match=r"params/fc1/kernel: expected float32\[48,9\], found fl"
        ):
            store.restore(like=wider)
        with pytest.raises(UserError, match=r"missing     params/fc3/bias float32\[4\]"):
            store.restore(like=new_state(**{**OPTIONS, "hidden": [8, 4]}))
        with pytest.raises(UserError, match=r"unexpected  params/conv1/kernel float32\[5,5,1,2\]"):
            store.restore(like=new_state(model="mlp", hidden=[3]))
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), new_state())
        with pytest.raises(UserError, match=r"expected bfloat16\[2\], found float32\[2\]"):
            store.restore(like=half)
        with pytest.raises(UserError, match=r"missing     opt_state"):
            store.restore(like=new_state(tx=adamw(0.1)))
        with pytest.raises(UserError, match="missing     ema/params"):
            store.restore(like=new_state(ema=True))


def test_load_checkpoint_needs_only_the_folder(tmp_path):
    state = new_state(seed=3, step=1)
    with CheckpointStore(tmp_path) as store:
        store.save(state, metrics={"val_loss": 0.5}, meta=META)
    model, variables, meta = load_checkpoint(tmp_path)
    assert meta == load_meta(tmp_path) == {**META, "step": 1}
    images = jax.random.uniform(jax.random.key(0), (3, 28, 28, 1))
    own = jax.jit(get_model("lenet", **OPTIONS).apply)({"params": state.params}, images)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, images), own)


def test_load_checkpoint_waits_for_what_this_process_is_writing(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(new_state(seed=step, step=step), meta=META)
        _, variables, meta = load_checkpoint(tmp_path)
        assert meta["step"] == step
        assert_same(variables["params"], new_state(seed=step).params)
    store.close()


def test_load_checkpoint_gives_the_moving_average(tmp_path):
    state = new_state(ema=True, step=1)
    average = jax.tree.map(lambda x: x + 1, state.ema)
    with CheckpointStore(tmp_path) as store:
        store.save(state.replace(ema=average), meta=META)
    _, variables, _ = load_checkpoint(tmp_path)
    assert_same(variables["params"], average["params"])


def test_weights_alone(tmp_path):
    variables, other = ({"params": new_state(seed=seed).params} for seed in (0, 1))
    save_variables(tmp_path / "weights", variables)
    assert_same(load_variables(tmp_path / "weights", like=other)["params"], variables["params"])
    with pytest.raises(UserError, match="exists already"):
        save_variables(tmp_path / "weights", variables)
    with pytest.raises(UserError, match="does not fit the model"):
        load_variables(
            tmp_path / "weights", like={"params": new_state(model="mlp", hidden=[3]).params}
        )
    with pytest.raises(UserError, match="no weights at"):
        load_variables(tmp_path / "nothing", like=variables)


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoints in"):
        load_checkpoint(tmp_path)
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(UserError, match="no complete checkpoint in"):
            store.restore(like=new_state())
        store.save(new_state(step=1))
        with pytest.raises(UserError, match="there are 'latest', 'best' and the steps 1"):
            store.restore(like=new_state(), which=3)
    for load in (load_checkpoint, load_meta):
        with pytest.raises(UserError, match="does not say its model, options, input_shape"):
            load(tmp_path)


@pytest.mark.parametrize("victim", ["state", "meta"])
def test_a_half_copied_checkpoint_is_one_clear_error(tmp_path, victim):
    with CheckpointStore(tmp_path) as store:
        store.save(new_state(step=1), meta=META)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / victim)
    with pytest.raises(UserError, match="cannot be read, it is damaged or incomplete"):
        load_checkpoint(tmp_path)


def test_meta_must_be_json(tmp_path):
    with CheckpointStore(tmp_path) as store, pytest.raises(UserError, match="plain JSON"):
        store.save(new_state(), meta={"model": object()})


def test_a_leftover_of_a_killed_write_is_ignored(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save(new_state(step=1), meta=META)
    leftover = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    leftover.mkdir()
    with CheckpointStore(tmp_path, read_only=True) as store:
        assert store.steps() == [1]
    assert leftover.exists()  # a reader changes nothing: a writer may be at work
    with CheckpointStore(tmp_path) as store:
        store.save(new_state(step=2), meta=META)
        store.wait()
        assert store.steps() == [2]


def test_a_write_that_ends_after_a_failed_one_says_nothing(tmp_path, monkeypatch):
    """Tensorstore's threads report it to an event loop that orbax has closed."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(unraisable.exc_value))

    def end_late():
        promise, write = tensorstore.Promise.new()
        loop = asyncio.new_event_loop()

        async def wait():
            return write.__await__()

        waiting = loop.run_until_complete(wait())
        loop.close()
        promise.set_result(1)
        return waiting

    end_late()
    assert [str(error) for error in said] == ["Event loop is closed"]  # as Python prints it
    CheckpointStore(tmp_path).close()
    end_late()
    assert len(said) == 1
    CheckpointStore(tmp_path).close()
    sys.unraisablehook(SimpleNamespace(exc_value=ValueError("another"), object=None))
    assert [type(error) for error in said] == [RuntimeError, ValueError]


TESTS = [str(folder) for folder in Path(__file__).parents[:2]]
SAVE = """
import sys, jax, jax.numpy as jnp
sys.path[:0] = {tests!r}
from test_checkpoint import META, new_state
from jaxvision.errors import exit_on_user_error
from jaxvision.train.checkpoint import CheckpointStore
with exit_on_user_error(), CheckpointStore({run!r}) as store:
    store.save(new_state(step=1), meta=META)
    store.wait()
    big = new_state(step=2, features=[2, 3], hidden=[{width}], num_classes=4)
    store.save(big, meta=META)
"""


def on_a_disk_of(size: str, script: str, place: Path) -> subprocess.CompletedProcess:
    """Runs `script` with a small disk at `place`/disk; its files are then in `place`/kept."""
    shell = f"""
        mkdir -p {place}/disk && mount -t tmpfs -o size={size} none {place}/disk || exit 77
        {sys.executable} -c "$SCRIPT" ; status=$?
        cp -r {place}/disk {place}/kept; exit $status
    """
    return subprocess.run(
        ["unshare", "--map-root-user", "--user", "--mount", "sh", "-c", shell],
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_stays(tmp_path):
    script = SAVE.format(tests=TESTS, run=f"{tmp_path}/disk/run", width=60_000)
    result = on_a_disk_of("2m", script, tmp_path)
    if result.returncode == 77:
        pytest.skip("this machine does not let an ordinary user mount a tmpfs")
    assert result.returncode == 1, result.stderr
    # Of the full disk one line alone: what orbax's threads log besides may come after it.
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: could not write a checkpoint to"), result.stderr
    assert line.endswith("the disk is full; earlier checkpoints are untouched"), result.stderr
    assert "Traceback" not in result.stderr
    with CheckpointStore(tmp_path / "kept" / "run", read_only=True) as store:
        assert store.steps() == [1]
        assert_same(store.restore(like=new_state()), new_state(step=1))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write checkpoints to"):
        CheckpointStore(tmp_path / "file")


def test_metrics_are_checked_before_anything_is_written(tmp_path):
    with CheckpointStore(tmp_path, best="val/loss") as store:
        with pytest.raises(UserError, match="no metric 'val/loss'"):
            store.save(new_state(step=1), metrics={"val/accuracy": 0.5})
        with pytest.raises(ValueError, match="cannot rank"):
            store.save(new_state(step=1), metrics={"val/loss": float("nan")})
        assert store.steps() == []
