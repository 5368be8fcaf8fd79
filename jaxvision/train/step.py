"""Jitted train and evaluation steps. They know no task: a task brings its `loss_fn`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvision.errors import UserError
from jaxvision.train.optim import Freeze, Schedule
from jaxvision.train.state import TrainState
from jaxvision.train.trainable import frozen_as_in_inference, merge_params, split_params
from jaxvision.types import Batch, LossFn, Metrics

DATA_AXIS = "data"
"""The mesh axis over which batches are sharded."""

Select = Callable[[Any, jax.Array], Batch]
"""`(data, step) -> batch`, run inside the jitted step: see `jaxvision.train.resident`."""


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    seed: int = 0,
    mesh: Mesh | None = None,
    *,
    accumulate: int = 1,
    ema_decay: float | Schedule | None = None,
    select: Select | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns jitted `(state, batch) -> (state, metrics)`, which donates `state`.

    The metrics are those of `loss_fn`, and `loss` and `grad_norm`. The key that `loss_fn` gets is a
    function of (seed, step) alone.

    `accumulate` splits the batch into that many parts, one after the other, and adds their
    gradients before the one update: the result of the whole batch (but for BatchNorm, which sees
    the parts) in less memory. `ema_decay` d keeps `ema = d * ema + (1 - d) * value` of params and
    batch_stats, d a number or a function of the step, such as `rising_decay`; the state must have
    been created with `ema=True`. `mesh` shards the batch over the mesh's `data` axis and replicates
    the rest. `select` makes the batch inside the step, from data
    on the device. Where `tx` is made by `freeze`, what it freezes is not differentiated by.
    """
    mesh = auto_mesh(mesh)
    grad_fn = jax.value_and_grad(_loss_of_trainable(loss_fn, tx), has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_ema(state, ema_decay)
        if select is not None:
            batch = select(batch, state.step)
        batch = _shard(batch, mesh)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trainable, frozen = _split_for(tx, state.params)
        if accumulate == 1:
            (loss, (batch_stats, metrics)), grads = grad_fn(
                trainable, frozen, state.batch_stats, batch, key
            )
        else:
            parts = _split(batch, accumulate, mesh)
            loss, batch_stats, metrics, grads = _accumulated(
                partial(grad_fn, trainable, frozen), state.batch_stats, parts, key
            )
        inner = tx.inner if isinstance(tx, Freeze) else tx
        updates, opt_state = inner.update(grads, state.opt_state, trainable)
        params = optax.apply_updates(trainable, updates)
        if frozen:
            params = merge_params(params, frozen)
        ema = state.ema
        if ema_decay is not None:
            decay = ema_decay(state.step) if callable(ema_decay) else ema_decay
            new = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(partial(_moving_average, decay), ema, new)
        metrics = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return _jit(train_step, mesh, sharded_batch=select is None, donate_argnums=0)


def make_eval_step(
    loss_fn: LossFn, mesh: Mesh | None = None, *, select: Select | None = None
) -> Callable[[TrainState, Any], Metrics]:
    """Returns jitted `(state, batch) -> metrics`: *sums* over valid examples, and `count`.

    Sums add up over batches of any size and padding; `evaluate` turns them into means. Nothing in
    the state changes, and the moving average is used where there is one. With `select`,
    the batch is the data and `step`, as `ResidentData.epoch` gives them.
    """
    mesh = auto_mesh(mesh)

    def eval_step(state: TrainState, batch: Batch) -> Metrics:
        if select is not None:
            batch = select(batch, batch["step"])
        batch = _shard(batch, mesh)
        variables = state.variables
        loss, (_, metrics) = loss_fn(
            variables["params"], variables["batch_stats"], batch, jax.random.key(0), train=False
        )
        count = _num_valid(batch)
        sums = jax.tree.map(lambda mean: mean * count, {**metrics, "loss": loss})
        return {**sums, "count": count}

    return _jit(eval_step, mesh, sharded_batch=select is None)


def auto_mesh(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh with axes of type Auto; those of `jax.make_mesh` are Explicit by default."""
    return None if mesh is None else Mesh(mesh.devices, mesh.axis_names)


def _check_ema(state: TrainState, ema_decay: float | Schedule | None) -> None:
    if (state.ema is None) != (ema_decay is None):
        raise ValueError(
            f"ema_decay is {ema_decay}, but the state was created with "
            f"ema={state.ema is not None}: give both or neither"
        )


def _split_for(tx, params) -> tuple[Any, Any]:
    """Returns the parameters that `tx` trains, and the ones that it freezes."""
    return split_params(params, tx.trainable) if isinstance(tx, Freeze) else (params, {})


def _loss_of_trainable(loss_fn: LossFn, tx):
    """Returns `loss_fn` as `(trainable, frozen, batch_stats, batch, key) -> …`."""

    def loss_of_trainable(trainable, frozen, batch_stats, batch, key):
        if not isinstance(tx, Freeze):
            return loss_fn(trainable, batch_stats, batch, key)
        params = merge_params(trainable, frozen)
        with frozen_as_in_inference(params, tx.trainable):
            return loss_fn(params, batch_stats, batch, key)

    return loss_of_trainable


def _moving_average(decay: Any, average: jax.Array, new: jax.Array) -> jax.Array:
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return new  # a count, such as BatchNorm's num_batches_tracked
    return (decay * average + (1 - decay) * new).astype(average.dtype)


def _accumulated(grad_fn, batch_stats: Any, parts: list[Batch], key: jax.Array):
    """Returns (loss, batch_stats, metrics, grads), each part weighted by its valid examples."""
    counts = [_num_valid(part) for part in parts]
    total = jnp.maximum(sum(counts), 1)
    mean = None
    # A Python loop: a convolution within lax.scan is several times slower on the CPU.
    for i, (part, count) in enumerate(zip(parts, counts, strict=True)):
        (loss, (batch_stats, metrics)), grads = grad_fn(
            batch_stats, part, jax.random.fold_in(key, i)
        )
        weight = count / total
        # A part without a valid example may say anything, even NaN.
        weighted = jax.tree.map(
            lambda x, w=weight: jnp.where(w > 0, w * x, 0), (loss, metrics, grads)
        )
        mean = weighted if mean is None else jax.tree.map(jnp.add, mean, weighted)
    loss, metrics, grads = mean
    return loss, batch_stats, metrics, grads


def _split(batch: Batch, parts: int, mesh: Mesh | None) -> list[Batch]:
    """Deals the batch's rows out to `parts` batches of equal size."""
    size = _batch_size(batch)
    if size % parts:
        raise UserError(f"a batch of {size} does not split into accumulate={parts} equal parts")
    # Dealt like cards, so that each part takes as many rows from every device's shard.
    return [_shard({name: x[i::parts] for name, x in batch.items()}, mesh) for i in range(parts)]


def _batch_size(batch: Batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _num_valid(batch: Batch) -> jax.Array:
    if "valid" in batch:
        return jnp.asarray(batch["valid"]).sum().astype(jnp.float32)
    return jnp.float32(_batch_size(batch))


def _shard(batch: Batch, mesh: Mesh | None) -> Batch:
    if mesh is None:
        return batch
    _check_divides(batch, mesh)
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def _check_divides(batch: Batch, mesh: Mesh) -> None:
    size, devices = _batch_size(batch), mesh.shape[DATA_AXIS]
    if size % devices:
        raise UserError(
            f"a batch of {size} does not split over the {devices} devices of the mesh's "
            f"{DATA_AXIS!r} axis; use a batch size that is a multiple of {devices}"
        )


def _jit(function, mesh: Mesh | None, *, sharded_batch: bool, **options):
    """Jits `(state, batch) -> …`; over a mesh the state and all results are replicated."""
    if mesh is None:
        return jax.jit(function, **options)
    if DATA_AXIS not in mesh.axis_names:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, expected one called {DATA_AXIS!r}")
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    batch_sharding = rows if sharded_batch else everywhere
    jitted = jax.jit(
        function, in_shardings=(everywhere, batch_sharding), out_shardings=everywhere, **options
    )

    def on_mesh(state: TrainState, batch: Any):
        if sharded_batch:
            _check_divides(batch, mesh)  # before jit does, in words of its own
        # jit would compile twice: for a new state, on one device, and for its own, on the mesh.
        if state.step.sharding != everywhere:
            state = jax.device_put(state, everywhere)
        return jitted(state, batch)

    return on_mesh
