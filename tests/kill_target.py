"""A small training run for the tests to kill, in a process of its own. It goes on where it was."""

from multiprocessing.synchronize import Event

import jax
import numpy as np

from jaxvision.data import ArrayDataset, Batches
from jaxvision.losses import classification_loss
from jaxvision.models import get_model, init_variables
from jaxvision.train import create_state, evaluate, fit, make_eval_step, make_train_step
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.log import RunLog
from jaxvision.train.optim import sgd, step_lr
from jaxvision.train.resident import ResidentData

STEPS = 420


def train(run_dir: str, started: Event) -> None:
    """Trains to the end. Sets `started` when it is about to take its first step."""
    # Every run compiles the same, of which nothing takes long enough to be kept by default.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (333, 12, 12, 1), dtype=np.uint8)
    labels = (images.reshape(333, -1).mean(axis=1) > 127).astype(np.int32)
    dataset = ArrayDataset(images, labels, ("dark", "light"), "noise", "train", "made here")
    batches = Batches(dataset, batch_size=8, seed=3)  # 42 steps an epoch, the last one padded
    data = ResidentData(batches)
    model = get_model("lenet", num_classes=2, features=(4,), kernel_sizes=(3,), hidden=(16,))
    variables = init_variables(model, jax.random.key(0), (12, 12, 1))
    tx = sgd(step_lr(0.05, step_size=2, steps_per_epoch=42), momentum=0.9)
    loss_fn = classification_loss(model, mean=0.5, std=0.5)
    train_step = make_train_step(loss_fn, tx, seed=5, select=data.select)
    eval_step = make_eval_step(loss_fn, select=data.select)
    state = create_state(variables, tx)
    with CheckpointStore(run_dir, best="val/loss") as store:
        if store.steps():
            state = store.restore(like=state)
        started.set()
        with RunLog(run_dir, start_step=int(state.step), quiet=True) as log:
            result = fit(
                state,
                train_step,
                data,
                steps=STEPS,
                steps_per_epoch=42,
                evaluate=lambda s: evaluate(eval_step, s, data.epoch()),
                log=log,
                store=store,
                log_every=7,
                checkpoint_every=10,
            )
    arrays = jax.tree_util.tree_leaves_with_path(result.state)
    np.savez(f"{run_dir}/final.npz", **{jax.tree_util.keystr(path): x for path, x in arrays})
