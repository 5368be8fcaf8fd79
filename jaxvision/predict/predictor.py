"""The `Predictor`: a model with its weights, and how pictures are prepared for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxvision.models.detection import Selection
from jaxvision.predict.preparation import Picture, Prepared, prepare, read_picture
from jaxvision.predict.published import load_published
from jaxvision.predict.results import Result
from jaxvision.predict.tasks import TASKS, task_of
from jaxvision.train.checkpoint import load_checkpoint

# One compiled program each; a batch is padded to the next. Of larger pictures fewer fit in memory.
_BATCH_SIZES = ((128 * 128, (1, 16, 256)), (512 * 512, (1, 16)))
_OF_LARGE = (1, 4)


class Predictor:
    """Predicts pictures of any size: they are prepared as the model was trained, and what it says
    is in each picture's own pixels.

    The checkpoint's task decides whether that is a `Classification`, a `Localization`, `Detections`
    or a `Segmentation`. Of detections those of at least `score_threshold` come back, at most
    `max_detections`; of two of a class that overlap by an IoU above `iou_threshold`, the better.

    >>> predictor = Predictor.from_checkpoint("runs/demo")  # doctest: +SKIP
    >>> predictor("shirt.png").name  # doctest: +SKIP
    'Shirt'
    >>> found = Predictor.from_weights("yolox_s", "COCO")("street.jpg")  # doctest: +SKIP
    >>> found.above(0.5).names()  # doctest: +SKIP
    ['car', 'person', 'person']
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        meta: dict[str, Any],
        *,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
    ):
        self.meta = meta
        self.task = task_of(meta)
        self.input_shape = tuple(meta["input_shape"])
        self.class_names = tuple(meta["class_names"])
        self._variables = jax.device_put(variables)
        selection = Selection(score_threshold, iou_threshold, max_detections)
        self._infer = TASKS[self.task].make_infer(model, meta, selection)

    @classmethod
    def from_checkpoint(
        cls, run_dir: str | Path, which: str | int = "best", **thresholds: Any
    ) -> "Predictor":
        """The model of a run folder, with the weights of `which`: "best", "latest" or a step."""
        return cls(*load_checkpoint(run_dir, which), **thresholds)

    @classmethod
    def from_weights(
        cls,
        name: str,
        weights: str | Path = "DEFAULT",
        *,
        class_names: Sequence[str] | None = None,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        **options: Any,
    ) -> "Predictor":
        """The model called `name` with weights from a file, a URL or published under a name.

        Pictures are prepared as those weights want it, and where `weights` is not the name of
        published ones, as those of the model's first published ones. A file's classes
        are called 0, 1, … unless `class_names` says otherwise; `num_classes` is the file's.
        """
        return cls(
            *load_published(name, weights, class_names, options),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )

    @overload
    def __call__(self, pictures: Picture) -> Result: ...
    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Result]: ...
    def __call__(self, pictures):
        """Returns what the model says of one picture, or a list for a list of them."""
        one = isinstance(pictures, str | Path | np.ndarray)
        listed = [self._read(picture) for picture in ([pictures] if one else pictures)]
        results: list[Any] = [None] * len(listed)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, (prepared, _) in enumerate(listed):
            by_shape.setdefault(prepared.image.shape, []).append(i)
        for indices in by_shape.values():
            images = np.stack([listed[i][0].image for i in indices])
            sizes = np.array([listed[i][0].size for i in indices], np.int32)
            rows = self._rows(images, sizes)
            for i, row in zip(indices, rows, strict=True):
                prepared, size = listed[i]
                results[i] = TASKS[self.task].to_result(row, prepared, size, self.class_names)
        return results[0] if one else results

    def prepare(self, picture: Picture) -> UInt8[np.ndarray, "h w c"]:
        """Returns the picture as the model takes it: its size, and grey or colour as it expects.

        Where the model was trained with a preset (`meta["preprocessing"]`), that is applied.
        """
        return self._read(picture)[0].image

    def probabilities(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"]:
        """Returns a classifier's probabilities of prepared pictures, in batches of a few sizes."""
        if self.task != "classification":
            raise ValueError(f"expected a model for classification, got one for {self.task}")
        sizes = np.broadcast_to(np.array(images.shape[1:3], np.int32), (len(images), 2))
        return np.stack(self._rows(images, sizes))

    def _read(self, picture: Picture) -> tuple[Prepared, tuple[int, int]]:
        """The prepared picture, and its own (h, w)."""
        pixels = read_picture(picture, self.input_shape[-1])
        preprocessing = self.meta.get("preprocessing")
        return prepare(pixels, preprocessing, self.input_shape[:2]), pixels.shape[:2]

    def _rows(self, images: np.ndarray, sizes: np.ndarray) -> list[Any]:
        """What the model says of each picture of one shape, in batches of a few fixed sizes."""
        area = images.shape[1] * images.shape[2]
        batch_sizes = next((those for most, those in _BATCH_SIZES if area < most), _OF_LARGE)
        rows: list[Any] = []
        for first in range(0, len(images), batch_sizes[-1]):
            some = slice(first, first + batch_sizes[-1])
            count = len(images[some])
            size = next(s for s in batch_sizes if s >= count)
            outputs = jax.device_get(
                self._infer(
                    self._variables, _padded(images[some], size), _padded(sizes[some], size)
                )
            )
            rows += [jax.tree.map(lambda part, i=i: part[i], outputs) for i in range(count)]
        return rows


def _padded(array: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])
