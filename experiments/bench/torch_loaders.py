"""PyTorch's side of the benchmarks of input pipelines: answers requests for times, until the end.

It needs PyTorch and torchvision alone. Lines of JSON go both ways: first the versions come out;
then each request `{"warmup", "batches", …}` is answered with the seconds that the batches took.
"""

import json
import platform
import sys
import time
import warnings
from collections.abc import Callable

from torch_loop import import_torch, say


def endless(torch, dataset, workers: int, batch_size: int, **options):
    """Shuffled batches without an end, so that no block of time has an epoch's start in it."""
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    return iter(
        torch.utils.data.DataLoader(
            dataset, batch_size=batch_size, sampler=sampler, num_workers=workers, **options
        )
    )


def serve(make_loader: Callable) -> None:
    """`make_loader(torch, torchvision, **request)` returns an iterator over (images, targets)."""
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
            current, batches = request, make_loader(torch, torchvision, **request)
        for _ in range(warmup):
            next(batches)
        since = time.perf_counter()
        for _ in range(number):
            images, _ = next(batches)
        say(seconds=time.perf_counter() - since, shape=list(images.shape), dtype=str(images.dtype))
