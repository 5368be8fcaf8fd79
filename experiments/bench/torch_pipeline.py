"""torchvision's ImageFolder behind a DataLoader, in a process of its own: see `pipeline.py`.

    python experiments/bench/torch_pipeline.py FOLDER

It needs PyTorch and torchvision alone. Lines of JSON go both ways: first the versions come out;
then each request `{"workers", "batch_size", "output", "warmup", "batches"}` is answered with the
seconds that the batches took.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from pathlib import Path

from torch_loop import import_torch, say

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def endless_loader(torch, torchvision, root: Path, workers: int, batch_size: int, output: str):
    """Shuffled batches without an end, so that no block of time has an epoch's start in it."""
    transforms = torchvision.transforms
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if output == "float":
        steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    else:
        steps += [transforms.PILToTensor()]
    dataset = torchvision.datasets.ImageFolder(str(root), transforms.Compose(steps))
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    return iter(
        torch.utils.data.DataLoader(
            dataset, batch_size=batch_size, sampler=sampler, num_workers=workers
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    root = parser.parse_args().root
    try:
        torch, torchvision = import_torch()
        if torchvision is None:
            raise ImportError("torchvision is not installed")
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
            current, batches = request, endless_loader(torch, torchvision, root, **request)
        for _ in range(warmup):
            next(batches)
        since = time.perf_counter()
        for _ in range(number):
            images, _ = next(batches)
        say(seconds=time.perf_counter() - since, shape=list(images.shape), dtype=str(images.dtype))


if __name__ == "__main__":
    main()
