"""`jaxvision convert`: between .pth, .safetensors and orbax, and out of run folders."""

import jax
import numpy as np
import pytest

from jaxvision.cli import main
from jaxvision.train import create_state
from jaxvision.train.checkpoint import CheckpointStore, load_variables
from jaxvision.train.optim import sgd
from jaxvision.weights import from_torch, read_torch, write_torch
from jaxvision.weights.convert import template_leaves


def bits_of(tensors):
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in tensors.items()}


def tensors_of(**options):
    rng = np.random.default_rng(0)
    return {
        leaf.torch_name: np.array(17)
        if leaf.dtype.kind == "i"
        else rng.normal(size=leaf.torch_shape).astype(np.float32)
        for leaf in template_leaves("resnet18", **options)
    }


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(num_classes=3)


@pytest.fixture
def pth(tensors, tmp_path):
    write_torch(tmp_path / "in.pth", tensors)
    return tmp_path / "in.pth"


def convert(*words):
    main(["convert", *map(str, words)])


def test_all_the_way_round(pth, tensors, tmp_path, capsys):
    safe, folder, back = tmp_path / "a.safetensors", tmp_path / "orbax", tmp_path / "back.pth"
    convert(pth, safe)
    size = sum(a.nbytes for a in tensors.values())
    assert capsys.readouterr().out == f"written: {safe} (122 tensors, {size:,} bytes)\n"
    convert(safe, folder, "--model", "resnet18")
    assert f"written: {folder} (122 tensors, " in capsys.readouterr().out
    convert(folder, back, "--model", "resnet18", "--num-classes", 3)
    assert bits_of(read_torch(back)) == bits_of(tensors)
    variables = from_torch("resnet18", tensors, num_classes=3)
    jax.tree.map(np.testing.assert_array_equal, load_variables(folder, variables), variables)


def test_the_weights_of_a_run(tmp_path, capsys):
    options = {"num_classes": 3, "width": 8}
    tensors = tensors_of(**options)
    variables = jax.device_put(from_torch("resnet18", tensors, **options))
    meta = {"model": "resnet18", "options": options, "input_shape": [32, 32, 3]}
    with CheckpointStore(tmp_path / "run") as store:
        store.save(create_state(variables, sgd(0.1)), metrics={"val_loss": 1.0}, meta=meta)
    for target in ("a.pth", "a.safetensors"):
        convert(tmp_path / "run", tmp_path / target)
        assert bits_of(read_torch(tmp_path / target)) == bits_of(tensors)
    with pytest.raises(SystemExit):
        convert(tmp_path / "run", tmp_path / "b.pth", "--model", "resnet50")
    assert "error: --model is not for a run folder" in capsys.readouterr().err
    convert(tmp_path / "run", tmp_path / "weights", "--which", "0")
    jax.tree.map(
        np.testing.assert_array_equal, load_variables(tmp_path / "weights", variables), variables
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{in}", "{in}"], "exists already"),
        (["{in}", "{tmp}/a.onnx"], "expected OUT to end with .pth, .pt or .safetensors"),
        (["{in}", "{tmp}/orbax"], "say which with --model NAME"),
        (["{tmp}", "{tmp}/a.pth"], "say which with --model NAME"),
        (["{tmp}", "{tmp}/a.pth", "--model", "resnet18"], "cannot be read"),
        (["{tmp}/none.pth", "{tmp}/a.pth"], "cannot read"),
        (["{in}", "{tmp}/a.pth", "--model", "vgg11"], "in.pth: the tensors do not fit"),
        (["{in}", "{tmp}/a", "--model", "resnet34"], "in.pth: the tensors do not fit"),
        (["{in}", "{tmp}/a", "--model", "lenet"], "no conversion from or to torch is known"),
        (["{in}", "{tmp}/a", "--model", "resnet18", "--num-classes", "4"], "fc.bias: expected"),
        (["{in}", "{tmp}/a.pth", "--key", "ema"], "it has no entry ema"),
    ],
)
def test_mistakes_leave_nothing_behind(pth, tmp_path, capsys, words, message):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught:
        convert(*[word.format(**{"in": pth, "tmp": tmp_path}) for word in words])
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert sorted(tmp_path.iterdir()) == before
