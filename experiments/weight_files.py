"""The files of experiments/save_and_load.py, written and read, and how two models are compared."""

import hashlib
import inspect
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from findings import CheckError

from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model
from jaxvision.models.zoo import MODELS
from jaxvision.ops import normalize_images
from jaxvision.train import create_state
from jaxvision.train.checkpoint import (
    CheckpointStore,
    load_checkpoint,
    load_variables,
    save_variables,
)
from jaxvision.weights import (
    from_torch,
    load_weights,
    read_torch,
    to_torch,
    write_safetensors,
    write_torch,
)
from jaxvision.weights.catalog import Preprocessing


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Returns a model's options from name=value words, where a value is JSON.

    >>> parse_options(["hidden=32", "widths=[4,8]", "batch_norm=true"])
    {'hidden': 32, 'widths': [4, 8], 'batch_norm': True}
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError as error:
            problem = "is not JSON" if equals else "has no ="
            raise UserError(
                f"expected options such as hidden=32 or widths=[4,8], got {word!r}, which {problem}"
            ) from error
    return options


def known_options(name: str) -> set[str]:
    get_model(name)  # which explains an unknown name
    return set(inspect.signature(MODELS[name]).parameters)


def blueprint(name: str, options: dict[str, Any], picture_size: int) -> tuple[nn.Module, Any]:
    """Returns the model, and the shapes and dtypes of its variables; nothing is computed."""
    model = get_model(name, **options)
    return model, abstract_variables(model, (picture_size, picture_size, 3))


def make_picture(size: int, seed: int) -> jax.Array:
    """Returns two pictures of random blots [2, size, size, 3], normalised as for ImageNet.

    Two, because BatchNorm in training may meet one value a channel in a single small picture.
    """
    rng = np.random.default_rng(seed)
    blots = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    repeated = np.repeat(np.repeat(blots, -(-size // 8), axis=1), -(-size // 8), axis=2)
    preprocessing = Preprocessing()
    pictures = jnp.asarray(repeated[:, :size, :size])
    return normalize_images(pictures, preprocessing.mean, preprocessing.std)


@partial(jax.jit, static_argnums=0)
def predict(model: nn.Module, variables: Any, picture: jax.Array, key: Any = None) -> jax.Array:
    """Returns logits [b, k]; with a `key` those of train=True, which drops units by it."""
    # In full float32 on every device: what a GPU rounds to by default tells two devices apart.
    with jax.default_matmul_precision("highest"):
        if key is None:
            return model.apply(variables, picture, train=False)
        return model.apply(
            variables, picture, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]


@dataclass(frozen=True)
class Way:
    """One way to keep weights: `save(path)`, and `load(path)`, which returns (model, variables)."""

    what: str
    file: str
    save: Callable[[Path], None]
    load: Callable[[Path], tuple[nn.Module, Any]]


def ways(name: str, options: dict[str, Any], size: int, variables: Any) -> Iterator[Way]:
    """Yields every way to keep the variables of `get_model(name, **options)`."""

    def built(load: Callable[[Path], Any]) -> Callable[[Path], tuple[nn.Module, Any]]:
        return lambda path: (get_model(name, **options), load(path))

    weights_of = built(lambda path: load_weights(name, path, **options))
    structure = {"model": name, "options": options}

    def save_checkpoint(path: Path) -> None:
        meta = {**structure, "input_shape": (size, size, 3)}
        with CheckpointStore(path) as store:
            store.save(create_state(variables, optax.identity()), meta=meta)

    yield Way(
        "weights only",
        "weights.orbax",
        lambda path: save_variables(path, variables),
        built(lambda path: load_variables(path, blueprint(name, options, size)[1])),
    )
    yield Way(
        "weights only",
        "weights.safetensors",
        lambda path: write_safetensors(path, to_torch(name, variables, **options)),
        weights_of,
    )
    yield Way(
        "weights only",
        "weights.pth",
        lambda path: write_torch(path, to_torch(name, variables, **options)),
        weights_of,
    )
    yield Way(
        "with architecture",
        "checkpoint",
        save_checkpoint,
        lambda path: load_checkpoint(path)[:2],
    )
    yield Way(
        "with architecture",
        "model.safetensors",
        lambda path: write_safetensors(
            path, to_torch(name, variables, **options), {"jaxvision": json.dumps(structure)}
        ),
        load_described,
    )


def load_described(path: Path) -> tuple[nn.Module, Any]:
    """Returns the model that a .safetensors file's metadata describes, and its variables."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        found = (file.metadata() or {}).get("jaxvision")
    if found is None:
        raise UserError(f"{path} does not say which model it is: build it and use load_weights")
    structure = json.loads(found)
    name, options = structure["model"], structure["options"]
    return get_model(name, **options), load_weights(name, path, **options)


def load_exactly(name: str, path: Path, options: dict[str, Any]) -> Any:
    """Loads without leave to replace the head, as `num_classes` by name would give it."""
    try:
        return from_torch(name, read_torch(path), **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_pickled_model(path: Path) -> None:
    """Writes the beginning of what torch.save(model) writes: a call to make a VGG object."""
    pickled = b"\x80\x02ctorchvision.models.vgg\nVGG\nq\x00)\x81q\x01}q\x02b."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")


def refused(load: Callable[[], Any]) -> str:
    """Returns the message of the `UserError` that `load` must raise."""
    try:
        load()
    except UserError as error:
        return str(error)
    raise CheckError("expected a UserError, and nothing was raised")


def arrays(variables: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, array on the host), in the order of the tree."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)


def same(one: Any, other: Any) -> bool:
    """Whether two trees have the same arrays by the same names, bit for bit, NaN and -0 too."""
    a, b = dict(arrays(one)), dict(arrays(other))
    return a.keys() == b.keys() and all(
        (x.shape, x.dtype) == (b[name].shape, b[name].dtype)
        and np.array_equal(x.reshape(-1).view(np.uint8), b[name].reshape(-1).view(np.uint8))
        for name, x in a.items()
    )


def digest(variables: Any) -> str:
    """Returns a sha256 over names, shapes, dtypes and bytes, to compare between processes."""
    found = hashlib.sha256()
    for name, array in arrays(variables):
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def num_bytes(variables: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))


def disk_bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
