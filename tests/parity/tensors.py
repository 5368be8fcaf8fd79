"""Between torch's tensors and ours: layouts, names, and how far two sets of them are apart."""

from collections.abc import Iterable, Mapping

import jax
import numpy as np
import torch

LINEN_NAMES = {  # NeuralNetwork's layers; GarmentClassifier's are called the same in both
    "linear_relu_stack.0": "fc1",
    "linear_relu_stack.2": "fc2",
    "linear_relu_stack.4": "fc3",
}


def to_torch(array) -> torch.Tensor:
    """A copy, because torch warns of arrays that it may not write to, and jax's are such."""
    return torch.tensor(np.array(array))


def to_nchw(images) -> torch.Tensor:
    # Not contiguous(): it leaves pictures of one channel with the strides of channels-last.
    return to_torch(images).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def from_nchw(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def from_oihw(tensor: torch.Tensor) -> np.ndarray:
    """A Conv2d's weight as a linen kernel, HWIO."""
    return tensor.detach().permute(2, 3, 1, 0).numpy()


def linen_params(
    tensors: Iterable[tuple[str, torch.Tensor]], flattened: tuple[int, int, int]
) -> dict[str, dict[str, np.ndarray]]:
    """What torch calls `fc1.weight` and so on, as the params of a linen model.

    `flattened` is the (c, h, w) of what fc1 gets to see flattened: torch's order is (c, h, w), ours
    (h, w, c), so fc1's rows are permuted. Works for anything shaped like the weights, such as their
    gradients or an optimiser's buffers. The arrays are copies: training goes on in place in torch.
    """
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors:
        layer, _, kind = name.rpartition(".")
        layer = LINEN_NAMES.get(layer, layer)
        if kind == "bias":
            array = tensor.detach().numpy()
        elif tensor.ndim == 4:
            array = from_oihw(tensor)
        elif layer == "fc1":
            rows = tensor.detach().reshape(-1, *flattened).permute(2, 3, 1, 0)
            array = rows.reshape(-1, len(tensor)).numpy()
        else:
            array = tensor.detach().numpy().T
        params.setdefault(layer, {})[{"weight": "kernel"}.get(kind, kind)] = np.array(array)
    return params


def relative_errors(ours: Mapping, theirs: Mapping) -> dict[str, float]:
    """`||ours - theirs|| / ||theirs||` of each array, by its path; both must have the same ones."""

    def error(p, q):
        assert p.shape == q.shape
        p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
        return float(np.linalg.norm(p - q) / np.linalg.norm(q))

    errors = jax.tree.map(error, dict(ours), dict(theirs))
    return {jax.tree_util.keystr(path): e for path, e in jax.tree.leaves_with_path(errors)}


def assert_close(ours: Mapping, theirs: Mapping, rtol: float, when: str = "") -> None:
    """Fails, with the arrays' paths, where `relative_errors` are not all at most `rtol`."""
    errors = relative_errors(ours, theirs)
    # Not `e > rtol`: NaN must fail.
    wrong = {path: f"{e:.1e}" for path, e in errors.items() if not e <= rtol}
    assert not wrong, f"relative errors above {rtol:g} {when}: {wrong}"
