"""What stands in for torchvision's compiled operators beside a PyTorch where they do not load.

Both compute what the compiled ones do, on PyTorch's own kernels as far as there are any: RoIAlign
by `grid_sample`, an order of magnitude faster than torchvision's form of it in Python.
"""

import sys

from torch_loop import import_torch, say


def import_detection():
    """Returns torch, and torchvision with its detection models; or None, and says what lacks."""
    try:
        torch, torchvision = import_torch()
        import numpy  # noqa: F401
    except ImportError as error:
        say(missing=str(error))
        return None
    if torchvision is None:
        say(missing="No module named 'torchvision'")
        return None
    import torchvision.extension
    import torchvision.models.detection  # which the datasets' import leaves out

    return torch, torchvision


def use_operators_in_python(torch) -> None:
    """Puts them in place of torchvision's; import its detection models first."""
    from torchvision.ops import boxes, roi_align

    boxes._assert_has_ops = lambda: None
    boxes.nms = boxes._batched_nms_vanilla.__globals__["nms"] = plain_nms(torch)
    sys.modules[roi_align.__module__].__dict__["_roi_align"] = sampled_roi_align(torch)


def plain_nms(torch):
    """The loop of torchvision's kernel, with each of its inner loops as a few NumPy operations."""
    import numpy as np

    def nms(boxes, scores, threshold):
        order = scores.sort(descending=True, stable=True)[1]
        boxes = boxes[order].cpu()
        if boxes.element_size() < 4:
            boxes = boxes.float()  # NumPy has no bfloat16
        x1, y1, x2, y2 = boxes.numpy().T.copy()
        areas = (x2 - x1) * (y2 - y1)
        alive, kept = np.ones(len(areas), bool), []
        for i in range(len(areas)):
            if not alive[i]:
                continue
            kept.append(i)
            rest = slice(i + 1, None)
            w = np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest])
            h = np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest])
            shared = w.clip(0) * h.clip(0)
            # Boxes without area overlap nothing, where the kernel's 0 / 0 is no more either.
            alive[rest] &= ~(shared > threshold * (areas[i] + areas[rest] - shared))
        return order[torch.tensor(kept, dtype=torch.long, device=order.device)]

    return nms


def sampled_roi_align(torch):
    """RoIAlign (arXiv:1703.06870) as means of bilinear samples.

    All RoIs of a picture that have equally many samples in a bin are sampled at once: all of them
    where the sampling ratio says how many; else, as the kernel does, a sample a pixel and axis.
    """
    functional = torch.nn.functional

    def positions(start, size, bins, ratio, length):
        """Where the samples of each RoI lie on an axis, -1 to 1, and which the map has at all."""
        steps = torch.arange(bins * ratio, dtype=start.dtype, device=start.device)
        steps = (steps + 0.5) / (bins * ratio)
        x = start[:, None] + steps * size[:, None]
        there = (x >= -1) & (x <= length)
        return x.clamp(0, length - 1) * (2 / max(length - 1, 1)) - 1, there

    def sampled(maps, start, size, shape, ratios):
        """Means [n, c, *shape] of one picture's maps [1, c, h, w] in n RoIs."""
        (rows, columns), (down, across) = shape, ratios
        x, x_there = positions(start[:, 0], size[:, 0], columns, across, maps.shape[3])
        y, y_there = positions(start[:, 1], size[:, 1], rows, down, maps.shape[2])
        grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1)
        grid = grid.reshape(1, -1, columns * across, 2).to(maps.dtype)
        samples = functional.grid_sample(maps, grid, padding_mode="border", align_corners=True)
        samples = samples.reshape(-1, len(start), rows * down, columns * across)
        there = y_there[:, :, None] & x_there[:, None]
        return functional.avg_pool2d(samples * there, (down, across)).transpose(0, 1)

    def roi_align(maps, rois, scale, rows, columns, ratio, aligned):
        start = rois[:, 1:3] * scale - 0.5 * aligned
        size = rois[:, 3:5] * scale - 0.5 * aligned - start
        size = size if aligned else size.clamp(min=1)
        if ratio > 0:
            ratios = torch.full((len(rois), 2), ratio)
        else:
            ratios = (size / size.new_tensor([columns, rows])).ceil().clamp(min=1).flip(1)
        groups = torch.cat([rois[:, :1].cpu(), ratios.cpu()], dim=1).long()
        # Without a RoI, too, the maps have a gradient, of zeros, as of the compiled operator.
        pooled = maps.new_zeros(len(rois), maps.shape[1], rows, columns) + maps[..., :0].sum()
        for group in groups.unique(dim=0):
            i, down, across = group.tolist()
            members = (groups == group).all(dim=1).nonzero()[:, 0].to(rois.device)
            means = sampled(
                maps[i : i + 1], start[members], size[members], (rows, columns), (down, across)
            )
            pooled = pooled.index_put((members,), means.to(maps.dtype))
        return pooled

    return roi_align
