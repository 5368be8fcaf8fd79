"""torchvision's side of `roi.py`, and the pyramid and the boxes that both sides get.

It needs PyTorch, torchvision and NumPy. Lines of JSON go both ways: first the versions come out,
and whether torchvision's compiled operator is there; then each request `{"kind", "boxes", "size",
"channels", "device", "steps"}` is answered with the seconds that the steps took, and the mean of
what came out: "pool", "pool_with_gradient" or "paste".
"""

import json
import sys
import time

from torch_loop import say
from torch_operators import import_detection, use_operators_in_python

STRIDES = (4, 8, 16, 32)
BINS = 7
SAMPLES = 2


def make_pyramid(size: tuple[int, int], channels: int):
    """Returns the feature maps [h, w, c] of a picture of `size`, finest first."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = [(-(-size[0] // s), -(-size[1] // s), channels) for s in STRIDES]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def make_boxes(count: int, size: tuple[int, int]):
    """Returns boxes [n, 4] inside the picture, of 16 to 600 pixels: each level gets some."""
    import numpy as np

    rng = np.random.default_rng(1)
    side, aspect = (
        np.exp(rng.uniform(np.log(16), np.log(600), count)),
        rng.uniform(-0.7, 0.7, count),
    )
    sides = np.stack([side * np.exp(aspect), side * np.exp(-aspect)], axis=1)
    sides = np.minimum(sides, size[::-1])
    start = rng.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - sides)
    return np.concatenate([start, start + sides], axis=1).astype(np.float32)


def make_masks(count: int, size: tuple[int, int]):
    """Returns masks [n, 28, 28] and boxes [n, 4] of a tenth of so many boxes, at least one."""
    import numpy as np

    boxes = make_boxes(count, size)[: max(1, count // 10)]
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    disc = (x**2 + y**2 < 0.8).astype(np.float32)
    return np.repeat(disc[None], len(boxes), axis=0), boxes


def make_run(torch, torchvision, kind, boxes, size, channels, device):
    """Returns a function that pools all boxes once, or pastes the masks of some."""
    if kind == "paste":
        paste = torchvision.models.detection.roi_heads.paste_masks_in_image
        masks, chosen = (torch.tensor(x).to(device) for x in make_masks(boxes, size))
        return lambda: paste(masks[:, None], chosen, tuple(size))
    maps = {
        str(s): torch.tensor(m).permute(2, 0, 1)[None].contiguous().to(device)
        for s, m in zip(STRIDES, make_pyramid(size, channels), strict=True)
    }
    rois = [torch.tensor(make_boxes(boxes, size)).to(device)]
    pool = torchvision.ops.MultiScaleRoIAlign(list(maps), BINS, SAMPLES)
    if kind == "pool":
        return lambda: pool(maps, rois, [tuple(size)])
    for m in maps.values():
        m.requires_grad_()

    def run():
        y = pool(maps, rois, [tuple(size)])
        torch.autograd.grad(y, list(maps.values()), y.detach(), allow_unused=True)
        return y.detach()

    return run


def main() -> None:
    found = import_detection()
    if found is None:
        return
    torch, torchvision = found
    compiled = torchvision.extension._has_ops()
    if not compiled:
        use_operators_in_python(torch)
    facts = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    say(**facts, threads=torch.get_num_threads(), compiled=compiled)
    current, run = None, None
    for line in sys.stdin:
        request = json.loads(line)
        steps = request.pop("steps")
        wait = torch.cuda.synchronize if request["device"] == "cuda" else lambda: None
        if request != current:
            current, run = request, make_run(torch, torchvision, **request)
            run()
        wait()
        since = time.perf_counter()
        for _ in range(steps):
            result = run()
        wait()
        say(seconds=time.perf_counter() - since, mean=float(result.mean()))


if __name__ == "__main__":
    main()
