"""A checkpoint to predictions on real pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxvision.data import classification_eval, read_image
from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.ops import normalize_images
from jaxvision.train.checkpoint import load_checkpoint
from jaxvision.weights import find_weights, load_weights
from jaxvision.weights.catalog import CATALOG

Picture = np.ndarray | str | Path
"""uint8 [h, w, c], or the path of a picture file."""

_BATCH_SIZES = (1, 16, 256)  # one compiled program each; a batch is padded to the next
_LARGE = 128 * 128  # pixels, from which on 256 pictures at once would need gigabytes


@dataclass(frozen=True, eq=False)
class Classification:
    """What a classifier says of one picture: `probabilities` [k] over `class_names`."""

    probabilities: np.ndarray
    class_names: tuple[str, ...]

    @property
    def label(self) -> int:
        """The most probable class."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """The name of the most probable class."""
        return self.class_names[self.label]

    @property
    def score(self) -> float:
        """The probability of the most probable class."""
        return float(self.probabilities[self.label])

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` most probable classes with their probabilities, the most probable first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]


class Predictor:
    """Predicts pictures of any size: they are resized and normalised as the model was trained.

    >>> predictor = Predictor.from_checkpoint("runs/demo")  # doctest: +SKIP
    >>> predictor("shirt.png").name  # doctest: +SKIP
    'Shirt'
    """

    def __init__(self, model: nn.Module, variables: Any, meta: dict[str, Any]):
        self.meta = meta
        self.input_shape = tuple(meta["input_shape"])
        self.class_names = tuple(meta["class_names"])
        h, w, _ = self.input_shape
        self._batch_sizes = _BATCH_SIZES if h * w < _LARGE else _BATCH_SIZES[:-1]
        self._variables = jax.device_put(variables)
        mean, std = meta.get("mean", 0.0), meta.get("std", 1.0)

        @jax.jit
        def probabilities(variables, images):
            images = normalize_images(images, mean, std)
            return jax.nn.softmax(model.apply(variables, images, train=False))

        self._probabilities = probabilities

    @classmethod
    def from_checkpoint(cls, run_dir: str | Path, which: str | int = "best") -> "Predictor":
        """The model of a run folder, with the weights of `which`: "best", "latest" or a step."""
        return cls(*load_checkpoint(run_dir, which))

    @classmethod
    def from_weights(
        cls,
        name: str,
        weights: str | Path = "DEFAULT",
        *,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> "Predictor":
        """The model called `name` with weights from a file, a URL or published under a name.

        Pictures are prepared as those weights want it, and where `weights` is not the name of
        published ones, as those of the model's first published ones. A file's classes
        are called 0, 1, … unless `class_names` says otherwise; `num_classes` is the file's.
        """
        published = str(weights) in ("DEFAULT", *CATALOG.get(name, {}))
        found = find_weights(name, str(weights) if published else "IMAGENET1K_V1")
        if found.preprocessing.crop_size is None:
            raise UserError(
                f"expected a network that classifies pictures, but {name} segments them: build it "
                f"with get_model({name!r}) and load_weights, and call it on normalised pictures"
            )
        if class_names is not None:
            options.setdefault("num_classes", len(class_names))
        variables = load_weights(name, weights, **options)
        num_classes = options.get("num_classes", 1000)
        if class_names is None:
            imagenet = num_classes == len(found.class_names)
            class_names = found.class_names if imagenet else tuple(map(str, range(num_classes)))
        prepared = found.preprocessing
        meta = {
            "model": name,
            "options": options,
            "input_shape": (prepared.crop_size, prepared.crop_size, 3),
            "class_names": class_names,
            "mean": prepared.mean,
            "std": prepared.std,
            "preprocessing": {
                "resize_size": prepared.resize_size,
                "crop_size": prepared.crop_size,
                "interpolation": prepared.interpolation,
                "antialias": prepared.antialias,
            },
        }
        return cls(get_model(name, **options), variables, meta)

    @overload
    def __call__(self, pictures: Picture) -> Classification: ...
    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Classification]: ...
    def __call__(self, pictures):
        """Returns what the model says of one picture, or a list for a list of them."""
        one = isinstance(pictures, str | Path | np.ndarray)
        if not one and not len(pictures):
            return []
        batch = np.stack([self.prepare(p) for p in ([pictures] if one else pictures)])
        results = [Classification(p, self.class_names) for p in self.probabilities(batch)]
        return results[0] if one else results

    def prepare(self, picture: Picture) -> UInt8[np.ndarray, "h w c"]:
        """Returns the picture as the model takes it: its size, and grey or colour as it expects.

        Where the model was trained with a preset (`meta["preprocessing"]`), that is applied.
        """
        h, w, channels = self.input_shape
        if isinstance(picture, str | Path):
            picture = read_image(picture, channels=channels)
        if picture.dtype != np.uint8:
            raise TypeError(f"expected a uint8 picture [h, w, c], got {picture.dtype}")
        if picture.ndim == 2:
            picture = picture[:, :, None]
        if picture.ndim != 3 or picture.shape[-1] not in (1, 3):
            raise ValueError(
                f"expected a picture [h, w, 1 or 3], got shape {list(picture.shape)}; give several "
                f"pictures as a list"
            )
        grey = picture.shape[-1] == 1
        image = Image.fromarray(picture[..., 0] if grey else picture)
        if (preset := self.meta.get("preprocessing")) is not None:
            return classification_eval(**preset)(image.convert("RGB" if channels == 3 else "L"))
        if picture.shape == self.input_shape:
            return picture
        # Pillow's antialiased bilinear is torchvision's default when it shrinks a picture.
        image = image.convert("L" if channels == 1 else "RGB").resize((w, h), Image.BILINEAR)
        return np.asarray(image).reshape(h, w, channels)

    def probabilities(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"]:
        """Returns class probabilities of prepared pictures, in batches of a few fixed sizes."""
        results = []
        sizes = self._batch_sizes
        for first in range(0, len(images), sizes[-1]):
            batch = images[first : first + sizes[-1]]
            size = next(s for s in sizes if s >= len(batch))
            padding = np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)
            padded = np.concatenate([batch, padding])
            results.append(np.asarray(self._probabilities(self._variables, padded))[: len(batch)])
        return np.concatenate(results)
