"""torchvision's transforms v2 with boxes behind a DataLoader: see `detection_pipeline.py`.

    python experiments/bench/torch_detection_pipeline.py SCENES.npz

It needs PyTorch and torchvision alone, in a process of its own. Lines of JSON go both ways: first
the versions come out; then each request `{"work", "workers", "batch_size", "warmup", "batches"}` is
answered with the seconds that the batches took.
"""

import argparse
import json
import platform
import sys
import time
import warnings

from torch_loop import import_torch, say

SCALE, COLOR = (0.5, 1.5), 0.4


class Scenes:
    """Each example as its transforms take it: a picture, boxes and labels."""

    def __init__(self, torch, torchvision, path: str, transform):
        import numpy as np  # here, because an environment without PyTorch may lack it too

        arrays = np.load(path)
        ends = np.cumsum(arrays["counts"])
        self.images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
        boxes, labels = torch.from_numpy(arrays["boxes"]), torch.from_numpy(arrays["labels"])
        self.boxes = boxes.tensor_split(ends[:-1].tolist())
        self.labels = labels.tensor_split(ends[:-1].tolist())
        self.tv_tensors, self.transform = torchvision.tv_tensors, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        target = {
            "boxes": self.tv_tensors.BoundingBoxes(
                self.boxes[index], format="XYXY", canvas_size=tuple(image.shape[-2:])
            ),
            "labels": self.labels[index],
        }
        if self.transform is None:
            return image, target
        return self.transform(self.tv_tensors.Image(image), target)


def make_transform(torchvision, size: int):
    v2 = torchvision.transforms.v2
    fill = {torchvision.tv_tensors.Image: 114, "others": 0}
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter((size, size), SCALE, antialias=False),
            v2.RandomCrop(size, pad_if_needed=True, fill=fill),
            v2.ColorJitter(COLOR, COLOR, COLOR),
            v2.SanitizeBoundingBoxes(),
        ]
    )


def endless_loader(torch, torchvision, path: str, workers: int, batch_size: int, work: str):
    """Shuffled batches without an end, so that no block of time has an epoch's start in it."""
    dataset = Scenes(torch, torchvision, path, None)
    if work == "augmented":
        dataset.transform = make_transform(torchvision, dataset.images.shape[-1])
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)

    def collate(examples):
        images, targets = zip(*examples, strict=True)
        return torch.stack(images), targets

    # The workers start from this process, so that `collate` need not be pickled.
    return iter(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            multiprocessing_context="fork" if workers else None,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes")
    path = parser.parse_args().scenes
    try:
        torch, torchvision = import_torch()
        if torchvision is None:
            raise ImportError("torchvision is not installed")
        import torchvision.transforms.v2
        import torchvision.tv_tensors
    except ImportError as error:
        say(missing=str(error))
        return
    warnings.simplefilter("ignore")
    say(
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        threads=torch.get_num_threads(),
    )
    current = batches = None
    for line in sys.stdin:
        request = json.loads(line)
        warmup, number = request.pop("warmup"), request.pop("batches")
        if request != current:
            batches = None  # ends the workers of the loader before
            current, batches = request, endless_loader(torch, torchvision, path, **request)
        for _ in range(warmup):
            next(batches)
        since = time.perf_counter()
        for _ in range(number):
            images, _ = next(batches)
        say(seconds=time.perf_counter() - since, shape=list(images.shape), dtype=str(images.dtype))


if __name__ == "__main__":
    main()
