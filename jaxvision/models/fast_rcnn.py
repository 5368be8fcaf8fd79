"""Fast R-CNN (arXiv:1504.08083): one pass over the picture, then features for each given proposal.

The same backbone and heads as Faster R-CNN's, under the same names, so that weights go from one to
the other; only the proposals come from outside. `fast_rcnn_loss` of `jaxvision.losses` trains it,
and `make_proposal_detector` finds objects with it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxvision.models import resnet, vgg
from jaxvision.models.faster_rcnn import RESNET_STAGES, SIZE_DIVISIBLE, resnet_pyramid
from jaxvision.models.fpn import DetectionBackbone, Maps
from jaxvision.models.roi_heads import Pooling, RoIHeads, TwoMLPHead
from jaxvision.ops import zero_outside
from jaxvision.types import Array


class FastRCNNOutputs(NamedTuple):
    """Of each proposal the logits of the classes, of which the first is the background, and the
    deltas of each class's box. `decode_rcnn` makes boxes of it."""

    class_logits: Float[Array, "b n k"]
    box_deltas: Float[Array, "b n k 4"]


class FastRCNN(nn.Module):
    """A backbone, and heads that classify proposals by its maps and refine their boxes.

    Pictures and classes are as `FasterRCNN` has them: normalised RGB, 0 the background, which
    `num_classes` of the functions that build one counts.
    """

    backbone: DetectionBackbone
    roi_heads: RoIHeads

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        sizes: Int[Array, "b 2"] | None = None,
        proposals: Float[Array, "b n 4"] | None = None,
        *,
        train: bool = False,
    ) -> FastRCNNOutputs:
        """Returns what the heads say of the proposals; without any, of each picture as a whole."""
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.array([images.shape[1:3]]), (images.shape[0], 2))
        if proposals is None:
            whole = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], axis=1)
            proposals = whole[:, None].astype(jnp.float32)
        features = self.extract_features(images, sizes, train=train)
        return FastRCNNOutputs(*self.classify_rois(features, proposals, train=train))

    def extract_features(
        self, images: Float[Array, "b h w c"], sizes: Int[Array, "b 2"], *, train: bool
    ) -> Maps:
        """Returns the feature maps, the finest first, of pictures on a background of zeros."""
        return self.backbone(zero_outside(images, sizes, SIZE_DIVISIBLE), train=train)

    def classify_rois(
        self, features: Maps, boxes: Float[Array, "b n 4"], *, train: bool
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
        """Returns the logits of the classes, and each class's deltas, of any boxes."""
        return self.roi_heads(features, boxes, train=train)


def truncate_svd(params: Mapping[str, Any], ranks: Sequence[int]) -> dict[str, Any]:
    """Returns a detector's parameters with fc6 and fc7 each in two thinner layers.

    Section 3.1 of the paper: of a layer's weights W = U S V^T only the `ranks` largest singular
    values stay, so that t (u + v) products do the work of u v. The result is for the same network
    built with `svd_ranks=ranks`, up to whose full rank it says the same as before. The paper takes
    1024 and 256 of VGG-16's 4096, for 0.3 points of mAP.

    >>> import jax
    >>> from jaxvision.models import get_model
    >>> options = {"widths": (4, 4, 4, 4, 4), "hidden": 8}
    >>> images, key = np.zeros((1, 32, 32, 3), np.float32), jax.random.key(0)
    >>> params = get_model("fastrcnn_vgg16", **options).init(key, images)["params"]
    >>> fast = get_model("fastrcnn_vgg16", **options, svd_ranks=(4, 2))
    >>> logits = fast.apply({"params": truncate_svd(params, (4, 2))}, images).class_logits
    >>> logits.shape
    (1, 1, 21)
    """
    head = dict(params["roi_heads"]["box_head"])
    for name, rank in zip(("fc6", "fc7"), ranks, strict=True):
        kernel = np.asarray(head[name]["kernel"])
        if not 1 <= rank <= min(kernel.shape):
            raise ValueError(f"{name}: expected a rank of 1 to {min(kernel.shape)}, got {rank}")
        left, values, right = np.linalg.svd(kernel, full_matrices=False)
        head[name] = {
            "0": {"kernel": jnp.asarray(left[:, :rank] * values[:rank])},
            "1": {"kernel": jnp.asarray(right[:rank]), "bias": head[name]["bias"]},
        }
    return {**params, "roi_heads": {**params["roi_heads"], "box_head": head}}


# ------------------------------------------------------------------------------------- the zoo
def fastrcnn_resnet_fpn(
    body: Callable[..., resnet.ResNet],
    num_classes: int = 91,
    *,
    frozen_norm: bool = True,
    norm_eps: float = 1e-5,
    width: int = 64,
    stem: Literal["imagenet", "small"] = "imagenet",
    stages: Sequence[str] = RESNET_STAGES,
    fpn_features: int | None = 256,
    pooling: Pooling = "align",
    representation_size: int = 1024,
    svd_ranks: Sequence[int] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> FastRCNN:
    """Returns Faster R-CNN's ResNet with a pyramid, and its heads: see `fasterrcnn_resnet_fpn`.

    `fpn_features=None` is without a pyramid, on the one map that `stages` names, and `pooling`
    "pool" the paper's RoIPool on one map. `svd_ranks`: see `truncate_svd`.
    """
    backbone, strides = resnet_pyramid(
        body,
        frozen_norm=frozen_norm,
        norm_eps=norm_eps,
        width=width,
        stem=stem,
        stages=stages,
        fpn_features=fpn_features,
        last_level_max_pool=False,
        dtype=dtype,
    )
    head = TwoMLPHead(representation_size, ranks=_ranks(svd_ranks), dtype=dtype)
    return FastRCNN(backbone, RoIHeads(num_classes, head, strides, pooling, dtype))


def fastrcnn_vgg16(
    num_classes: int = 21,
    *,
    widths: Sequence[int] = vgg.WIDTHS,
    pooling: Pooling = "pool",
    hidden: int = 4096,
    dropout: float = 0.5,
    svd_ranks: Sequence[int] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> FastRCNN:
    """Returns the paper's network: VGG-16's last map, of stride 16, RoIs pooled to 7 x 7, and its
    two hidden layers as fc6 and fc7. `svd_ranks`: see `truncate_svd`."""
    body = vgg.vgg16(features_only=True, widths=tuple(widths), dtype=dtype)
    head = TwoMLPHead(hidden, dropout, dtype, _ranks(svd_ranks))
    return FastRCNN(
        DetectionBackbone(body, ("stage5",)), RoIHeads(num_classes, head, (16,), pooling, dtype)
    )


def _ranks(svd_ranks: Sequence[int] | None) -> tuple[int, int] | None:
    if svd_ranks is None:
        return None
    fc6, fc7 = svd_ranks
    return fc6, fc7


fastrcnn_resnet50_fpn = partial(fastrcnn_resnet_fpn, resnet.resnet50)
fastrcnn_resnet18_fpn = partial(fastrcnn_resnet_fpn, resnet.resnet18, frozen_norm=False)
