"""`info`: what a run folder holds."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Info:
    """Say what a run folder holds: model, classes, configuration, checkpoints."""

    run: tyro.conf.Positional[Path]
    """The run folder."""


def info(command: Info) -> None:
    """Prints what is known of a run without building its model."""
    from jaxvision.train.checkpoint import CheckpointStore
    from jaxvision.train.run import read_config

    config = read_config(command.run)
    with CheckpointStore(command.run, read_only=True) as store:
        latest, best = store.step("latest"), store.step("best")
        meta = store.meta("latest")
        console = Console()
        for title, values in (("model", meta), ("configuration", config)):
            table = Table(title, "")
            for key, value in values.items():
                text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                table.add_row(key, text)
            console.print(table)
        table = Table("checkpoint", "step", "metrics")
        for which, step in (("latest", latest), ("best", best)):
            metrics = ", ".join(f"{k} {v:.4g}" for k, v in store.metrics(step).items())
            table.add_row(which, f"{step:,}", metrics)
        console.print(table)
