"""Files that the real torch writes are read as it wrote them, and it reads what we write."""

import argparse
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from jaxvision.errors import UserError
from jaxvision.weights import read_torch, write_safetensors, write_torch
from jaxvision.weights.tensors import TORCH_DTYPES

DTYPES = [getattr(torch, name.removeprefix("torch.")) for name in TORCH_DTYPES]
FORMATS = {"zip": True, "legacy": False}


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    def saved(value, **options):
        path = tmp_path / "weights.pth"
        torch.save(value, path, _use_new_zipfile_serialization=FORMATS[request.param], **options)
        return path

    return saved


def example(dtype):
    torch.manual_seed(0)
    raw = torch.randint(0, 256, (3, 4 * dtype.itemsize), dtype=torch.uint8)
    return (raw % 2 if dtype == torch.bool else raw).view(dtype)


def raw_bytes(tensor):
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def assert_same(arrays, tensors):
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        array = arrays[name]
        assert f"torch.{array.dtype}" == str(tensor.dtype)
        assert array.shape == tuple(tensor.shape)
        assert array.flags.c_contiguous
        assert array.tobytes() == raw_bytes(tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype(save, protocol):
    tensors = {str(dtype).replace("torch.", ""): example(dtype) for dtype in DTYPES}
    assert len(tensors) == 20
    assert_same(read_torch(save(tensors, pickle_protocol=protocol)), tensors)


def test_every_layout(save):
    base = torch.arange(24.0).reshape(4, 6)
    z, w = (torch.view_as_complex(torch.randn(3, 2)) for _ in range(2))
    tensors = {
        "base": base,
        "transposed": base.t(),
        "sliced": base[1:, ::2],
        "expanded": base[:1].expand(5, 6),
        "stride 0": torch.tensor(3.0).expand(2, 2),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "empty view": base[:, :0],
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "unfolded": torch.arange(6.0).unfold(0, 3, 1),
        "conjugated": z.conj(),
        "negated": w.conj().imag,
        "one": base[:1, :1],
    }
    assert_same(read_torch(save(tensors)), tensors)


def test_parameters_buffers_and_metadata(save):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    state = model.state_dict()
    assert state._metadata
    assert_same(read_torch(save(state)), state)
    parameters = OrderedDict(model.named_parameters())
    assert_same(read_torch(save(parameters)), parameters)
    tagged = model[2].weight
    tagged.note = "kept beside the tensor"
    assert_same(read_torch(save({"w": tagged})), {"w": tagged})


def test_tied_weights(save):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    arrays = read_torch(save(model.state_dict()))
    assert_same(arrays, model.state_dict())
    assert not np.shares_memory(arrays["a.weight"], arrays["b.weight"])


def test_a_training_checkpoint(save):
    """As torchvision's own references write it, of a model under DistributedDataParallel."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    assert isinstance(scheduler.state_dict()["milestones"], Counter)
    state = model.state_dict()
    checkpoint = {
        "model": OrderedDict((f"module.{name}", value) for name, value in state.items()),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "best": np.float64(0.5),
        "best_loss": torch.tensor(0.25),
        "size": torch.Size([3, 4]),
    }
    assert_same(read_torch(save(checkpoint)), state)


@pytest.mark.filterwarnings("ignore::UserWarning")  # quantized tensors are deprecated
@pytest.mark.parametrize("dtype", [torch.sparse_coo, "quantized", "meta"])
def test_tensors_that_numpy_lacks_are_refused(save, dtype):
    if dtype == "quantized":
        tensor = torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8)
    elif dtype == "meta":
        tensor = torch.empty(3, device="meta")
    else:
        tensor = torch.eye(3).to_sparse()
    with pytest.raises(UserError, match=r"refused global torch\."):
        read_torch(save({"w": tensor}))


@pytest.mark.filterwarnings("ignore")  # torch cannot find the source of a class in a test
def test_a_whole_model_is_refused_with_advice(save):
    with pytest.raises(UserError, match=r"refused global torch\.nn.*model\.state_dict\(\), path"):
        read_torch(save(nn.Linear(2, 2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_is_refused_with_advice(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(UserError, match="TorchScript program; save its weights alone"):
        read_torch(path)


def test_checksums_may_be_left_out(tmp_path):
    path = tmp_path / "a.pth"
    tensors = {"w": torch.arange(5.0)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same(read_torch(path), tensors)


def test_a_damaged_byte_is_noticed(tmp_path):
    """Which torch.load itself lets pass."""
    path = tmp_path / "a.pth"
    torch.save({"w": torch.arange(500.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(400.0, 500.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], torch.arange(500.0))
    with pytest.raises(UserError, match="checksum"):
        read_torch(path)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_we_write(tmp_path, mmap):
    tensors = {str(dtype).replace("torch.", ""): example(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 2), "flat": torch.ones(7)}
    torch.save(tensors, tmp_path / "theirs.pth")
    arrays = read_torch(tmp_path / "theirs.pth")
    write_torch(tmp_path / "ours.pth", arrays)
    found = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mmap)
    assert type(found) is OrderedDict
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].stride() == tensor.stride()
        assert raw_bytes(found[name]) == raw_bytes(tensor)
    assert_same(read_torch(tmp_path / "ours.pth"), tensors)


def test_safetensors_between_both(tmp_path):
    from safetensors.torch import load_file, save_file

    without = (torch.complex128,)
    tensors = {
        str(dtype).replace("torch.", ""): example(dtype) for dtype in DTYPES if dtype not in without
    }
    torch.save(tensors, tmp_path / "theirs.pth")
    write_safetensors(tmp_path / "ours.safetensors", read_torch(tmp_path / "theirs.pth"))
    found = load_file(tmp_path / "ours.safetensors")
    assert {n: raw_bytes(t) for n, t in found.items()} == {
        n: raw_bytes(t) for n, t in tensors.items()
    }
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    arrays = read_torch(tmp_path / "theirs.safetensors")
    assert {n: a.tobytes() for n, a in arrays.items()} == {
        n: raw_bytes(t) for n, t in tensors.items()
    }
