"""Weights from files, addresses and names: fetched once, checked, with a fresh head where asked."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.predict import Predictor
from jaxvision.weights import catalog, from_torch, load_weights, write_safetensors, write_torch
from jaxvision.weights.convert import template_leaves
from jaxvision.weights.hub import cache_folder, fetch

OPTIONS = {"width": 8}


def tensors_of(num_classes=5, **options):
    rng = np.random.default_rng(0)
    leaves = template_leaves("resnet18", num_classes=num_classes, **{**OPTIONS, **options})
    return {
        leaf.torch_name: np.array(17)
        if leaf.dtype.kind == "i"
        else rng.uniform(0.5, 1, leaf.torch_shape).astype(np.float32)
        for leaf in leaves
    }


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def tensors():
    return tensors_of()


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    write_torch(path, tensors)
    return path


def load(weights, **options):
    return load_weights("resnet18", weights, progress=False, **{**OPTIONS, **options})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_loaded_and_predicts(tensors, tmp_path, suffix, capsys):
    path = tmp_path / f"a{suffix}"
    (write_torch if suffix == ".pth" else write_safetensors)(path, tensors)
    variables = load(path, num_classes=5)
    assert_same(variables, from_torch("resnet18", tensors, num_classes=5, **OPTIONS))
    assert capsys.readouterr().out == ""
    model = get_model("resnet18", num_classes=5, **OPTIONS)
    images = np.ones((1, 32, 32, 3), np.float32)
    assert np.isfinite(jax.jit(model.apply)(variables, images)).all()


def test_a_predictor_has_no_fresh_head(file):
    predictor = Predictor.from_weights("resnet18", file, class_names="abcde", **OPTIONS)
    assert predictor.class_names == tuple("abcde")
    for wrong in ({"class_names": "ab"}, {"num_classes": 2}):
        with pytest.raises(UserError, match=r"weights.pth: its head has 5 classes, expected 2"):
            Predictor.from_weights("resnet18", file, **wrong, **OPTIONS)
    with pytest.raises(UserError, match=r"expected 1000: give num_classes=5, or 5 class names"):
        Predictor.from_weights("resnet18", file, **OPTIONS)


def test_another_number_of_classes_gets_a_fresh_head(file, tensors, capsys):
    variables = load(file, num_classes=2, seed=3)
    assert capsys.readouterr().out == (
        "resnet18: fresh head for 2 classes (the file has 5); all else is from weights.pth\n"
    )
    model = get_model("resnet18", num_classes=2, **OPTIONS)
    draw = jax.jit(lambda *x: model.init(*x)["params"]["fc"])  # and nothing else of it
    fresh = draw(jax.random.key(3), np.zeros((1, 32, 32, 3), np.float32))
    assert_same(variables["params"]["fc"], fresh)
    assert np.abs(variables["params"]["fc"]["kernel"]).max() <= 1 / 8  # U(+-1/sqrt(64)), as torch
    whole = from_torch("resnet18", tensors, num_classes=5, **OPTIONS)
    for tree in (variables, whole):
        del tree["params"]["fc"]
    assert_same(variables, whole)
    other = load(file, num_classes=2, seed=4)["params"]["fc"]["kernel"]
    assert not np.array_equal(other, fresh["kernel"])


def test_the_head_of_a_vgg_is_inside_its_classifier(tmp_path):
    small = {"widths": (2,) * 5, "hidden": 3}
    leaves = template_leaves("vgg11", **small)
    tensors = {leaf.torch_name: np.ones(leaf.torch_shape, np.float32) for leaf in leaves}
    write_torch(tmp_path / "vgg.pth", tensors)
    variables = load_weights("vgg11", tmp_path / "vgg.pth", num_classes=4, **small)
    classifier = variables["params"]["classifier"]
    assert classifier["6"]["kernel"].shape == (3, 4)
    assert not np.any(classifier["6"]["kernel"] == 1)
    assert np.all(classifier["3"]["kernel"] == 1)


def test_another_size_without_a_number_of_classes_says_what_to_give(file):
    with pytest.raises(UserError) as caught:
        load(file)
    assert "its head has 5 classes, resnet18's 1000: give num_classes=5" in str(caught.value)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize("options", [{"features_only": True}, {"num_classes": 0}])
def test_models_without_a_head_leave_it_out(file, tensors, options, capsys):
    variables = load(file, **options)
    assert capsys.readouterr().out == "resnet18: left out of weights.pth: fc.bias, fc.weight\n"
    assert "fc" not in variables["params"]
    model = get_model("resnet18", **OPTIONS, **options)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    assert jax.tree.leaves(jax.eval_shape(model.apply, variables, images))
    np.testing.assert_array_equal(variables["params"]["bn1"]["scale"], tensors["bn1.weight"])


def test_nothing_else_is_left_out(tensors, tmp_path):
    write_torch(tmp_path / "a.pth", {**tensors, "layer5.weight": np.zeros(3, np.float32)})
    for options in ({"features_only": True}, {"num_classes": 2}, {"num_classes": 5}):
        with pytest.raises(UserError, match=r"unexpected  layer5\.weight"):
            load(tmp_path / "a.pth", **options)


def test_values_that_are_not_finite_are_said(tensors, tmp_path, capsys):
    write_torch(tmp_path / "a.pth", {**tensors, "bn1.weight": np.full(8, np.nan, np.float32)})
    load(tmp_path / "a.pth", num_classes=5)
    assert "a.pth has values that are not finite in params/bn1/scale" in capsys.readouterr().out


def named(data, stem="net", digits=8):
    return f"{stem}-{hashlib.sha256(data).hexdigest()[:digits]}.pth"


def test_an_address_is_fetched_once_and_checked(serve, file, tensors, tmp_path):
    data = file.read_bytes()
    served = serve({named(data): data})
    url = served.url + named(data)
    for _ in range(2):
        variables = load(url, num_classes=5, cache_dir=tmp_path)
    assert_same(variables, from_torch("resnet18", tensors, num_classes=5, **OPTIONS))
    assert served.requests == [(named(data), None)]
    assert [p.name for p in tmp_path.iterdir()] == [named(data)]


def test_a_broken_download_goes_on_where_it_stopped(serve, file, tmp_path):
    data = file.read_bytes()
    served = serve({named(data): data}, cut_after=[1000])
    assert fetch(served.url + named(data), tmp_path, progress=False).read_bytes() == data
    assert served.requests == [(named(data), None), (named(data), "bytes=1000-")]


def test_another_hash_than_the_names_is_refused_and_deleted(serve, tmp_path):
    served = serve({"net-0123abcd.pth": b"not the weights"})
    with pytest.raises(UserError, match=r"begins with 0123abcd, got .*: the file was deleted"):
        fetch(served.url + "net-0123abcd.pth", tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_noticed(serve, file, tmp_path):
    data = file.read_bytes()
    served = serve({named(data): data})
    path = fetch(served.url + named(data), tmp_path, progress=False)
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(UserError, match="the file was deleted; try again"):
        fetch(served.url + named(data), tmp_path, progress=False)
    assert fetch(served.url + named(data), tmp_path, progress=False).read_bytes() == data


def test_files_of_one_name_from_two_addresses_are_not_mixed_up(serve, tmp_path):
    one, two = serve({"model.pth": b"one"}), serve({"model.pth": b"two"})
    for served, body in ((one, b"one"), (two, b"two")):
        path = fetch(served.url + "model.pth?download=true", tmp_path, progress=False)
        assert path.read_bytes() == body
        assert path.name == "model.pth"


@pytest.mark.parametrize("end", ["", "a/..", "a%2Fb/%2e%2e", "a/x%0Ay.pth"])
def test_an_address_needs_a_file_name(end, tmp_path):
    with pytest.raises(UserError, match="ends with the name of a file"):
        fetch(f"http://127.0.0.1:9/{end}", tmp_path)


def test_a_published_name_is_looked_up_and_fetched(serve, file, monkeypatch, tmp_path):
    data = file.read_bytes()
    served = serve({named(data): data})
    published = dataclasses.replace(
        catalog.find_weights("resnet18"),
        url=served.url + named(data),
        sha256_prefix=hashlib.sha256(data).hexdigest()[:8],
    )
    monkeypatch.setitem(catalog.CATALOG["resnet18"], "IMAGENET1K_V1", published)
    monkeypatch.setenv("JAXVISION_WEIGHTS", str(tmp_path / "cache"))
    for name in ("IMAGENET1K_V1", "DEFAULT"):
        load(name, num_classes=5)
    assert served.requests == [(named(data), None)]
    assert (tmp_path / "cache" / named(data)).exists()


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAXVISION_WEIGHTS", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "jaxvision" / "weights"
    monkeypatch.setenv("JAXVISION_WEIGHTS", "~/w")
    assert cache_folder() == tmp_path / "w"
    assert cache_folder("/x") == cache_folder(cache_folder("/x"))


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ("IMAGENET1K_V2", "no weights 'IMAGENET1K_V2' are published for resnet18"),
        ("missing.pth", r"no such file: missing\.pth; .* \(IMAGENET1K_V1, DEFAULT\)"),
        (".", r"\. is a folder"),
        ("ftp://example.org/a.pth", "no such file: ftp:"),
    ],
)
def test_mistakes_are_said(weights, why):
    with pytest.raises(UserError, match=why):
        load(weights)


def test_a_model_without_rules_is_refused_before_anything_is_fetched():
    with pytest.raises(UserError, match="'lenet'"):
        load_weights("lenet", "http://127.0.0.1:9/a.pth")


def test_offline_says_where_the_file_may_be_put(tmp_path):
    with pytest.raises(
        UserError, match=r"JAXVISION_OFFLINE=1 forbids it: .*resnet18-f37072fd\.pth"
    ):
        load("IMAGENET1K_V1", cache_dir=tmp_path)
