"""Checkpoints with orbax: the latest and the best of a run, their architecture, and weights alone.

A run folder's `checkpoints/<step>/` holds the state (arrays), `meta` (JSON: model name and options,
class names, normalisation, config) and, where the state was evaluated, its metrics. A write that is
killed leaves a temporary folder that nobody reads; the previous checkpoint is deleted only after
the new one is complete.
"""

import json
import logging
import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxvision.errors import UserError
from jaxvision.train.disk_errors import (
    read_errors_explained,
    silence_late_writes,
    write_errors_explained,
)
from jaxvision.train.state import TrainState, copied
from jaxvision.train.tree import check_same_tree
from jaxvision.types import Variables

META_KEYS = ("model", "options", "input_shape")
"""What `load_checkpoint` needs in a checkpoint's meta: a name for `get_model`, its options, and
[h, w, c] of a picture."""

_SCORE = "score"  # among the saved metrics: the named metric, negated where lower is better
_STATE_FIELDS = ("step", "params", "batch_stats", "opt_state", "ema")
_WRITERS: "weakref.WeakSet[CheckpointStore]" = weakref.WeakSet()
"""Open stores of this process, which may still be writing what another one is to read."""


class CheckpointStore:
    """The checkpoints of one run: keeps the latest and the best, whichever steps those are.

    `best` names the metric that ranks checkpoints and `mode` says whether "min" or "max" of it is
    best; by default the first metric given to `save`, and "min" for names that contain "loss" or
    "error". Use it as a context manager, or call `close`: writing goes on in the background.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        best: str | None = None,
        mode: str | None = None,
        read_only: bool = False,
    ):
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode is 'min' or 'max', got {mode!r}")
        self.run_dir = Path(run_dir)
        self.best, self._mode = best, mode
        directory = (self.run_dir / "checkpoints").absolute()  # orbax fails late on relative paths
        if read_only and not directory.is_dir():
            raise UserError(
                f"no checkpoints in {self.run_dir}: expected a run folder with checkpoints/ in it"
            )
        # Orbax logs every save, and whole tracebacks of errors that it also raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        silence_late_writes()
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[_SCORE],
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(1),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[_SCORE],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(
                directory,
                options=options,
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise UserError(f"cannot write checkpoints to {directory}: {error.strerror}") from error
        if not read_only:
            _WRITERS.add(self)

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Returns the steps of which a complete checkpoint exists, oldest first."""
        self.wait()
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        metrics: Mapping[str, float] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Copies `state` to the host and writes it in the background, as checkpoint `state.step`.

        With `metrics` it also competes for best. A checkpoint of the same step is kept as it is; an
        older step is an error, because it would vanish as "not the latest" at once. A write that
        failed in the background raises `UserError` at the next `save`, `wait` or `close`.
        """
        step = int(state.step)
        latest = self._manager.latest_step()  # one that is still being written counts
        if latest is not None and step == latest:
            return
        if latest is not None and step < latest:
            raise UserError(
                f"{self.run_dir} already holds a checkpoint of step {latest}, later than "
                f"step {step} to be saved; resume that run or choose another run folder"
            )
        items = {
            "state": ocp.args.PyTreeSave({k: getattr(state, k) for k in _STATE_FIELDS}),
            "meta": ocp.args.JsonSave(_plain_json(meta or {})),
        }
        scored = None if metrics is None else self._scored(metrics)
        with write_errors_explained(self.run_dir):
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=scored)

    def wait(self) -> None:
        """Blocks until what was saved is completely written."""
        with write_errors_explained(self.run_dir):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the background write and lets go of the folder."""
        _WRITERS.discard(self)
        with write_errors_explained(self.run_dir):
            self._manager.close()

    def restore(self, like: TrainState, which: str | int = "latest") -> TrainState:
        """Returns the saved state of `which`: "latest", "best" or a step.

        It must have exactly the structure, shapes and dtypes of `like`, and is placed on devices as
        `like` is, or left to jax as a new state is. Anything else is one `UserError` that lists
        the differences.
        """
        want = {k: getattr(like, k) for k in _STATE_FIELDS}
        return TrainState(**self._restore(want, self.step(which)))

    def restore_variables(self, like: Variables, which: str | int = "latest") -> dict[str, Any]:
        """Returns only the model's variables of `which`, checked against `like` as `restore` does.

        These are the moving average where the run kept one.
        """
        step = self.step(which)
        want = {"params": like["params"], "batch_stats": like.get("batch_stats", {})}
        if "ema" in self._stored_tree(step):
            return self._restore({"ema": want}, step)["ema"]
        return self._restore(want, step)

    def meta(self, which: str | int = "latest") -> dict[str, Any]:
        """Returns the JSON that was saved with `which`."""
        step = self.step(which)
        with read_errors_explained(self.run_dir, step):
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return self._manager.restore(step, args=args)["meta"]

    def metrics(self, which: str | int = "latest") -> dict[str, float]:
        """Returns the metrics that were saved with `which`, empty where there were none."""
        metrics = self._manager.metrics(self.step(which)) or {}
        return {name: value for name, value in metrics.items() if name != _SCORE}

    def step(self, which: str | int = "latest") -> int:
        """Returns the step that `which` stands for. "best" is the latest where none has metrics."""
        steps = self.steps()
        if not steps:
            raise UserError(f"no complete checkpoint in {self.run_dir}")
        if which == "latest":
            return steps[-1]
        if which == "best":
            best = self._manager.best_step()
            return steps[-1] if best is None else best
        if which not in steps:
            raise UserError(
                f"no checkpoint {which!r} in {self.run_dir}; there are 'latest', 'best' and the "
                f"steps {', '.join(map(str, steps))}"
            )
        return int(which)

    def _scored(self, metrics: Mapping[str, float]) -> dict[str, float]:
        if not metrics:
            raise ValueError("metrics is empty: give None for a state that was not evaluated")
        name = self.best or next(iter(metrics))
        if name not in metrics:
            raise UserError(f"no metric {name!r} to rank checkpoints by; there are {list(metrics)}")
        mode = self._mode or ("min" if "loss" in name or "error" in name else "max")
        values = {k: float(v) for k, v in metrics.items()}
        if not math.isfinite(values[name]):
            raise ValueError(f"cannot rank a checkpoint by {name} = {values[name]}")
        return {**values, _SCORE: -values[name] if mode == "min" else values[name]}

    def _stored_tree(self, step: int) -> dict[str, Any]:
        with read_errors_explained(self.run_dir, step):
            tree = self._manager.item_metadata(step)["state"].tree
        return {k: v for k, v in tree.items() if jax.tree.leaves(v)}

    def _restore(self, want: dict[str, Any], step: int) -> dict[str, Any]:
        stored = self._stored_tree(step)
        expected = {k: v for k, v in want.items() if jax.tree.leaves(v)}
        # A part of the state may be asked for, but of that part everything must be there.
        found = stored if "step" in want else {k: v for k, v in stored.items() if k in want}
        check_same_tree(expected, found, f"the checkpoint of step {step} in {self.run_dir}")
        abstract = jax.tree.map(_abstract, want)
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with read_errors_explained(self.run_dir, step):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        # Orbax has restored parts silently (its issue 2972): every leaf must have come.
        check_same_tree(want, restored, f"what was restored from {self.run_dir}, step {step},")
        return jax.tree.map(_as_free_as, want, restored)


def load_checkpoint(
    run_dir: str | Path, which: str | int = "best"
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Returns `(model, variables, meta)` of a run folder, which needs nothing but the folder.

    The architecture comes from the checkpoint's meta, the variables are those to predict with (the
    moving average where there is one), and `meta` has whatever the run saved (class names, mean and
    std), and the `step`.
    """
    # Imported here: this function is the one place of train/ that turns a name into a model.
    from jaxvision.models import abstract_variables, get_model

    with _described(run_dir, which) as (store, meta):
        model = get_model(meta["model"], **meta["options"])
        like = abstract_variables(model, meta["input_shape"])
        return model, store.restore_variables(like, which), meta


def load_meta(run_dir: str | Path, which: str | int = "best") -> dict[str, Any]:
    """Returns the `meta` of `load_checkpoint`, without reading the weights."""
    with _described(run_dir, which) as (_, meta):
        return meta


@contextmanager
def _described(run_dir: str | Path, which: str | int) -> Iterator[tuple[CheckpointStore, dict]]:
    for writer in list(_WRITERS):
        if writer.run_dir.absolute() == Path(run_dir).absolute():
            writer.wait()
    with CheckpointStore(run_dir, read_only=True) as store:
        meta = store.meta(which)
        missing = [key for key in META_KEYS if key not in meta]
        if missing:
            raise UserError(
                f"the checkpoint in {run_dir} does not say its {', '.join(missing)}; it was saved "
                f"without meta, so restore it with CheckpointStore.restore and your own model"
            )
        yield store, {**meta, "step": store.step(which)}


def save_variables(path: str | Path, variables: Variables) -> None:
    """Writes weights alone to the new folder `path`; to load them, build the same model first."""
    path = Path(path).absolute()
    if path.exists():
        raise UserError(f"{path} exists already; choose another path or delete it first")
    with write_errors_explained(path), ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, dict(variables))


def load_variables(path: str | Path, like: Variables) -> dict[str, Any]:
    """Returns the weights that `save_variables` wrote, which must fit `like` exactly."""
    path = Path(path).absolute()
    if not path.is_dir():
        raise UserError(f"no weights at {path}")
    with read_errors_explained(path), ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(path).item_metadata.tree
        check_same_tree(like, stored, f"the weights in {path}")
        abstract = jax.tree.map(_abstract, dict(like))
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        restored = checkpointer.restore(path, item=abstract, restore_args=restore_args)
    return jax.tree.map(_as_free_as, dict(like), restored)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place. Without a sharding, orbax insists on the devices it saved from."""
    sharding = getattr(x, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _as_free_as(like: Any, restored: jax.Array) -> jax.Array:
    """Unbinds from its device what orbax bound to it and `like` leaves to jax.

    A step is another program for arrays that are bound (jax: committed) than for new ones: it would
    be compiled again, and not be found in the cache.
    """
    bound = getattr(like, "committed", getattr(like, "sharding", None) is not None)
    return restored if bound else copied(np.asarray(restored))


def _plain_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(meta))
    except TypeError as error:
        raise UserError(f"a checkpoint's meta must be plain JSON: {error}") from error
