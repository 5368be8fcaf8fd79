"""`convert`: weights from one format to another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxvision.errors import UserError


@dataclass(frozen=True)
class Convert:
    """Convert weights between .pth, .safetensors and orbax, and take them out of run folders."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """A .pth, .pt or .safetensors file, an orbax weights folder, or a run folder."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """What to write: .pth, .pt, .safetensors, or no suffix for an orbax weights folder."""
    model: str | None = None
    """The model's name. Needed to or from orbax; otherwise the file is checked to fit it. A run
    folder knows its own."""
    num_classes: int | None = None
    """The model's number of classes, where it is not the one that the file or the model has."""
    key: str | None = None
    """Where in a checkpoint the weights are, if it holds several sets: model_ema, for example."""
    which: str = "best"
    """The checkpoint of a run folder: best, latest or a step."""


def convert(command: Convert) -> None:
    """Writes the weights in one format as another and prints what was written. Never overwrites."""
    import jax

    from jaxvision.train.checkpoint import save_variables
    from jaxvision.weights import to_torch, write_safetensors, write_torch

    target = command.target
    if target.suffix not in (".pth", ".pt", ".safetensors", ""):
        raise UserError(
            f"expected OUT to end with .pth, .pt or .safetensors, or to have no suffix for an "
            f"orbax folder, got {target}"
        )
    if target.exists():
        raise UserError(f"{target} exists already; choose another path or delete it first")
    if not target.suffix:
        _, _, variables = _read_variables(command)
        save_variables(target, variables)
        arrays = jax.tree.leaves(variables)
    else:
        if command.source.is_dir():
            name, options, variables = _read_variables(command)
            tensors = to_torch(name, variables, **options)
        else:
            tensors = _read_file(command)
        (write_safetensors if target.suffix == ".safetensors" else write_torch)(target, tensors)
        arrays = list(tensors.values())
    size = sum(array.nbytes for array in arrays)
    print(f"written: {target} ({len(arrays)} tensors, {size:,} bytes)")


def _read_file(command: Convert) -> dict:
    """Returns the tensors of a file as they are, seen to fit the model where one is named."""
    from jaxvision.weights import from_torch, read_torch

    tensors = read_torch(command.source, key=command.key)
    if command.model is not None:
        try:
            from_torch(command.model, tensors, **_class_options(command, tensors))
        except UserError as error:
            raise UserError(f"{command.source}: {error}") from error
    return tensors


def _read_variables(command: Convert) -> tuple[str, dict, dict]:
    """Returns (name of the model, its options, its variables) of whatever IN is."""

    from jaxvision.models import abstract_variables, get_model
    from jaxvision.train.checkpoint import load_checkpoint, load_variables
    from jaxvision.weights import from_torch, read_torch

    source, name = command.source, command.model
    if (source / "checkpoints").is_dir():
        for flag in ("model", "num_classes", "key"):
            if getattr(command, flag) is not None:
                raise UserError(f"--{flag.replace('_', '-')} is not for a run folder: {source}")
        which = int(command.which) if command.which.isdigit() else command.which
        _, variables, meta = load_checkpoint(source, which)
        return meta["model"], meta["options"], variables
    if name is None:
        raise UserError(
            f"an orbax folder is of one model: say which with --model NAME, for {source}"
        )
    if source.is_dir():
        options = _class_options(command, {})
        model = get_model(name, **options)
        return name, options, load_variables(source, abstract_variables(model, (224, 224, 3)))
    tensors = read_torch(source, key=command.key)
    options = _class_options(command, tensors)
    try:
        return name, options, from_torch(name, tensors, **options)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _class_options(command: Convert, tensors: dict) -> dict:
    """The number of classes that was asked for, else the file's own."""
    from jaxvision.weights.convert import count_classes

    wanted = command.num_classes
    if wanted is None and command.model is not None:
        wanted = count_classes(command.model, tensors)
    return {} if wanted is None else {"num_classes": wanted}
