"""Megvii's YOLOX files: colours, three heads, the checkpoint's layout, by name and by path."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.weights import catalog, from_torch, load_weights, to_torch
from jaxvision.weights.convert import count_classes, template_leaves

from . import torch_files

NAME, OPTIONS = "yolox_nano", {"width": 0.125, "depth": 0.1}
STEM = "backbone.backbone.stem.conv.conv.weight"
HEADS = {f"head.cls_preds.{level}.{n}" for level in range(3) for n in ("weight", "bias")}


def tensors_of(num_classes, name=NAME, **options):
    """Random ones, as torch would have them."""
    rng = np.random.default_rng(0)
    return {
        leaf.torch_name: np.array(7)
        if leaf.dtype.kind == "i"
        else rng.uniform(0.5, 1, leaf.torch_shape).astype(np.float32)
        for leaf in template_leaves(name, num_classes=num_classes, **{**OPTIONS, **options})
    }


def megvii_checkpoint(tensors):
    """What Megvii's trainer saves: epoch, weights, the optimiser's state by number, scores."""
    storages, places = {}, {}
    for name, array in tensors.items():
        key = str(len(storages))
        storages[key] = array.tobytes()
        kind = "torch.LongStorage" if array.dtype.kind == "i" else "torch.FloatStorage"
        strides = tuple(s // array.itemsize for s in array.strides)
        place = torch_files.storage(key, array.size, kind)
        places[name] = torch_files.tensor(place, array.shape, strides)
    key = str(len(storages))
    storages[key] = np.zeros(6, np.float32).tobytes()
    buffer = torch_files.mapping(
        {"momentum_buffer": torch_files.tensor(torch_files.storage(key, 6))}
    )
    by_number = b"}(" + torch_files.number(0) + buffer + b"u"
    layout = {
        "start_epoch": torch_files.number(300),
        "model": torch_files.mapping(places),
        "optimizer": torch_files.mapping({"state": by_number}),
        "best_ap": torch_files.number(0),
    }
    return torch_files.zip_file(torch_files.program(torch_files.mapping(layout)), storages)


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(80)


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "yolox_nano.pth"
    path.write_bytes(megvii_checkpoint(tensors))
    return path


def same_bits(ours, theirs):
    assert list(ours) == sorted(theirs)
    for name, array in theirs.items():
        assert (ours[name].shape, ours[name].tobytes()) == (array.shape, array.tobytes()), name


def test_a_checkpoint_by_path_there_and_back(tensors, file):
    variables = load_weights(NAME, file, **OPTIONS)
    same_bits(to_torch(NAME, variables, **OPTIONS), tensors)


@pytest.mark.parametrize(
    ("name", "options", "stem", "joined"),
    [
        (NAME, OPTIONS, STEM, 4),
        ("yolox_darknet53", OPTIONS, "backbone.backbone.stem.0.conv.weight", 1),
        (NAME, {**OPTIONS, "stem": "small"}, STEM, 1),
    ],
)
def test_only_the_stems_colours_are_turned_around(name, options, stem, joined):
    options = {**options, "num_classes": 2}
    tensors = tensors_of(name=name, **options)
    variables = from_torch(name, tensors, **options)
    node = variables["params"]
    for part in stem.split(".")[:-1]:
        node = node[part]
    order = [3 * pixel + colour for pixel in range(joined) for colour in (2, 1, 0)]
    np.testing.assert_array_equal(node["kernel"], tensors[stem][:, order].transpose(2, 3, 1, 0))
    plain = {leaf.torch_name for leaf in template_leaves(name, **options) if not leaf.bgr}
    assert plain == set(tensors) - {stem}
    same_bits(to_torch(name, variables, **options), tensors)


def test_other_classes_get_three_fresh_heads_and_keep_the_rest(tensors, file, capsys):
    variables = load_weights(NAME, file, num_classes=5, **OPTIONS)
    assert "fresh head for 5 classes (the file has 80)" in capsys.readouterr().out
    back = to_torch(NAME, variables, num_classes=5, **OPTIONS)
    for name, array in back.items():
        if name in HEADS:
            assert array.shape[0] == 5
        else:
            np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    biases = [variables["params"]["head"]["cls_preds"][str(i)]["bias"] for i in range(3)]
    np.testing.assert_allclose(biases, np.log(0.01 / 0.99), rtol=1e-6)
    kernels = [back[f"head.cls_preds.{i}.weight"] for i in range(3)]
    assert not np.array_equal(kernels[0], kernels[1])
    model = get_model(NAME, num_classes=5, **OPTIONS)

    @jax.jit  # of which only that one kernel is drawn
    def fresh(key, images):
        return model.init(key, images)["params"]["head"]["cls_preds"]["1"]["kernel"]

    np.testing.assert_array_equal(
        fresh(jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32)),
        variables["params"]["head"]["cls_preds"]["1"]["kernel"],
    )


def test_a_file_of_other_classes_says_what_to_give(tmp_path):
    tensors = tensors_of(3)
    assert count_classes(NAME, tensors) == 3
    path = tmp_path / "three.pth"
    path.write_bytes(megvii_checkpoint(tensors))
    with pytest.raises(UserError, match="its head has 3 classes, yolox_nano's 80"):
        load_weights(NAME, path, **OPTIONS)
    same_bits(
        to_torch(
            NAME, load_weights(NAME, path, num_classes=3, **OPTIONS), num_classes=3, **OPTIONS
        ),
        tensors,
    )


def test_by_name_from_a_server_with_the_known_hash(serve, file, tensors, monkeypatch, tmp_path):
    data = file.read_bytes()
    served = serve({"yolox_nano.pth": data})
    published = catalog.find_weights(NAME, "COCO")
    assert published is catalog.find_weights(NAME)
    ours = dataclasses.replace(
        published,
        url=served.url + "yolox_nano.pth",
        sha256_prefix=hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setitem(catalog.CATALOG[NAME], "COCO", ours)
    options = {**OPTIONS, "cache_dir": tmp_path, "progress": False}
    for name in ("COCO", "DEFAULT"):
        same_bits(to_torch(NAME, load_weights(NAME, name, **options), **OPTIONS), tensors)
    assert served.requests == [("yolox_nano.pth", None)]
    monkeypatch.setitem(
        catalog.CATALOG[NAME], "COCO", dataclasses.replace(ours, sha256_prefix="0123abcd")
    )
    with pytest.raises(UserError, match=r"begins with 0123abcd, got .*: the file was deleted"):
        load_weights(NAME, "COCO", **options)
    assert not list(tmp_path.rglob("*.pth"))


def test_what_is_known_of_the_published_files():
    for name in ("nano", "tiny", "s", "m", "l", "x", "darknet53"):
        weights = catalog.find_weights(f"yolox_{name}", "COCO")
        side = 416 if name in ("nano", "tiny") else 640
        assert weights.task == "detection"
        assert weights.preprocessing == catalog.Letterbox((side, side))
        assert weights.preprocessing.as_meta() == {
            "kind": "letterbox",
            "size": [side, side],
            "fill": 114,
            "center": False,
        }
        assert weights.url.startswith("https://github.com/Megvii-BaseDetection/YOLOX/releases/")
        assert len(weights.class_names) == 80
    assert catalog.find_weights("yolox_darknet53").file_name == "yolox_darknet.pth"
    assert catalog.find_weights("yolox_x").metrics == {"AP": 51.1}
    names = catalog.coco_classes()
    assert (names[0], names[5], names[79]) == ("person", "bus", "toothbrush")
    assert {catalog.find_weights(n).task for n in ("resnet18", "fcn_resnet50")} == {
        "classification",
        "segmentation",
    }
