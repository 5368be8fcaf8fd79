"""The course's PyTorch loop in a process of its own, which `classifier.py` drives.

    python experiments/bench/torch_loop.py FOLDER --device cpu               # blocks, on request
    python experiments/bench/torch_loop.py FOLDER --device cpu --first-step  # start-up, then exit

It needs PyTorch alone, so it may run in another environment than the one that has jaxvision.
FOLDER is a torchvision root: FashionMNIST/raw/ with the four unpacked files. Lines of JSON go both
ways: first the versions come out; then each request `{"batch_size", "warmup", "steps"}` is answered
with the seconds that the steps took. With the end of its input the process ends.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
DECLARED = []  # PyTorch forgets an operator when nobody refers to its library any more


def import_torch():
    """Returns torch and, where they can be imported, torchvision's datasets and transforms."""
    import torch

    try:
        import torchvision.datasets
        import torchvision.transforms
    except ImportError:
        return torch, None
    except RuntimeError:
        # torchvision's compiled operators do not load beside a PyTorch of another build (CUDA or
        # not), and its modules then stumble over the names of these. Nothing here calls them.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)
        import torchvision.datasets
        import torchvision.transforms
    return torch, torchvision


def make_dataset(torch, torchvision, root: Path):
    """The course's training set: a picture at a time through PIL, to a tensor, to [-1, 1]."""
    if torchvision is not None:
        transforms = torchvision.transforms
        transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
        )
        return torchvision.datasets.FashionMNIST(str(root), train=True, transform=transform)

    import numpy as np
    from PIL import Image

    raw = root / "FashionMNIST" / "raw"
    images = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.fromfile(raw / "train-labels-idx1-ubyte", np.uint8, offset=8)

    class Garments(torch.utils.data.Dataset):
        """The same work as torchvision's classes do for one picture."""

        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            picture = Image.fromarray(images[index])
            tensor = torch.from_numpy(np.array(picture, np.uint8, copy=True)).view(28, 28, 1)
            tensor = tensor.permute((2, 0, 1)).contiguous().to(torch.float32).div(255)
            return tensor.clone().sub_(0.5).div_(0.5), int(labels[index])

    return Garments()


def make_model(torch):
    nn, relu = torch.nn, torch.nn.functional.relu

    class GarmentClassifier(nn.Module):
        """As the course writes it."""

        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(1, 6, 5)
            self.pool = nn.MaxPool2d(2, 2)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(16 * 4 * 4, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 10)

        def forward(self, x):
            x = self.pool(relu(self.conv1(x)))
            x = self.pool(relu(self.conv2(x)))
            x = x.view(-1, 16 * 4 * 4)
            x = relu(self.fc1(x))
            x = relu(self.fc2(x))
            return self.fc3(x)

    return GarmentClassifier()


class Course:
    """The course's loop at one batch size; its DataLoader's workers live on between the blocks."""

    def __init__(self, torch, dataset, batch_size: int, device: str):
        self.device = device
        self.model = make_model(torch).to(device)
        self.model.train(True)
        self.loss_fn = torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        self.loader = torch.utils.data.DataLoader(
            dataset, batch_size=batch_size, shuffle=True, num_workers=2
        )
        self.batches = iter(())
        self.running_loss = 0.0

    def steps(self, number: int) -> tuple[float, list[float]]:
        """Returns the seconds that `number` steps took, and apart the DataLoader's starts."""
        loader_starts = []
        since = time.perf_counter()
        for _ in range(number):
            data = next(self.batches, None)
            if data is None:
                began = time.perf_counter()
                self.batches = iter(self.loader)
                data = next(self.batches)
                loader_starts.append(time.perf_counter() - began)
            inputs, labels = data
            if self.device != "cpu":
                inputs, labels = inputs.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            outputs = self.model(inputs)
            loss = self.loss_fn(outputs, labels)
            loss.backward()
            self.optimizer.step()
            self.running_loss += loss.item()
        return time.perf_counter() - since - sum(loader_starts), loader_starts


class TorchProcess:
    """The other end: a process that runs such a file, for one that may have no PyTorch."""

    def __init__(self, command: list[str], warmup: int = 0):
        self._warmup = warmup
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._answer()
        self.loader_starts: list[float] = []

    def seconds(self, batch_size: int, steps: int) -> float:
        """Seconds that `steps` steps take, after some that are not counted."""
        answer = self.request(batch_size=batch_size, warmup=self._warmup, steps=steps)
        if not math.isfinite(answer["loss"]):
            raise ChildProcessError(
                f"PyTorch's loss became {answer['loss']}: nothing to compare with"
            )
        self.loader_starts += answer["loader_starts"]
        return answer["seconds"]

    def request(self, **values: Any) -> dict[str, Any]:
        """Sends one request and waits for its answer."""
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(
                f"the PyTorch process ended ({self._process.wait()}): see above"
            )
        return json.loads(line)


def say(**values) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--first-step", action="store_true", help="one step at batch 4, then exit")
    arguments = parser.parse_args()
    try:
        torch, torchvision = import_torch()
    except ImportError as error:
        say(missing=str(error))
        return
    imported = time.perf_counter()
    dataset = make_dataset(torch, torchvision, arguments.root)
    if arguments.first_step:
        loaded = time.perf_counter()
        course = Course(torch, dataset, 4, arguments.device)
        built = time.perf_counter()
        course.steps(1)
        say(
            imports=imported - STARTED,
            data=loaded - imported,
            build=built - loaded,
            step=time.perf_counter() - built,
        )
        return

    say(
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=torchvision and torchvision.__version__,
        threads=torch.get_num_threads(),
    )
    course, batch_size = None, None
    for line in sys.stdin:
        request = json.loads(line)
        if request["batch_size"] != batch_size:
            course = None  # ends the workers of the loop before
            batch_size = request["batch_size"]
            course = Course(torch, dataset, batch_size, arguments.device)
        _, first_starts = course.steps(request["warmup"])
        seconds, starts = course.steps(request["steps"])
        say(seconds=seconds, loader_starts=first_starts + starts, loss=course.running_loss)


if __name__ == "__main__":
    main()
