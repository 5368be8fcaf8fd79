"""The detectors of the R-CNN family step by step, so that each can be timed and looked at."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.models.fast_rcnn import FastRCNN
from jaxvision.models.faster_rcnn import FasterRCNN
from jaxvision.models.rcnn import RCNN, describe_regions, score_regions
from jaxvision.models.selection import Selection
from jaxvision.ops import clip_boxes, decode_boxes, normalize_images
from jaxvision.ops.rcnn import BOX_WEIGHTS, Proposals, decode_rcnn, decode_regions
from jaxvision.types import PaddedDetections

NAMES = {"rcnn": "R-CNN", "fast": "Fast R-CNN", "faster": "Faster R-CNN"}
STEPS = ("proposals", "network", "heads", "NMS")


class Regions(NamedTuple):
    """What a detector says of each region [n] of one picture, before any is suppressed.

    `scores` are those of the k classes without the background, `moved` the boxes that the
    regression makes for each class.
    """

    boxes: np.ndarray
    scores: np.ndarray
    moved: np.ndarray
    valid: np.ndarray


class Steps:
    """A detector taken apart into jitted steps, for one picture at a time (batches of one).

    `network(batch)` gives features, `propose(features, batch)` the regions where the network makes
    them itself and `given(batch)` where Selective Search did, `heads(features, regions)` scores and
    deltas, and `suppress(outputs, regions, batch)` the detections.
    """

    def __init__(
        self, model: nn.Module, variables: Any, meta: Mapping[str, Any], selection: Selection
    ):
        if not isinstance(model, RCNN | FastRCNN | FasterRCNN):
            raise ValueError(f"expected a detector of the R-CNN family, got {type(model).__name__}")
        self.model, self.variables = model, jax.device_put(variables)
        self.proposes = isinstance(model, FasterRCNN)
        mean, std = meta.get("mean", 0.0), meta.get("std", 1.0)

        def run(variables, method, *args):
            return model.apply(variables, *args, train=False, method=method)

        @jax.jit
        def network(variables, image, size, regions):
            images = normalize_images(image, mean, std)
            if isinstance(model, RCNN):
                return describe_regions(
                    model, variables, images, size, regions.boxes, regions.valid
                )
            return run(variables, model.extract_features, images, size)

        @jax.jit
        def propose(variables, features, size):
            predictions = run(variables, model.score_anchors, features)
            return run(variables, model.propose, features, predictions, size)

        @jax.jit
        def heads(variables, features, regions):
            if isinstance(model, RCNN):
                return tuple(score_regions(model, variables, features))
            return run(variables, model.classify_rois, features, regions.boxes)

        def suppressed(outputs, regions, size, iou_threshold):
            decode = decode_regions if isinstance(model, RCNN) else decode_rcnn
            options = {**vars(selection), "iou_threshold": iou_threshold}

            def of_one(scores, deltas, boxes, valid, size):
                of_picture = (scores, deltas, boxes, (size[0], size[1]))
                return decode(*of_picture, valid=valid, **options)

            return jax.vmap(of_one)(*outputs, regions.boxes, regions.valid, size)

        @jax.jit
        def decoded(outputs, regions, size):
            scores, deltas = (x[0].astype(jnp.float32) for x in outputs)
            weights = (1.0, 1.0, 1.0, 1.0)
            if isinstance(model, RCNN):
                scores = jax.nn.sigmoid(scores)
            else:  # there the first class is the background
                scores, deltas, weights = jax.nn.softmax(scores)[:, 1:], deltas[:, 1:], BOX_WEIGHTS
            moved = decode_boxes(deltas, regions.boxes[0][:, None], weights)
            return scores, clip_boxes(moved, (size[0, 0], size[0, 1]))

        self._network, self._propose, self._heads, self._decoded = network, propose, heads, decoded
        self._suppress = jax.jit(suppressed, static_argnums=3)
        self.iou_threshold = selection.iou_threshold

    def given(self, batch: Mapping[str, Any]) -> Proposals | None:
        """The regions that the batch brings; none for a network that makes its own."""
        if self.proposes:
            return None
        valid = jnp.asarray(batch["proposal_valid"])
        boxes = jnp.where(valid[..., None], jnp.asarray(batch["proposals"]), 0.0)
        return Proposals(boxes, jnp.zeros(valid.shape), valid)

    def network(self, batch: Mapping[str, Any], regions: Proposals | None) -> Any:
        return self._network(self.variables, batch["image"], batch["size"], regions)

    def propose(self, features: Any, batch: Mapping[str, Any]) -> Proposals:
        return self._propose(self.variables, features, batch["size"])

    def heads(self, features: Any, regions: Proposals) -> tuple[jax.Array, jax.Array]:
        return self._heads(self.variables, features, regions)

    def suppress(
        self, outputs: Any, regions: Proposals, batch: Mapping[str, Any], iou: float | None = None
    ) -> PaddedDetections:
        """What is left when boxes suppress each other: 1 as `iou` leaves all."""
        iou = self.iou_threshold if iou is None else iou
        return self._suppress(outputs, regions, batch["size"], float(iou))

    def regions(self, outputs: Any, regions: Proposals, batch: Mapping[str, Any]) -> Regions:
        """What the heads say of the regions of a batch's first picture, in pixels."""
        scores, moved = self._decoded(outputs, regions, batch["size"])
        return Regions(
            np.asarray(regions.boxes)[0],
            np.asarray(scores),
            np.asarray(moved),
            np.asarray(regions.valid)[0],
        )

    def milliseconds(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """The time of each step for one picture; "proposals" only where the network makes them.

        Each step waits for what it makes. The first call of a shape compiles: call it once before.
        """
        clock: dict[str, float] = {}

        def timed(step: str, function: Callable[..., Any], *args: Any) -> Any:
            since = time.perf_counter()
            result = jax.block_until_ready(function(*args))
            clock[step] = 1000 * (time.perf_counter() - since)
            return result

        regions = jax.block_until_ready(self.given(batch))
        features = timed("network", self.network, batch, regions)
        if regions is None:
            regions = timed("proposals", self.propose, features, batch)
        outputs = timed("heads", self.heads, features, regions)
        timed("NMS", self.suppress, outputs, regions, batch)
        return clock
