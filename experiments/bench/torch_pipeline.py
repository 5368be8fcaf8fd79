"""torchvision's ImageFolder behind a DataLoader, in a process of its own: see `pipeline.py`.

    python experiments/bench/torch_pipeline.py FOLDER

A request has `workers`, `batch_size`, `output` and what `torch_loaders.py` says.
"""

import argparse
from functools import partial
from pathlib import Path

from torch_loaders import endless, serve

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_loader(torch, torchvision, *, root: Path, workers: int, batch_size: int, output: str):
    transforms = torchvision.transforms
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if output == "float":
        steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    else:
        steps += [transforms.PILToTensor()]
    dataset = torchvision.datasets.ImageFolder(str(root), transforms.Compose(steps))
    return endless(torch, dataset, workers, batch_size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    serve(partial(make_loader, root=parser.parse_args().root))
