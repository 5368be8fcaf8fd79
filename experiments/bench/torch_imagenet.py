"""torchvision's networks at 224 pixels in a process of its own, which `imagenet.py` drives.

It needs PyTorch and torchvision alone. Lines of JSON go both ways: first the versions come out;
then each request `{"model", "mode", "batch_size", "steps"}` is answered with the seconds that the
steps took. On the CPU float32 in channels_last; on a GPU bfloat16 by autocast, compiled.
"""

import argparse
import json
import platform
import sys
import time
import warnings

from torch_loop import import_torch, say


class Workload:
    """One network and what is done with it: `train` steps (SGD, momentum 0.9) or `eval`."""

    def __init__(self, torch, torchvision, name: str, mode: str, batch_size: int, device: str):
        self.torch, self.mode, self.device = torch, mode, device
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)()
        self.model = model.to(device, memory_format=torch.channels_last).train(mode == "train")
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(batch_size, 3, 224, 224, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.arange(batch_size, device=device) % 1000
        self.loss_fn = torch.nn.CrossEntropyLoss()
        self.forward = torch.compile(self.model) if device != "cpu" else self.model

    def steps(self, number: int) -> float:
        since = time.perf_counter()
        for _ in range(number):
            self.train_step() if self.mode == "train" else self.predict()
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return time.perf_counter() - since

    def train_step(self) -> None:
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.loss_fn(self.forward(self.images), self.labels)
        loss.backward()
        self.optimizer.step()

    def predict(self) -> None:
        with self.torch.inference_mode(), self.autocast():
            self.forward(self.images)

    def autocast(self):
        kind = "cpu" if self.device == "cpu" else "cuda"
        return self.torch.autocast(kind, self.torch.bfloat16, enabled=self.device != "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    try:
        torch, _ = import_torch()
        import torchvision.models
    except ImportError as error:
        say(missing=str(error))
        return
    warnings.simplefilter("ignore")
    say(
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if device != "cpu" else "cpu",
    )
    current = workload = None
    for line in sys.stdin:
        request = json.loads(line)
        steps = request.pop("steps")
        if request != current:
            workload = None  # frees its memory first
            current, workload = request, Workload(torch, torchvision, **request, device=device)
            workload.steps(2)
        say(seconds=workload.steps(steps))


if __name__ == "__main__":
    main()
