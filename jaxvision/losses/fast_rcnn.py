"""Fast R-CNN's loss (arXiv:1504.08083, section 2.3), on proposals that the batch brings."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.losses.forward import call
from jaxvision.losses.objects import pictures_and_objects
from jaxvision.losses.rcnn import box_head_loss, sample_rois
from jaxvision.types import Batch, LossFn, PerChannel


class RoISampling(NamedTuple):
    """How many RoIs of each picture the loss looks at, which share of them has an object, and by
    which IoU with the objects they are foreground, at least, and background, at least."""

    num_rois: int = 64
    positive_fraction: float = 0.25
    iou_threshold: float = 0.5
    background_iou: float = 0.1


PAPER_SAMPLING = RoISampling()


def fast_rcnn_loss(
    model: nn.Module,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    sampling: RoISampling = PAPER_SAMPLING,
) -> LossFn:
    """Returns Fast R-CNN's `loss_fn(params, batch_stats, batch, key, train=True)`.

    The batch is that of `faster_rcnn_loss`, and has `proposals` [b, p, 4] in pixels, of which
    `proposal_valid` bool [b, p] says what is none, whatever it holds. The objects' own boxes are
    added to them. RoIs are drawn with `key`, and without one, as in evaluation, always the same.
    Background that overlaps no object by `sampling.background_iou` is not drawn, as in the paper
    (a heuristic of hard examples), but in pictures without objects, which the paper has none of.
    The loss is the sum of the metrics `loss_classifier` and `loss_box_reg`, torchvision's terms:
    the paper's multitask loss, but that smooth L1 bends at 1/9.
    """

    def loss_fn(params: Any, batch_stats: Any, batch: Batch, key: Any, train: bool = True):
        key = jax.random.key(0) if key is None else key
        roi_key, dropout_key = jax.random.split(key)
        images, sizes, boxes, labels, box_valid, valid, rows = pictures_and_objects(
            batch, mean, std
        )

        def sample(*picture):
            return sample_rois(
                *picture,
                size=sampling.num_rois,
                positive_fraction=sampling.positive_fraction,
                iou_threshold=sampling.iou_threshold,
                background_iou=sampling.background_iou,
            )

        proposals = jnp.asarray(batch["proposals"])
        proposal_valid = jnp.asarray(batch["proposal_valid"]) & valid[:, None]
        keys = jax.random.split(roi_key, len(images))
        rois = jax.vmap(sample)(keys, proposals, proposal_valid, boxes, labels, box_valid)

        def run(stage, batch_stats, *args, rows):
            options = {"train": train, "rows": rows, "method": stage}
            return call(model, params, batch_stats, dropout_key, *args, **options)

        features, batch_stats = run(model.extract_features, batch_stats, images, sizes, rows=rows)
        (logits, deltas), batch_stats = run(
            model.classify_rois, batch_stats, features, rois.boxes, rows=rois.valid.reshape(-1)
        )
        class_loss, box_loss = box_head_loss(
            logits, deltas, rois.classes, rois.target_deltas, rois.valid
        )
        terms = {"loss_classifier": class_loss, "loss_box_reg": box_loss}
        loss = class_loss + box_loss
        return loss, (batch_stats, {"loss": loss, **terms})

    return loss_fn
