"""Evaluates torchvision's published weights on ImageNet's validation pictures.

    python experiments/published_accuracy.py --source imagenet/val --model resnet18

For whoever has the pictures: a folder for each of the 1,000 classes (n01440764, …), as
torchvision's ImageFolder takes them. Expected top-1 accuracy: resnet18 69.758 %, resnet50 76.130 %
(IMAGENET1K_V1) and 80.858 % (V2), vgg16 71.592 %. A few pictures may differ, because another order
of additions moves them over a border.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from transfer_data import preset_of

from jaxvision.data import (
    Batches,
    classification_eval,
    every_picture,
    load_class_folders,
    prefetch,
)
from jaxvision.errors import UserError, exit_on_user_error
from jaxvision.models import get_model
from jaxvision.ops import normalize_images
from jaxvision.train.run import enable_compilation_cache
from jaxvision.weights import find_weights, load_weights, read_torch
from jaxvision.weights.convert import count_classes


@dataclass(frozen=True)
class Config:
    source: Path
    """The folder with a folder of pictures for each class, in the order of the classes' numbers."""
    model: str = "resnet18"
    weights: str = "IMAGENET1K_V1"
    """Published weights by name, or a file, whose classes the folders then are."""
    batch_size: int = 64
    workers: int = 2
    """Threads that decode ahead of the device."""


def evaluate(config: Config) -> dict[str, float]:
    """Returns acc@1 and acc@5, in per cent."""
    dataset = load_class_folders(config.source, split="val", name="pictures")
    num_classes = len(dataset.class_names)
    is_file = Path(config.weights).is_file()
    published = find_weights(config.model, "IMAGENET1K_V1" if is_file else config.weights)
    in_weights = len(published.class_names)
    if is_file:
        in_weights = count_classes(config.model, read_torch(config.weights))
    if num_classes != in_weights:
        raise UserError(
            f"{config.source}: expected {in_weights:,} folders, one a class of the weights, got "
            f"{num_classes:,}"
        )
    variables = load_weights(config.model, config.weights, num_classes=num_classes)
    variables = jax.device_put(variables)
    model, prepared = get_model(config.model, num_classes=num_classes), published.preprocessing
    print(f"prepared as {asdict(prepared)}")

    @jax.jit
    def ranks(variables, batch):
        """How many classes are thought more likely than the right one, or as likely before it.

        Where a logit is NaN, all are.
        """
        images = normalize_images(batch["image"], prepared.mean, prepared.std)
        logits = model.apply(variables, images, train=False)
        label = batch["label"][:, None]
        right = jnp.take_along_axis(logits, label, axis=1)
        earlier = jnp.arange(num_classes).reshape(1, -1) < label
        rank = ((logits > right) | ((logits == right) & earlier)).sum(axis=1)
        return jnp.where(jnp.isnan(logits).any(axis=1), num_classes, rank)

    batches = Batches(
        dataset,
        batch_size=min(config.batch_size, len(dataset)),
        shuffle=False,
        transform=every_picture(classification_eval(**preset_of(prepared))),
    )
    since = time.perf_counter()
    ahead = prefetch(batches, 0, batches.steps_per_epoch, workers=max(1, config.workers))
    console = Console(stderr=True)
    hidden = not sys.stderr.isatty()
    shown = track(
        ahead, "evaluating", total=batches.steps_per_epoch, console=console, disable=hidden
    )
    found = np.concatenate([np.asarray(ranks(variables, batch)) for batch in shown])
    found = found[: len(dataset)]  # the last batch was filled up
    seconds = time.perf_counter() - since
    accuracies = {f"acc@{k}": 100 * float((found < k).mean()) for k in (1, 5)}
    for name, accuracy in accuracies.items():
        expected = "" if is_file else f", published: {published.metrics[name]:.3f} %"
        print(f"{name}: {accuracy:.3f} %{expected}")
    print(f"{len(dataset):,} pictures in {seconds:.0f} s")
    return accuracies


if __name__ == "__main__":
    with exit_on_user_error():
        enable_compilation_cache()
        evaluate(tyro.cli(Config, description=__doc__))
