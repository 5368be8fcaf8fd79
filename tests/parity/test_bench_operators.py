"""What the benchmarks put in place of torchvision's compiled operators computes the same."""

import pytest
import torch

from .torchvision_cpu import plain_nms, sampled_roi_align, torchvision

ROIS = torch.tensor(
    [
        [0, 3.0, 4.0, 70.0, 60.0],
        [2, -3.0, -3.0, 81.0, 65.0],
        [2, 10.0, 10.0, 10.5, 10.2],
        [0, 30.0, 20.0, 79.0, 63.0],
    ]
)


@pytest.mark.parametrize("ratio", [2, -1])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_and_its_gradient(aligned, ratio):
    maps = torch.randn(3, 5, 16, 20, generator=torch.Generator().manual_seed(0))
    theirs = torchvision.ops.roi_align.__globals__["_roi_align"]
    theirs = getattr(theirs, "__wrapped__", theirs)
    results = []
    for roi_align in (sampled_roi_align(torch), theirs):
        x = maps.clone().requires_grad_()
        y = roi_align(x, ROIS, 0.25, 7, 5, ratio, aligned)
        results.append((y.detach(), torch.autograd.grad(y.square().sum(), x)[0]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_without_a_roi_the_gradient_is_zero():
    maps = torch.ones(1, 3, 4, 4, requires_grad=True)
    y = sampled_roi_align(torch)(maps, ROIS[:0], 0.25, 7, 5, 2, False)
    assert y.shape == (0, 3, 7, 5)
    y.sum().backward()
    assert not maps.grad.any()


def test_no_box_that_is_kept_overlaps_another_one():
    generator = torch.Generator().manual_seed(0)
    corner = 60 * torch.rand(200, 2, generator=generator)
    boxes = torch.cat([corner, corner + 5 + 30 * torch.rand(200, 2, generator=generator)], dim=1)
    boxes[7, 2:] = boxes[7, :2]  # without area
    scores = torch.rand(200, generator=generator)
    kept = plain_nms(torch)(boxes, scores, 0.4)
    assert (scores[kept].diff() <= 0).all()
    near = torchvision.ops.box_iou(boxes, boxes[kept]) > 0.4
    assert near[kept].sum() == len(kept) - (kept == 7).sum()
    # Each other one overlaps a kept one of a higher score.
    gone = [i for i in range(200) if i not in set(kept.tolist())]
    assert 0 < len(gone) < 200
    assert (near & (scores[kept] > scores[:, None]))[gone].any(dim=1).all()
