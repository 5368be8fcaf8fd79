"""YOLO v1 (`yolov1_tiny`) in plain PyTorch, in a process of its own, which `yolo.py` drives.

It needs PyTorch and NumPy alone. FOLDER holds what both sides start from: weights.npz, torch's
names to arrays, and batches.npz, `image` [n, b, h, w, 3], `boxes`, `labels`, `box_valid`. Lines of
JSON go both ways: first the versions come out; then each request is answered, {"losses": steps}
with the five terms of the loss at each step, {"train": steps} with the seconds that they took,
{"eval": steps} likewise without gradients. On the CPU float32 in channels_last, but for the losses,
which are of float64; on a GPU bfloat16 by autocast, compiled.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from functools import partial
from pathlib import Path

try:
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:  # `yolo.py` says it in words
    print(json.dumps({"missing": str(error)}), flush=True)
    sys.exit(0)

LAYERS = ((32, 2), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1), (192, 2), (256, 1))
"""Width and stride of each convolution of `yolov1_tiny`."""
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 2e-3, 0.9, 5e-4
MEAN, STD = 0.5, 0.25
LAMBDA_COORD, LAMBDA_NOOBJ = 5.0, 0.5
TERMS = ("center_loss", "size_loss", "object_loss", "no_object_loss", "class_loss")


class TinyYOLO(nn.Module):
    """Returns [b, B * 5 + C, rows, columns], named as the other side's parameters."""

    def __init__(self, num_classes: int = 10, num_boxes: int = 2):
        super().__init__()
        self.num_classes, self.num_boxes = num_classes, num_boxes
        self.backbone, channels = nn.ModuleDict(), 3
        for i, (width, stride) in enumerate(LAYERS, start=1):
            self.backbone[f"conv{i}"] = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.backbone[f"bn{i}"] = nn.BatchNorm2d(width)
            channels = width
        self.head = nn.Conv2d(channels, 5 * num_boxes + num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(1, len(LAYERS) + 1):
            x = self.backbone[f"bn{i}"](self.backbone[f"conv{i}"](x))
            x = functional.leaky_relu(x, 0.1)
        return self.head(x)


def grid_targets(boxes, labels, box_valid, size, rows, columns):
    """Of each cell the first object whose centre is in it: (has_object, centre, roots, label)."""
    b, m, _ = boxes.shape
    h, w = size
    x, y = (boxes[..., 0] + boxes[..., 2]) / 2, (boxes[..., 1] + boxes[..., 3]) / 2
    column = (x * columns / w).floor().clamp(0, columns - 1)
    row = (y * rows / h).floor().clamp(0, rows - 1)
    cell = (row * columns + column).long()
    owner = torch.full((b, rows * columns + 1), -1, device=boxes.device)
    cell = torch.where(box_valid, cell, rows * columns)  # a cell that is thrown away
    for j in reversed(range(m)):
        owner.scatter_(1, cell[:, j : j + 1], j)
    owner = owner[:, :-1]
    has_object = owner >= 0
    index = owner.clamp(min=0)
    fraction = torch.stack([x * columns / w - column, y * rows / h - row], -1)
    sides = torch.stack(
        [(boxes[..., 2] - boxes[..., 0]) / w, (boxes[..., 3] - boxes[..., 1]) / h], -1
    )
    pick = index[..., None].expand(-1, -1, 2)
    centers, roots = fraction.gather(1, pick), sides.gather(1, pick).sqrt()
    shape = (b, rows, columns)
    return (
        has_object.view(shape),
        centers.view(*shape, 2),
        roots.view(*shape, 2),
        labels.long().gather(1, index).view(shape),
    )


def boxes_of(centers, roots, rows, columns):
    """(x1, y1, x2, y2) in shares of the picture."""
    device = centers.device
    left = torch.arange(columns, device=device)[None, None, :, None]
    top = torch.arange(rows, device=device)[None, :, None, None]
    x, y = (centers[..., 0] + left) / columns, (centers[..., 1] + top) / rows
    half_w, half_h = roots[..., 0] ** 2 / 2, roots[..., 1] ** 2 / 2
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], -1)


def yolo_loss(outputs, objects, size, num_classes, class_loss="squared_error", bounded=True):
    """The five terms of equation 3, means over the pictures, as a tensor in the order of TERMS."""
    outputs = outputs.permute(0, 2, 3, 1)
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    b, rows, columns, channels = outputs.shape
    logits = outputs[..., channels - num_classes :]
    numbers = outputs[..., : channels - num_classes].reshape(b, rows, columns, -1, 5)
    classes = logits
    if bounded:
        numbers, classes = numbers.sigmoid(), logits.softmax(-1)
    centers, roots, confidence = numbers[..., :2], numbers[..., 2:4], numbers[..., 4]
    has_object, true_centers, true_roots, label = grid_targets(*objects, size, rows, columns)
    with torch.no_grad():
        predicted = boxes_of(centers, roots, rows, columns)
        truth = boxes_of(true_centers[..., None, :], true_roots[..., None, :], rows, columns)
        low = torch.maximum(predicted[..., :2], truth[..., :2])
        high = torch.minimum(predicted[..., 2:], truth[..., 2:])
        overlap = (high - low).clamp(min=0).prod(-1)
        area, true_area = ((p[..., 2:] - p[..., :2]).prod(-1) for p in (predicted, truth))
        union = area + true_area - overlap
        iou = torch.where(union > 0, overlap / union, 0.0)
        difference = predicted - truth
        start, end = difference[..., :2], difference[..., 2:]
        distance = ((start + end) / 2).square().sum(-1) + (end - start).square().sum(-1)
        touched = iou.amax(-1, keepdim=True) > 0
        best = torch.where(touched, iou, -distance).argmax(-1, keepdim=True)
        mine = torch.zeros_like(iou).scatter_(-1, best, 1.0) * has_object[..., None]
    center_loss = (
        LAMBDA_COORD * (mine[..., None] * (centers - true_centers[..., None, :]).square()).sum()
    )
    size_loss = LAMBDA_COORD * (mine[..., None] * (roots - true_roots[..., None, :]).square()).sum()
    object_loss = (mine * (confidence - iou).square()).sum()
    no_object_loss = LAMBDA_NOOBJ * ((1 - mine) * confidence.square()).sum()
    if class_loss == "cross_entropy":
        losses = functional.cross_entropy(logits.permute(0, 3, 1, 2), label, reduction="none")
    else:
        losses = (classes - functional.one_hot(label, num_classes)).square().sum(-1)
    terms = [center_loss, size_loss, object_loss, no_object_loss, (has_object * losses).sum()]
    return torch.stack(terms) / b


class Workload:
    """The network, its optimiser (SGD with momentum) and the batches, on the device.

    With `double` all is float64, the pictures in [0, 1]: then rounding flips nothing.
    """

    def __init__(self, folder: Path, device: str, class_loss: str, double: bool = False):
        self.device, self.class_loss, self.double = device, class_loss, double
        with np.load(folder / "weights.npz") as file:
            weights = {name: torch.from_numpy(file[name]) for name in file.files}
        with np.load(folder / "batches.npz") as file:
            arrays = {name: torch.from_numpy(file[name]).to(device) for name in file.files}
        if double:
            arrays["image"] = arrays["image"].double() / 255
            arrays["boxes"] = arrays["boxes"].double()
        self.batches = [
            {name: array[i] for name, array in arrays.items()} for i in range(len(arrays["image"]))
        ]
        num_classes = int(weights["head.weight"].shape[0]) - 10
        self.model = TinyYOLO(num_classes)
        self.model.load_state_dict(weights)
        dtype = torch.float64 if double else torch.float32
        self.model.to(device, dtype, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        self.terms = self._terms if device == "cpu" else torch.compile(self._terms)
        self.predict = self._predict if device == "cpu" else torch.compile(self._predict)
        self.step = 0

    def losses(self, number: int) -> list[list[float]]:
        return [self.train_step().tolist() for _ in range(number)]

    def seconds(self, number: int, *, train: bool) -> float:
        since = time.perf_counter()
        for _ in range(number):
            if train:
                self.train_step()
            else:
                self.eval_step()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - since

    def train_step(self) -> torch.Tensor:
        self.model.train()
        batch = self.batches[self.step % len(self.batches)]
        self.step += 1
        self.optimizer.zero_grad()
        terms = self.terms(batch)
        terms.sum().backward()
        self.optimizer.step()
        return terms.detach()

    def eval_step(self) -> None:
        self.model.eval()
        batch = self.batches[self.step % len(self.batches)]
        self.step += 1
        with torch.inference_mode():
            self.predict(batch)

    def _terms(self, batch) -> torch.Tensor:
        outputs = self._predict(batch)
        objects = (batch["boxes"], batch["labels"], batch["box_valid"])
        size = batch["image"].shape[1:3]
        return yolo_loss(outputs, objects, size, self.model.num_classes, self.class_loss)

    def _predict(self, batch) -> torch.Tensor:
        images = batch["image"].permute(0, 3, 1, 2)  # a view of NHWC is channels_last already
        images = ((images if self.double else images.float() / 255) - MEAN) / STD
        kind = "cpu" if self.device == "cpu" else "cuda"
        with torch.autocast(kind, torch.bfloat16, enabled=self.device != "cpu"):
            return self.model(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--class-loss", default="squared_error")
    arguments = parser.parse_args()
    device = arguments.device
    warnings.simplefilter("ignore")
    print(
        json.dumps(
            {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
            }
        ),
        flush=True,
    )
    make = partial(Workload, arguments.folder, device, arguments.class_loss)
    workload = None
    for line in sys.stdin:
        request = json.loads(line)
        if "losses" in request:
            answer = {"losses": make(double=device == "cpu").losses(request["losses"])}
        else:
            workload = workload or make()
            kind = "train" if "train" in request else "eval"
            answer = {"seconds": workload.seconds(request[kind], train=kind == "train")}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
