"""The real torchvision, imported beside a CPU-only PyTorch.

torchvision's compiled operators want CUDA and do not load there, and importing it fails because
`torchvision::nms` is unknown to PyTorch. The operators are declared here first; `nms` gets a plain
implementation. Models, transforms and losses are then the genuine ones.

    from .torchvision_cpu import torchvision
"""

import warnings

import torch


def _nms(boxes, scores, iou_threshold):
    """Greedy suppression: a box goes when its IoU with a kept one is above the threshold."""
    order = scores.sort(descending=True, stable=True)[1]
    sorted_boxes = boxes[order]
    areas = (sorted_boxes[:, 2:] - sorted_boxes[:, :2]).prod(dim=1)
    alive = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for i, box in enumerate(sorted_boxes):
        if not alive[i]:
            continue
        kept.append(i)
        rest = sorted_boxes[i + 1 :]
        sides = torch.minimum(box[2:], rest[:, 2:]) - torch.maximum(box[:2], rest[:, :2])
        overlap = sides.clamp(min=0).prod(dim=1)
        alive[i + 1 :] &= ~(overlap / (areas[i] + areas[i + 1 :] - overlap) > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.long)]


try:
    # It must stay referenced: the operators vanish with it.
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", _nms, "CPU")
except RuntimeError:  # a torchvision whose own operators loaded has declared them
    pass

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchvision warns of while it is imported is not ours
    import torchvision
    import torchvision.models
    import torchvision.transforms.v2

__all__ = ["torchvision"]
