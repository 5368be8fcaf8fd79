"""torchvision's transforms v2 with boxes behind a DataLoader: see `detection_pipeline.py`.

    python experiments/bench/torch_detection_pipeline.py SCENES.npz

A request has `workers`, `batch_size`, `work` and what `torch_loaders.py` says.
"""

import argparse
from functools import partial

from torch_loaders import endless, serve

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


def make_loader(torch, torchvision, *, scenes: str, workers: int, batch_size: int, work: str):
    dataset = Scenes(torch, torchvision, scenes, None)
    if work == "augmented":
        dataset.transform = make_transform(torchvision, dataset.images.shape[-1])

    def collate(examples):
        images, targets = zip(*examples, strict=True)
        return torch.stack(images), targets

    # The workers start from this process, so that `collate` need not be pickled.
    context = "fork" if workers else None
    options = {"collate_fn": collate, "multiprocessing_context": context}
    return endless(torch, dataset, workers, batch_size, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenes")
    serve(partial(make_loader, scenes=parser.parse_args().scenes))
