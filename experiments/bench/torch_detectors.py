"""torchvision's detectors in a process of their own, which `detectors.py` and
`detector_learning.py` drive.

It needs PyTorch, torchvision and NumPy. FOLDER holds what both sides start from: weights.npz,
torch's names to arrays, and options.json. Lines of JSON go both ways: first the versions come out,
and whether torchvision's compiled operators are there; then each request is answered:

    {"batches": FILE, "train" or "eval": steps}    {"seconds": that they took}
    {"fit": FILE, "rate": r, "decay": d}           {"loss": of one step, d for the moving average}
    {"find": FILE, "out": FILE}                    {"done": true}, what is found written
    {"save": FILE} and {"restore": FILE}           {"losses": of all steps so far}

A file of batches has `image` [n, b, h, w, 3], `boxes`, `labels`, `box_valid` and of masks `masks`.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path

from torch_loop import say
from torch_operators import import_detection, use_operators_in_python


def build(torch, options):
    """Returns the network of `options`, which are those of ours by the same names."""
    from torchvision.models import detection, resnet
    from torchvision.ops import feature_pyramid_network as fpn

    family = options["model"].partition("_")[0]
    classes, features, sizes = (
        options[name] for name in ("num_classes", "fpn_features", "anchor_sizes")
    )
    settings = {
        "num_classes": classes,
        "min_size": min(options["size"]),
        "max_size": max(options["size"]),
        "image_mean": options["mean"],
        "image_std": options["std"],
    }
    body = make_body(torch, resnet, options)
    if family == "retinanet":
        backbone = detection.backbone_utils.BackboneWithFPN(
            body,
            {f"layer{i + 1}": str(i) for i in range(1, 4)},
            [body.fc.in_features // 2**i for i in (2, 1, 0)],
            features,
            extra_blocks=fpn.LastLevelP6P7(features, features),
        )
        settings["score_thresh"] = options["score_threshold"]
        settings["nms_thresh"] = options["iou_threshold"]
        settings["detections_per_img"] = options["max_detections"]
        thirds = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in sizes)
        return detection.RetinaNet(backbone, anchor_generator=anchors(thirds), **settings)

    class OneLevelLess(fpn.ExtraFPNBlock):
        def forward(self, results, x, names):
            return results, names

    backbone = detection.backbone_utils.BackboneWithFPN(
        body,
        {f"layer{i + 1}": str(i) for i in range(4)},
        [body.fc.in_features // 2**i for i in (3, 2, 1, 0)],
        features,
        extra_blocks=OneLevelLess() if len(sizes) == 4 else fpn.LastLevelMaxPool(),
    )
    del settings["num_classes"]  # its predictors, which come ready, know
    hidden, faster = options["representation_size"], detection.faster_rcnn
    settings |= {
        "rpn_anchor_generator": anchors(tuple((size,) for size in sizes)),
        "box_head": faster.TwoMLPHead(features * 49, hidden),
        "box_predictor": faster.FastRCNNPredictor(hidden, classes),
        "rpn_batch_size_per_image": options["num_anchors"],
        "box_batch_size_per_image": options["num_rois"],
        "box_score_thresh": options["score_threshold"],
        "box_nms_thresh": options["iou_threshold"],
        "box_detections_per_img": options["max_detections"],
    }
    for name in ("pre_nms_top_n", "post_nms_top_n"):
        settings[f"rpn_{name}_train"], settings[f"rpn_{name}_test"] = options[name]
    if family == "fasterrcnn":
        return detection.FasterRCNN(backbone, **settings)
    mask = detection.mask_rcnn
    head = mask.MaskRCNNHeads(features, (features,) * 4, 1)
    predictor = mask.MaskRCNNPredictor(features, features, classes)
    return detection.MaskRCNN(backbone, mask_head=head, mask_predictor=predictor, **settings)


def make_body(torch, resnet, options):
    """Returns the ResNet, as wide as the option says: torchvision's basic ones have one width."""
    from torchvision.ops.misc import FrozenBatchNorm2d

    name = options["model"].split("_")[1]
    norm = FrozenBatchNorm2d if options["frozen_norm"] else torch.nn.BatchNorm2d
    body = getattr(resnet, name)(weights=None, norm_layer=norm)
    width = options["width"]
    if width != 64:
        block = type(body.layer1[0])
        body.inplanes = width
        body.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
        body.bn1 = norm(width)
        for i in range(4):
            depth, stride = len(getattr(body, f"layer{i + 1}")), 1 if i == 0 else 2
            stage = body._make_layer(block, width * 2**i, depth, stride)
            setattr(body, f"layer{i + 1}", stage)
        body.fc = torch.nn.Linear(body.inplanes, 1)
    return body


def anchors(sizes):
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


class Workload:
    """The network, its optimiser and its moving average."""

    def __init__(self, torch, folder: Path, device: str):
        import numpy as np

        self.np, self.torch, self.device = np, torch, device
        self.options = json.loads((folder / "options.json").read_text())
        self.model = build(torch, self.options)
        with np.load(folder / "weights.npz") as file:
            weights = {name: torch.from_numpy(file[name]) for name in file.files}
        self.model.load_state_dict(weights)
        self.model.to(device, memory_format=torch.channels_last)
        parameters = (p for p in self.model.parameters() if p.requires_grad)
        if self.options["optimizer"] == "adamw":
            decay = {"weight_decay": self.options["weight_decay"]}
            self.optimizer = torch.optim.AdamW(parameters, 1e-4, **decay)
        else:
            decay = {"weight_decay": self.options["weight_decay"], "momentum": 0.9}
            self.optimizer = torch.optim.SGD(parameters, 1e-4, **decay)
        self.decay = 0.0
        averages = torch.optim.swa_utils
        self.average = averages.AveragedModel(
            self.model,
            multi_avg_fn=lambda *lists: averages.get_ema_multi_avg_fn(self.decay)(*lists),
            use_buffers=True,
        )
        # Its first update would copy the model; ours counts from the first weights on.
        self.average.n_averaged += 1
        self.losses, self.kept, self.turn = [], {}, 0

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
            for i, valid in enumerate(arrays["box_valid"]):
                there = {"boxes": arrays["boxes"][i][valid]}
                there["labels"] = arrays["labels"][i][valid].long() + 1
                if "masks" in arrays:
                    there["masks"] = arrays["masks"][i][valid].byte()
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

    def seconds(self, path: str, number: int, *, train: bool) -> float:
        if path not in self.kept:
            self.kept[path] = self.load(Path(path))
        batches = self.kept[path]
        since = time.perf_counter()
        for _ in range(number):
            batch = batches[self.turn % len(batches)]
            self.turn += 1
            if train:
                self.train_step(batch)
            else:
                self.find(batch[0], self.model)
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return time.perf_counter() - since

    def fit(self, path: Path, rate: float, decay: float | None) -> float:
        """One step; what it draws depends on the seed and its number alone, as after `restore`."""
        self.torch.manual_seed((self.options["seed"] << 32) + len(self.losses))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        (batch,) = self.load(path)
        self.losses.append(float(self.train_step(batch)))
        self.decay = decay or 0.0
        self.average.update_parameters(self.model)
        return self.losses[-1]

    def parts(self):
        return {name: getattr(self, name) for name in ("model", "optimizer", "average")}

    def save(self, path: Path) -> None:
        state = {name: part.state_dict() for name, part in self.parts().items()}
        self.torch.save({**state, "losses": self.losses}, f"{path}.new")
        os.replace(f"{path}.new", path)

    def restore(self, path: Path) -> None:
        state = self.torch.load(path, weights_only=True, map_location=self.device)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.losses = state["losses"]

    def write_found(self, path: Path, out: Path) -> None:
        found = [x for images, _ in self.load(path) for x in self.find(images, self.average.module)]
        arrays = {
            name: self.torch.cat([each[name] for each in found]).float().cpu().numpy()
            for name in ("boxes", "scores", "labels")
        }
        if "masks" in found[0]:
            masks = self.torch.cat([each["masks"][:, 0] >= 0.5 for each in found])
            arrays["masks"] = self.np.packbits(masks.cpu().numpy(), axis=-1)
        counts = self.np.array([len(each["scores"]) for each in found])
        self.np.savez(out, counts=counts, **arrays)


def answer(workload: Workload, request: dict):
    if "fit" in request:
        say(loss=workload.fit(Path(request["fit"]), request["rate"], request["decay"]))
    elif "find" in request:
        workload.write_found(Path(request["find"]), Path(request["out"]))
        say(done=True)
    elif "save" in request:
        workload.save(Path(request["save"]))
        say(losses=workload.losses)
    elif "restore" in request:
        workload.restore(Path(request["restore"]))
        say(losses=workload.losses)
    else:
        kind = "train" if "train" in request else "eval"
        seconds = workload.seconds(request["batches"], request[kind], train=kind == "train")
        say(seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    found = import_detection()
    if found is None:
        return
    torch, torchvision = found
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    compiled = torchvision.extension._has_ops()
    if not compiled:
        use_operators_in_python(torch)
    facts = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    say(**facts, threads=torch.get_num_threads(), compiled=compiled)
    workload = None
    for line in sys.stdin:
        workload = workload or Workload(torch, arguments.folder, arguments.device)
        answer(workload, json.loads(line))


if __name__ == "__main__":
    main()
