"""Weights with two heads: another number of classes, and a model without the second head."""

import jax
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.weights import load_weights, to_torch, write_torch
from jaxvision.weights.convert import count_classes, template_leaves

NAME, OPTIONS = "fcn_resnet50", {"width": 4}


@pytest.fixture(scope="module")
def tensors():
    """Random ones for 3 classes, as torch would have them."""
    rng = np.random.default_rng(0)
    return {
        leaf.torch_name: np.array(7)
        if leaf.dtype.kind == "i"
        else rng.normal(size=leaf.torch_shape).astype(np.float32)
        for leaf in template_leaves(NAME, num_classes=3, **OPTIONS)
    }


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "three.pth"
    write_torch(path, tensors)
    return path


def without_aux(tensors):
    return {k: v for k, v in tensors.items() if not k.startswith("aux_classifier.")}


def test_all_of_the_file(tensors, file):
    variables = load_weights(NAME, file, num_classes=3, **OPTIONS)
    back = to_torch(NAME, variables, num_classes=3, **OPTIONS)
    assert {k: v.tobytes() for k, v in back.items()} == {k: v.tobytes() for k, v in tensors.items()}
    assert count_classes(NAME, tensors) == 3


def test_other_classes_get_two_fresh_heads_and_keep_the_rest(tensors, file, capsys):
    variables = load_weights(NAME, file, num_classes=5, **OPTIONS)
    assert "fresh head for 5 classes (the file has 3)" in capsys.readouterr().out
    back = to_torch(NAME, variables, num_classes=5, **OPTIONS)
    heads = {
        f"{head}.4.{n}" for head in ("classifier", "aux_classifier") for n in ("weight", "bias")
    }
    for name, array in back.items():
        assert (name in heads) == (array.shape != tensors[name].shape), name
        if name not in heads:
            np.testing.assert_array_equal(array, tensors[name])
    other = load_weights(NAME, file, num_classes=5, seed=1, **OPTIONS)
    for head in ("classifier", "aux_classifier"):
        first, second = (v["params"][head]["4"]["kernel"] for v in (variables, other))
        assert not np.array_equal(first, second)
    with pytest.raises(UserError, match="its head has 3 classes, fcn_resnet50's 21"):
        load_weights(NAME, file, **OPTIONS)


@pytest.mark.parametrize("num_classes", [3, 5])
def test_a_model_without_the_auxiliary_head_leaves_its_weights_out(
    num_classes, tensors, file, capsys
):
    variables = load_weights(NAME, file, num_classes=num_classes, aux_loss=False, **OPTIONS)
    assert "left out of three.pth: aux_classifier.0.weight" in capsys.readouterr().out
    back = to_torch(NAME, variables, num_classes=num_classes, aux_loss=False, **OPTIONS)
    assert set(back) == set(without_aux(tensors))
    np.testing.assert_array_equal(back["classifier.0.weight"], tensors["classifier.0.weight"])
    assert back["classifier.4.bias"].shape == (num_classes,)


def test_a_file_that_never_had_one(tensors, tmp_path):
    path = tmp_path / "plain.pth"
    write_torch(path, without_aux(tensors))
    variables = load_weights(NAME, path, num_classes=3, aux_loss=False, **OPTIONS)
    assert "aux_classifier" not in variables["params"]
    with pytest.raises(UserError, match=r"missing +aux_classifier\.0\.weight"):
        load_weights(NAME, path, num_classes=3, **OPTIONS)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(variables))


def test_what_is_left_out_must_fit_all_the_same(tensors, tmp_path):
    path = tmp_path / "broken.pth"
    broken = {**tensors, "aux_classifier.1.bias": np.zeros(9, np.float32)}
    write_torch(path, broken)
    with pytest.raises(UserError, match=r"differs +aux_classifier\.1\.bias"):
        load_weights(NAME, path, num_classes=3, aux_loss=False, **OPTIONS)
