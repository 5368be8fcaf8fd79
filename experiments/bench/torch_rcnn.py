"""torchvision's Faster R-CNN in a process of its own, which `rcnn.py` drives.

It needs PyTorch, torchvision and NumPy. FOLDER holds what both sides start from: weights.npz,
torch's names to arrays, batches.npz, `image` [n, b, h, w, 3], `boxes`, `labels`, `box_valid`, and
options.json. Lines of JSON go both ways: first the versions come out, and whether torchvision's
compiled operators are there; then each request is answered: {"train": steps} and {"eval": steps}
with the seconds that they took; {"fit": FILE, "rate": r} with the loss of one step on the batch in
a file; {"find": FILE, "out": FILE} after writing what is found in the pictures of a file.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

from torch_loop import import_torch, say

MEAN, STD = 0.5, 0.25


def operators_in_python(torch, torchvision) -> None:
    """Puts plain Python in place of torchvision's compiled operators, where they do not load."""
    from torchvision.ops import boxes, roi_align

    def nms(found, scores, iou_threshold):
        order = scores.sort(descending=True, stable=True)[1]
        iou = boxes.box_iou(found[order], found[order]).numpy()
        alive, kept = [True] * len(order), []
        for i in range(len(order)):
            if alive[i]:
                kept.append(i)
                for j in (iou[i, i + 1 :] > iou_threshold).nonzero()[0] + i + 1:
                    alive[j] = False
        return order[torch.tensor(kept, dtype=torch.long)]

    boxes._assert_has_ops = lambda: None
    boxes.nms = nms
    boxes._batched_nms_vanilla.__globals__["nms"] = nms
    names = sys.modules[roi_align.__module__].__dict__
    compiled = names["_roi_align"]
    names["_roi_align"] = getattr(compiled, "__wrapped__", compiled)


def build(torch, torchvision, options):
    """Returns the network of `rcnn.py`'s `options`, under the same names."""
    from torch import nn
    from torchvision.models import detection, resnet
    from torchvision.ops import feature_pyramid_network as fpn
    from torchvision.ops.misc import FrozenBatchNorm2d

    class OneLevelLess(fpn.ExtraFPNBlock):
        def forward(self, results, x, names):
            return results, names

    norm = FrozenBatchNorm2d if options["frozen_norm"] else nn.BatchNorm2d
    body = getattr(resnet, options["backbone"])(weights=None, norm_layer=norm)
    widths = [body.fc.in_features // 2**i for i in (3, 2, 1, 0)]
    sizes, features = options["anchor_sizes"], options["fpn_features"]
    backbone = detection.backbone_utils.BackboneWithFPN(
        body,
        {f"layer{i + 1}": str(i) for i in range(4)},
        widths,
        features,
        extra_blocks=OneLevelLess() if len(sizes) == 4 else fpn.LastLevelMaxPool(),
    )
    hidden, classes = options["representation_size"], options["num_classes"]
    pre, post = options["pre_nms_top_n"], options["post_nms_top_n"]
    return detection.FasterRCNN(
        backbone,
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(
            tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes)
        ),
        box_head=detection.faster_rcnn.TwoMLPHead(features * 49, hidden),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(hidden, classes),
        rpn_pre_nms_top_n_train=pre[0],
        rpn_pre_nms_top_n_test=pre[1],
        rpn_post_nms_top_n_train=post[0],
        rpn_post_nms_top_n_test=post[1],
        rpn_batch_size_per_image=options["num_anchors"],
        box_batch_size_per_image=options["num_rois"],
        box_score_thresh=options["score_threshold"],
        min_size=min(options["size"]),
        max_size=max(options["size"]),
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )


class Workload:
    """The network, its optimiser and its moving average."""

    def __init__(self, torch, torchvision, folder: Path, device: str):
        import numpy as np

        self.np, self.torch, self.device = np, torch, device
        self.options = json.loads((folder / "options.json").read_text())
        torch.manual_seed(self.options["seed"])
        self.model = build(torch, torchvision, self.options)
        with np.load(folder / "weights.npz") as file:
            weights = {name: torch.from_numpy(file[name]) for name in file.files}
        self.model.load_state_dict(weights)
        self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), 1e-4, weight_decay=self.options["weight_decay"]
        )
        averages = torch.optim.swa_utils
        decay = averages.get_ema_multi_avg_fn(self.options["ema_decay"])
        self.average = averages.AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        # Its first update would copy the model; ours counts from the first weights on.
        self.average.n_averaged += 1
        self.batches = self.load(folder / "batches.npz")
        self.step = 0

    def load(self, path: Path):
        """Returns the file's batches, each a list of pictures and one of targets."""
        with self.np.load(path) as file:
            arrays = {name: self.torch.from_numpy(file[name]) for name in file.files}
        return [
            self.batch({name: array[i] for name, array in arrays.items()})
            for i in range(len(arrays["image"]))
        ]

    def batch(self, arrays):
        images = [x.permute(2, 0, 1).to(self.device) for x in arrays["image"]]
        targets = []
        if "boxes" in arrays:
            rows = (arrays[name] for name in ("boxes", "labels", "box_valid"))
            for boxes, labels, valid in zip(*rows, strict=True):
                there = {"boxes": boxes[valid], "labels": labels[valid].long() + 1}
                targets.append({name: x.to(self.device) for name, x in there.items()})
        return images, targets

    def autocast(self):
        kind = "cpu" if self.device == "cpu" else "cuda"
        return self.torch.autocast(kind, self.torch.bfloat16, enabled=self.device != "cpu")

    def train_step(self, batch) -> float:
        images, targets = batch
        self.model.train()
        self.optimizer.zero_grad()
        with self.autocast():
            loss = sum(self.model([x.float() / 255 for x in images], targets).values())
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def find(self, images, model):
        model.eval()
        with self.torch.inference_mode(), self.autocast():
            return model([x.float() / 255 for x in images])

    def seconds(self, number: int, *, train: bool) -> float:
        since = time.perf_counter()
        for _ in range(number):
            batch = self.batches[self.step % len(self.batches)]
            self.step += 1
            if train:
                self.train_step(batch)
            else:
                self.find(batch[0], self.model)
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return time.perf_counter() - since

    def fit(self, path: Path, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        (batch,) = self.load(path)
        loss = float(self.train_step(batch))
        self.average.update_parameters(self.model)
        return loss

    def write_found(self, path: Path, out: Path) -> None:
        found = []
        for images, _ in self.load(path):
            found += self.find(images, self.average.module)
        arrays = {
            name: self.torch.cat([each[name] for each in found]).float().cpu().numpy()
            for name in ("boxes", "scores", "labels")
        }
        counts = self.np.array([len(each["scores"]) for each in found])
        self.np.savez(out, counts=counts, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    try:
        torch, torchvision = import_torch()
        import numpy  # noqa: F401
    except ImportError as error:
        say(missing=str(error))
        return
    if torchvision is None:
        say(missing="No module named 'torchvision'")
        return
    import torchvision.extension
    import torchvision.models.detection
    import torchvision.ops

    compiled = torchvision.extension._has_ops()
    if not compiled:
        operators_in_python(torch, torchvision)
    facts = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    say(**facts, threads=torch.get_num_threads(), compiled=compiled)
    workload = None
    for line in sys.stdin:
        request = json.loads(line)
        workload = workload or Workload(torch, torchvision, arguments.folder, arguments.device)
        if "fit" in request:
            say(loss=workload.fit(Path(request["fit"]), request["rate"]))
        elif "find" in request:
            workload.write_found(Path(request["find"]), Path(request["out"]))
            say(done=True)
        else:
            kind = "train" if "train" in request else "eval"
            say(seconds=workload.seconds(request[kind], train=kind == "train"))


if __name__ == "__main__":
    main()
