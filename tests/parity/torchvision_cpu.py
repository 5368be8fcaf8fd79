"""The real torchvision, imported beside a CPU-only PyTorch.

torchvision's compiled operators want CUDA and do not load there, and importing it fails because
`torchvision::nms` is unknown to PyTorch. The operators are declared here first; `nms` is the
benchmarks' plain one. Models, transforms and losses are then the genuine ones.

    from .torchvision_cpu import torchvision
"""

import sys
import warnings
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "experiments" / "bench"))
from torch_operators import plain_nms, sampled_roi_align

try:
    # It must stay referenced: the operators vanish with it.
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", plain_nms(torch), "CPU")
except RuntimeError:  # a torchvision whose own operators loaded has declared them
    pass

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torchvision warns of while it is imported is not ours
    import torchvision
    import torchvision.models
    import torchvision.transforms.v2

__all__ = ["plain_nms", "sampled_roi_align", "torchvision"]
