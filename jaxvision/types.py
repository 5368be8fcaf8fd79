"""Names shared by every part: arrays, variables, batches, and the shape of a loss function.

Axis letters in shape annotations, everywhere in the library:
b batch, h height, w width, c channels, n boxes or RoIs, m ground truths, k classes, a anchors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int32

Array = jax.Array | np.ndarray

PerChannel = float | Sequence[float] | Array
"""A number, or one for each channel: a mean or a standard deviation of pictures."""

Batch = Mapping[str, Any]
"""Arrays by name, batch axis first: `image` uint8 or float [b, h, w, c], `label` int
[b], and, where a batch is padded to its fixed size, `valid` bool [b]."""

Variables = Mapping[str, Any]
"""A linen model's variables: `params` and, where the model has BatchNorm, `batch_stats`."""

Metrics = dict[str, Any]

LossFn = Callable[..., tuple[jax.Array, tuple[Any, Metrics]]]
"""`(params, batch_stats, batch, key, train=True) -> (loss, (batch_stats, metrics))`.

The loss and every metric are means over the batch's valid examples."""


class PaddedDetections(NamedTuple):
    """What a detector found, of a fixed number n, best first; `valid` says which rows are real.

    Boxes are (x1, y1, x2, y2) in pixels of the picture as the network saw it. What is padding holds
    zeros. A batch of pictures has a leading axis.
    """

    boxes: Float[Array, "*b n 4"]
    scores: Float[Array, "*b n"]
    labels: Int32[Array, "*b n"]
    valid: Bool[Array, "*b n"]


class PaddedInstances(NamedTuple):
    """`PaddedDetections` with a mask each: how probably a pixel of its box belongs to the object.

    A mask divides its box into s by s equal parts; `ops.BoxMasks` pastes it into the picture.
    """

    boxes: Float[Array, "*b n 4"]
    scores: Float[Array, "*b n"]
    labels: Int32[Array, "*b n"]
    valid: Bool[Array, "*b n"]
    masks: Float[Array, "*b n s s"]


class PaddedPoses(NamedTuple):
    """`PaddedDetections` with the p keypoints of each, (x, y) in pixels, and their logits."""

    boxes: Float[Array, "*b n 4"]
    scores: Float[Array, "*b n"]
    labels: Int32[Array, "*b n"]
    valid: Bool[Array, "*b n"]
    keypoints: Float[Array, "*b n p 2"]
    keypoint_scores: Float[Array, "*b n p"]


AnyDetections = PaddedDetections | PaddedInstances | PaddedPoses
