"""Run folders, `runs/<experiment>/<time>/` with config.json, and what commands set up first."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from jaxvision.errors import UserError, describe_os_error

MAY_CHANGE = frozenset(
    {"epochs", "run_dir", "resume", "checkpoint_every", "log_every", "workers"}
    | {"data", "data_dir", "data_source", "source"}
)
"""What a resumed run may change of its configuration: anything else would make it another run."""


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that has no locks, as some that clusters share: runs go without there."""

_ENTERED: list["Run"] = []
"""The runs that this process is within, the outermost first: the one that its command made."""


class Run:
    """A run folder that this process writes to, locked against a second process.

    Without `run_dir` it is a new `runs/<experiment>/<time>`, or with `resume` the newest one there.
    A folder that holds a run already is only taken with `resume`, and then `config` must say the
    same, but for what may change (`MAY_CHANGE`, without what is `fixed`): nothing of an earlier run
    is ever overwritten; `before` is what its config.json said. One that is not `kept` is gone when
    its caller ends, and cannot be resumed.
    """

    def __init__(
        self,
        experiment: str,
        config: Any,
        *,
        run_dir: str | Path | None = None,
        resume: bool = False,
        root: str | Path = "runs",
        fixed: Collection[str] = (),
        kept: bool = True,
    ):
        self.kept = kept
        self._may_change = MAY_CHANGE - set(fixed)
        if run_dir is not None:
            self.path = Path(run_dir)
        elif resume:
            self.path = newest_run(experiment, root)
        else:
            self.path = Path(root) / experiment / time.strftime("%Y%m%d-%H%M%S")
        config_file = self.path / "config.json"
        exists = config_file.exists() or (self.path / "checkpoints").exists()
        if exists and not resume:
            raise UserError(
                f"{self.path} holds a run already; use --resume or choose another --run-dir"
            )
        if resume and not exists:
            raise UserError(f"cannot resume: there is no run in {self.path}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.path}: {describe_os_error(error)}"
            ) from error
        self.resumed = exists
        self.before: dict[str, Any] = {}
        self._config = _plain(dataclasses.asdict(config))
        try:
            self._take_lock()
            self._check_same(self._config)
        except UserError:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing to {self.path}; wait for it to end"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                reason = describe_os_error(error)
                raise UserError(f"cannot lock the run folder {self.path}: {reason}") from error

    def write_config(self, **facts: Any) -> None:
        """Writes config.json: the config, and `facts` such as the source and size of the data."""
        self._check_same(_plain(facts))
        write_json(self.path / "config.json", self._config | _plain(facts))

    def _check_same(self, wanted: dict[str, Any]) -> None:
        if not (self.path / "config.json").exists():
            return
        stored = read_config(self.path)
        self.before = self.before or stored
        changed = [
            f"{name} was {stored[name]!r}, now {value!r}"
            for name, value in wanted.items()
            if name in stored and name not in self._may_change and stored[name] != value
        ]
        if changed:
            raise UserError(
                f"{self.path} was made with another configuration: {'; '.join(changed)}. Resume it "
                f"with the same flags or choose another --run-dir"
            )

    def resume_command(self) -> str:
        """Returns the command line that goes on with this run, or with the one it is part of."""
        words = [w for w in sys.argv if w != "--resume"]
        if "--run-dir" not in words:
            words += ["--run-dir", str((_ENTERED or [self])[0].path)]
        return shlex.join(["python", *words, "--resume"])

    def close(self) -> None:
        """Lets another process write to the folder, as the end of this one would."""
        self._lock.close()

    def __enter__(self) -> "Run":
        _ENTERED.append(self)
        return self

    def __exit__(self, *exception) -> None:
        _ENTERED.remove(self)
        self.close()


def newest_run(experiment: str, root: str | Path = "runs") -> Path:
    """Returns the newest run folder of `experiment`."""
    runs = [path.parent for path in (Path(root) / experiment).glob("*/config.json")]
    if not runs:
        raise UserError(f"no run to resume in {Path(root) / experiment}")
    return max(runs, key=lambda path: (path / "config.json").stat().st_mtime)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON. What was in the file stays there until all of the new text is."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {describe_os_error(error)}") from error


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """Returns config.json of a run folder."""
    path = Path(run_dir) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{run_dir} is not a run folder: it has no config.json") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the second start of a command is quick.

    They live in JAX_COMPILATION_CACHE_DIR, or else ~/.cache/jaxvision/xla.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path.home() / ".cache" / "jaxvision" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON: tuples as lists, paths as strings."""
    return json.loads(json.dumps(values, default=str))
