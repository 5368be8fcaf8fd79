"""PyTorch's side of `layers.py`: forward and backward of one layer, in channels_last.

It needs PyTorch alone. Lines of JSON go both ways: first the versions come out; then each request
`{"layer", "shape", "steps"}` is answered with the seconds that the steps took.
"""

import json
import sys
import time

from torch_loop import say


def make_layer(torch, kind: str, arguments: list[int]):
    """Returns the module; `arguments` are (channels, features, kernel, stride) of a convolution."""
    nn = torch.nn
    if kind == "conv":
        channels, features, kernel, stride = arguments
        return nn.Conv2d(channels, features, kernel, stride, kernel // 2, bias=False)
    if kind == "norm":
        return nn.Sequential(nn.BatchNorm2d(arguments[0]), nn.ReLU())
    return nn.MaxPool2d(3, 2, 1)


def main() -> None:
    import torch

    say(torch=torch.__version__, threads=torch.get_num_threads())
    current, steps = None, None
    for line in sys.stdin:
        request = json.loads(line)
        count = request.pop("steps")
        if request != current:
            current, steps = request, make_steps(torch, **request)
            steps(2)
        say(seconds=steps(count))


def make_steps(torch, kind: str, arguments: list[int], shape: list[int], input_gradient: bool):
    layer = make_layer(torch, kind, arguments).to(memory_format=torch.channels_last)
    b, h, w, c = shape
    x = torch.randn(b, c, h, w).contiguous(memory_format=torch.channels_last)
    x.requires_grad_(input_gradient)
    cotangent = torch.ones_like(layer(x))
    wanted = [*layer.parameters(), *([x] if input_gradient else [])]

    def steps(number: int) -> float:
        since = time.perf_counter()
        for _ in range(number):
            torch.autograd.grad(layer(x), wanted, cotangent)
        return time.perf_counter() - since

    return steps


if __name__ == "__main__":
    main()
