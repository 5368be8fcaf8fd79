"""The `Predictor`: a model with its weights, and how pictures are prepared for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxvision.data.proposals import pad_proposals
from jaxvision.data.selective_search import selective_search
from jaxvision.errors import UserError
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
    is in each picture's own pixels. For a model that is given proposals, as Fast R-CNN is, they are
    searched for (`selective_search`), which takes most of the time.

    The checkpoint's task decides whether that is a `Classification`, a `Localization`, `Detections`
    or a `Segmentation`. Of detections those of at least `score_threshold` come back, at most
    `max_detections`; of two of a class that overlap by an IoU above `iou_threshold`, the better.
    What is not given is the detector's own, mostly torchvision's: see `selection_of`. With `flip` a
    detector looks at each picture's mirror image too. Boxes beside the picture, which have no area
    in it, are left out; torchvision's one-stage detectors keep them.

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
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        flip: bool = False,
    ):
        self.meta = meta
        self.task = task_of(meta)
        if "class_names" not in meta:
            raise UserError(
                'expected a checkpoint whose meta says its "class_names" (and, where pictures are '
                f'normalised, "mean" and "std"), got one with {", ".join(meta)}: save it with these'
            )
        self.input_shape = tuple(meta["input_shape"])
        self.class_names = tuple(meta["class_names"])
        self._search = meta.get("proposals")
        self._variables = jax.device_put(variables)
        thresholds = {
            "score_threshold": score_threshold,
            "iou_threshold": iou_threshold,
            "max_detections": max_detections,
        }
        if flip and self.task != "detection":
            raise UserError(f"flip is for detection, got a model for {self.task}: leave it out")
        options = {"flip": True} if flip else {}
        self._infer = TASKS[self.task].make_infer(model, meta, thresholds, **options)

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
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        flip: bool = False,
        **options: Any,
    ) -> "Predictor":
        """The model called `name` with weights from a file, a URL or published under a name.

        Pictures are prepared as those weights want it, and where `weights` is not the name of
        published ones, as those of the model's first published ones. A file's classes
        are called 0, 1, … unless `class_names` says otherwise; `num_classes` is the file's. Another
        number of classes or names than the weights have is a `UserError`.
        """
        return cls(
            *load_published(name, weights, class_names, options),
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            flip=flip,
        )

    @overload
    def __call__(self, pictures: Picture) -> Result: ...
    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Result]: ...
    def __call__(self, pictures):
        """Returns what the model says of one picture, or a list for a list of them."""
        one = isinstance(pictures, str | Path | np.ndarray | jax.Array)
        listed = [self._read(picture) for picture in ([pictures] if one else pictures)]
        results: list[Any] = [None] * len(listed)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, (prepared, _) in enumerate(listed):
            by_shape.setdefault(prepared.image.shape, []).append(i)
        for indices in by_shape.values():
            rows = self._rows(*self._inputs([listed[i][0] for i in indices]))
            for i, row in zip(indices, rows, strict=True):
                prepared, size = listed[i]
                results[i] = TASKS[self.task].to_result(row, prepared, size, self.class_names)
        return results[0] if one else results

    def prepare(self, picture: Picture) -> UInt8[np.ndarray, "h w c"]:
        """Returns the picture as the model takes it: its size, and grey or colour as it expects.

        Where the model was trained with a preset (`meta["preprocessing"]`), that is applied.
        """
        return self._read(picture, search=False)[0].image

    def probabilities(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n k"]:
        """Returns a classifier's probabilities of prepared pictures, in batches of a few sizes."""
        if self.task != "classification":
            raise ValueError(f"expected a model for classification, got one for {self.task}")
        sizes = np.broadcast_to(np.array(images.shape[1:3], np.int32), (len(images), 2))
        return np.stack(self._rows(images, sizes))

    def _read(self, picture: Picture, search: bool = True) -> tuple[Prepared, tuple[int, int]]:
        """The prepared picture, and its own (h, w)."""
        pixels = read_picture(picture, self.input_shape[-1])
        preprocessing = self.meta.get("preprocessing")
        prepared = prepare(pixels, preprocessing, self.input_shape[:2])
        if search and self._search is not None:
            boxes = selective_search(
                pixels, mode=self._search["mode"], max_boxes=self._search["count"]
            )
            prepared = replace(prepared, proposals=prepared.placement.to_canvas(boxes))
        return prepared, pixels.shape[:2]

    def _inputs(self, prepared: Sequence[Prepared]) -> list[np.ndarray]:
        """What the model takes of pictures of one shape: images, sizes, and proposals."""
        images = np.stack([each.image for each in prepared])
        inputs = [images, np.array([each.size for each in prepared], np.int32)]
        if self._search is not None:
            boxes = [each.proposals for each in prepared]
            inputs += pad_proposals(boxes, self._search["count"]).values()
        return inputs

    def _rows(self, images: np.ndarray, *others: np.ndarray) -> list[Any]:
        """What the model says of each picture of one shape, in batches of a few fixed sizes."""
        area = images.shape[1] * images.shape[2]
        batch_sizes = next((those for most, those in _BATCH_SIZES if area < most), _OF_LARGE)
        rows: list[Any] = []
        for first in range(0, len(images), batch_sizes[-1]):
            some = slice(first, first + batch_sizes[-1])
            count = len(images[some])
            size = next(s for s in batch_sizes if s >= count)
            inputs = [_padded(array[some], size) for array in (images, *others)]
            outputs = jax.device_get(self._infer(self._variables, *inputs))
            rows += [jax.tree.map(lambda part, i=i: part[i], outputs) for i in range(count)]
        return rows


def _padded(array: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])
