"""R-CNN (arXiv:1311.2524): a network on a crop of each proposal, SVMs and box regressors behind it.

The network classifies pictures, and is an ordinary one. Its last layer is replaced by linear SVMs
on the features in front of it, one for each class, and the boxes are regressed, class by class,
from its last map. What trains them is in `experiments/rcnn_stages.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxvision.models.layers import Dense
from jaxvision.ops import adaptive_avg_pool
from jaxvision.ops.warp import warp_rois
from jaxvision.types import Array, Variables

AT_ONCE = 128
"""Crops that the network sees together: more of them would only take more memory."""


class RegionFeatures(NamedTuple):
    """What the network says of each crop: the features in front of its head, and the cells of its
    last map, pool5 in the paper, which know where in the crop something is."""

    features: Float[Array, "*n d"]
    cells: Float[Array, "*n s s2 c"]


class RegionScores(NamedTuple):
    """Of each crop each class's SVM score, of which 0 is the border, and that class's box deltas.

    There is no background among the classes.
    """

    margins: Float[Array, "*n k"]
    deltas: Float[Array, "*n k 4"]


class RCNN(nn.Module):
    """Scores regions of pictures: each is cropped, stretched, and looked at alone.

    `backbone` is a classification network without its head (`num_classes=0`). `num_classes` counts
    the background, as everywhere in the R-CNN family: there are SVMs and regressors for one class
    less. `crop_size` is the side of a crop, of which `padding` pixels at each side show what is
    around the proposal. Of the last map at most `grid` cells an axis are kept, each the mean of
    what it covers.
    """

    backbone: nn.Module
    num_classes: int
    crop_size: int = 224
    padding: int = 16
    grid: int = 7
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        zeros = nn.initializers.zeros
        options = {"kernel_init": zeros, "bias_init": zeros, "dtype": self.dtype}
        self.svms = Dense(self.num_classes - 1, **options)
        self.box_regressors = Dense(4 * (self.num_classes - 1), **options)

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        sizes: Int[Array, "b 2"] | None = None,
        boxes: Float[Array, "b n 4"] | None = None,
        *,
        train: bool = False,
    ) -> RegionScores:
        """Returns what the classifiers say of regions of normalised pictures, [b, n, …].

        `sizes` (h, w) say where each picture ends, by default its array; without `boxes` each
        picture as a whole is its one region. All crops go through the network together:
        `describe_regions` takes some at a time.
        """
        b, h, w, _ = images.shape
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.array([[h, w]]), (b, 2))
        if boxes is None:
            boxes = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], axis=1)
            boxes = boxes[:, None].astype(jnp.float32)
        n = boxes.shape[1]
        crops = crop_regions(self, images, sizes, boxes)
        scores = self.score(self.describe(crops.reshape(b * n, *crops.shape[2:]), train=train))
        return jax.tree.map(lambda x: x.reshape(b, n, *x.shape[1:]), scores)

    def describe(self, crops: Float[Array, "n s s c"], *, train: bool = False) -> RegionFeatures:
        """Returns the network's features of crops, in float32."""
        maps: list[jax.Array] = []

        def remember(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            outputs = call(*args, **kwargs)
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            inside = context.module.path[:-1] == self.backbone.path
            if inside and isinstance(first, jax.Array) and first.ndim == 4:
                maps.append(first)
            return outputs

        # The last map that a part of the backbone returns: a network that classifies keeps it to
        # itself, and one that returns its stages instead has no features in front of a head.
        with nn.intercept_methods(remember):
            features = self.backbone(crops, train=train)
        if not maps:
            raise ValueError(f"expected a backbone with maps, got {type(self.backbone).__name__}")
        h, w = maps[-1].shape[1:3]
        cells = adaptive_avg_pool(maps[-1], (min(h, self.grid), min(w, self.grid)))
        return RegionFeatures(features.astype(jnp.float32), cells.astype(jnp.float32))

    def classify(self, crops: Float[Array, "n s s c"]) -> RegionScores:
        """Returns what the classifiers say of crops."""
        return self.score(self.describe(crops))

    def score(self, described: RegionFeatures) -> RegionScores:
        """Returns what the linear classifiers and regressors make of features."""
        n = len(described.cells)
        deltas = self.box_regressors(described.cells.reshape(n, -1))
        deltas = deltas.reshape(n, self.num_classes - 1, 4)
        return RegionScores(self.svms(described.features), deltas)


def crop_regions(
    model: RCNN,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    boxes: Float[Array, "b n 4"],
) -> Float[Array, "b n s s c"]:
    """Returns the crops of normalised pictures that the network takes: see `warp_rois`."""

    def of_one(image, size, boxes):
        size = (size[0], size[1])
        return warp_rois(image, boxes, model.crop_size, padding=model.padding, size=size)

    return jax.vmap(of_one)(images, sizes, boxes)


def in_chunks(
    function: Callable[[Float[Array, "b n 4"]], Any],
    boxes: Float[Array, "b n 4"],
    at_once: int = AT_ONCE,
) -> Any:
    """Returns `function(boxes)`, [b, n, …] of everything, computed some boxes at a time.

    So thousands of crops never exist together. It must work on each box alone.
    """
    b, n, _ = boxes.shape
    size = max(1, at_once // max(b, 1))
    if n <= size:
        return function(boxes)
    count = -(-n // size)
    padded = jnp.pad(boxes, ((0, 0), (0, count * size - n), (0, 0)))
    parts = jnp.moveaxis(padded.reshape(b, count, size, 4), 1, 0)
    results = jax.lax.map(function, parts)
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(b, count * size, *x.shape[3:])[:, :n], results
    )


def describe_regions(
    model: RCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
) -> RegionFeatures:
    """Returns the features [b, n, …] of the boxes of normalised pictures; not of those not valid,
    which are zeros. `sizes` (h, w) say where each picture ends."""
    return _of_crops(model, variables, images, sizes, boxes, valid, model.describe)


def classify_regions(
    model: RCNN,
    variables: Variables,
    images: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
) -> RegionScores:
    """Returns `score_regions` of `describe_regions`, without ever holding the features of all."""
    return _of_crops(model, variables, images, sizes, boxes, valid, model.classify)


def _of_crops(model, variables, images, sizes, boxes, valid, method):
    boxes = jnp.where(valid[..., None], boxes, 0.0)

    def of_some(boxes):
        b, n, _ = boxes.shape
        crops = crop_regions(model, images, sizes, boxes)
        found = model.apply(variables, crops.reshape(b * n, *crops.shape[2:]), method=method)
        return jax.tree.map(lambda x: x.reshape(b, n, *x.shape[1:]), found)

    def real(x):
        return jnp.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)), x, 0.0)

    return jax.tree.map(real, in_chunks(of_some, boxes))


def score_regions(model: RCNN, variables: Variables, described: RegionFeatures) -> RegionScores:
    """Returns the scores and deltas of features [b, n, …] of any number of leading axes."""
    lead = described.features.shape[:-1]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(lead) :]), described)
    scores = model.apply(variables, flat, method=model.score)
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), scores)
