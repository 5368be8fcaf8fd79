"""torchvision's side of `box_ops.py`, and the boxes that both sides get.

It needs PyTorch, torchvision and NumPy. Lines of JSON go both ways: first the versions come out,
and whether torchvision's compiled nms is there; then each request `{"kind", "scene", "count",
"device", "steps"}` is answered with the seconds that the steps took, and how many boxes were kept
or matched.
"""

import json
import sys
import time

from torch_loop import say
from torch_operators import import_detection, plain_nms

THRESHOLDS = {"nms": 0.7, "batched_nms": 0.5}
MATCHER = (0.7, 0.3, True)  # an RPN's
CLASSES = 20
OBJECTS = 20


def make_boxes(count: int, scene: str):
    """Returns boxes [n, 4], scores [n] and labels [n] in a picture of 800 pixels.

    "crowded": around 30 objects, as an RPN proposes them, and some anywhere; "sparse": small boxes
    in a large picture, nearly all of which are kept, so that most pairs have to be looked at.
    """
    import numpy as np

    rng = np.random.default_rng(count)
    if scene == "sparse":
        centre, sides = rng.uniform(0, 4000, (count, 2)), rng.uniform(5, 40, (count, 2))
    else:
        objects, sizes = rng.uniform(0, 800, (30, 2)), rng.uniform(40, 250, (30, 2))
        of = rng.integers(0, 30, count)
        centre = objects[of] + 0.25 * rng.normal(size=(count, 2)) * sizes[of]
        sides = sizes[of] * np.exp(0.25 * rng.normal(size=(count, 2)))
        stray = rng.random(count) < 0.3
        centre[stray] = rng.uniform(0, 800, (stray.sum(), 2))
        sides[stray] = np.exp(rng.uniform(2.5, 5.5, (stray.sum(), 2)))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1).astype(np.float32)
    return boxes, rng.random(count).astype(np.float32), rng.integers(0, CLASSES, count)


def make_run(torch, torchvision, kind: str, scene: str, count: int, device: str):
    """Returns a function that does the work once and returns what was kept or matched."""
    boxes, scores, labels = (torch.tensor(a).to(device) for a in make_boxes(count, scene))
    if kind == "nms":
        return lambda: torchvision.ops.nms(boxes, scores, THRESHOLDS[kind])
    if kind == "batched_nms":
        return lambda: torchvision.ops.batched_nms(boxes, scores, labels, THRESHOLDS[kind])
    objects = torch.tensor(make_boxes(OBJECTS, scene)[0]).to(device)
    matcher = torchvision.models.detection._utils.Matcher(*MATCHER)
    return lambda: matcher(torchvision.ops.box_iou(objects, boxes))


def main() -> None:
    found = import_detection()
    if found is None:
        return
    torch, torchvision = found
    facts = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    compiled = torchvision.extension._has_ops()
    if not compiled:
        library = torch.library.Library("torchvision", "IMPL")
        for device in ("CPU", "CUDA"):
            library.impl("nms", plain_nms(torch), device)
        torchvision.ops.boxes._assert_has_ops = lambda: None
    say(**facts, threads=torch.get_num_threads(), compiled_nms=compiled)
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
        seconds = time.perf_counter() - since
        real = (result >= 0).sum() if request["kind"] == "match" else len(result)
        say(seconds=seconds, results=int(real))


if __name__ == "__main__":
    main()
