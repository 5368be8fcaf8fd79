"""One-stage detectors' weights: names, shapes, counts and the catalogue are torchvision's; a file
of COCO_V1's layout, served under its name, predicts as torchvision does."""

import dataclasses
import hashlib
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from jaxvision.predict import Predictor
from jaxvision.weights import ShortestSide, find_weights, from_torch, read_torch, to_torch
from jaxvision.weights.catalog import CATALOG
from jaxvision.weights.convert import template_leaves

from .test_dense import blobs, same_detections, to_chw
from .torch_dense import CASES, QUICK, torch_dense
from .torch_detectors import (
    _operators_in_python,  # noqa: F401
    by_name,
    detection,
    state_of,
)
from .torchvision_cpu import torchvision

NAMES = [name for name in CATALOG if name.startswith(("retinanet", "fcos", "ssd"))]
FROZEN = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn")


def on_meta(name):
    with torch.device("meta"):  # names and shapes without the numbers
        return by_name(name)


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_counts_and_the_catalog_are_torchvisions(name):
    model = on_meta(name)
    theirs = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    leaves = template_leaves(name, **({"frozen_norm": False} if name in FROZEN else {}))
    assert {leaf.torch_name: leaf.torch_shape for leaf in leaves} == theirs
    ours = sum(math.prod(x.shape) for x in template_leaves(name) if x.collection == "params")

    published = torchvision.models.get_model_weights(name)
    assert [w.name for w in published] == list(CATALOG[name]) == ["COCO_V1"]
    found, weights = find_weights(name), published.COCO_V1
    assert ours == found.num_params == weights.meta["num_params"]
    assert found.url == weights.url
    assert ("__background__", *found.class_names) == tuple(weights.meta["categories"])
    assert found.metrics == {"AP": weights.meta["_metrics"][found.data]["box_map"]}
    preprocessing, transform = found.preprocessing, model.transform
    assert list(preprocessing.mean) == transform.image_mean
    assert list(preprocessing.std) == transform.image_std
    if isinstance(preprocessing, ShortestSide):
        assert (preprocessing.shortest,) == transform.min_size
        assert preprocessing.longest == transform.max_size
        assert preprocessing.multiple == transform.size_divisible
    else:
        assert preprocessing.size == transform.fixed_size
        assert transform.size_divisible == 1


def test_overwritten_epsilon_is_torchvisions(monkeypatch):
    """That it is set to 0 for COCO_V1 of the first RetinaNet, and for no other."""
    seen = []
    monkeypatch.setattr(detection.retinanet, "overwrite_eps", lambda model, eps: seen.append(eps))
    for kind in (detection.RetinaNet, detection.FCOS):
        monkeypatch.setattr(kind, "load_state_dict", lambda self, state: None)
    for name in NAMES[:3]:
        weights = torchvision.models.get_model_weights(name).COCO_V1
        monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: {})
        seen.clear()
        with torch.device("meta"):
            getattr(detection, name)(weights=weights)
        assert find_weights(name).options == ({"norm_eps": 0.0} if seen == [0.0] else {})


@pytest.mark.parametrize("case", [*QUICK, "ssdlite320_mobilenet_v3_large"])
def test_there_and_back_is_bit_equal(case, tmp_path):
    torch.manual_seed(0)
    reference, (_, name, options) = CASES[case][0](), CASES[case]
    expected = reference.state_dict()
    torch.save(expected, tmp_path / "theirs.pth")
    back = to_torch(
        name, from_torch(name, read_torch(tmp_path / "theirs.pth"), **options), **options
    )
    assert back.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(back[key], tensor.numpy())
    reference.load_state_dict({key: torch.from_numpy(x) for key, x in back.items()}, strict=True)


@pytest.mark.parametrize("case", ["retinanet", "fcos"])
def test_older_names_are_torchvisions(case):
    """Its own rule, which its modules apply when they load a file without a version."""
    build, name, options = CASES[case]
    if case == "retinanet":  # with all convolutions of its heads
        build, options = partial(build, depth=4), {**options, "head_depth": 4}
    model = build()
    state, old = state_of(model), {}
    for key, array in state.items():
        for i in range(4):
            if case == "retinanet":
                key = key.replace(f"_head.conv.{i}.0.", f"_head.conv.{2 * i}.*")
            key = key.replace(f"_blocks.{i}.0.", f"_blocks.{i}.")
        old[key.replace("*", "")] = array
    assert "backbone.fpn.inner_blocks.2.bias" in old
    assert case == "fcos" or "head.regression_head.conv.6.bias" in old
    model.load_state_dict({n: torch.from_numpy(x) for n, x in old.items()})
    first, second = (
        to_torch(name, from_torch(name, x, **options), **options) for x in (old, state)
    )
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])


@pytest.fixture
def address(tmp_path, monkeypatch):
    """That of a server of the files in `tmp_path`."""
    monkeypatch.delenv("JAXVISION_OFFLINE", raising=False)
    monkeypatch.setenv("JAXVISION_WEIGHTS", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "name",
    [n if n.startswith("ssdlite") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
def test_by_its_name_it_is_fetched_and_predicts_as_torchvision_does(
    name, address, tmp_path, monkeypatch, capsys
):
    prepared = find_weights(name).preprocessing
    # Of the size that the network wants: resized ones are rounded to grey levels here.
    side = prepared.shortest if isinstance(prepared, ShortestSide) else prepared.size[0]
    image, another = ((255 * x).astype(np.uint8) for x in blobs([(side, side)] * 2))
    theirs = torch_dense(name, to_chw([x.astype(np.float32) / 255 for x in (image, another)]))
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    digest = hashlib.sha256((tmp_path / "file.pth").read_bytes()).hexdigest()[:8]
    served = f"{name}_coco-{digest}.pth"
    (tmp_path / "file.pth").rename(tmp_path / served)
    published = dataclasses.replace(find_weights(name), url=address + served, sha256_prefix=digest)
    monkeypatch.setitem(CATALOG[name], "COCO_V1", published)

    predictor = Predictor.from_weights(name, "COCO_V1")
    ours = predictor(image)
    with torch.no_grad():
        (found,) = theirs(to_chw([image.astype(np.float32) / 255]))
    # A box that lies outside, and so has no area, is none to the predictor; torchvision keeps some.
    inside = (found["boxes"][:, 2:] > found["boxes"][:, :2]).all(dim=1)
    found = {key: value[inside] for key, value in found.items()}
    assert len(ours) == len(found["boxes"]) > 20
    same_detections(
        (ours.labels + 1, ours.scores, ours.boxes),
        [found[key].numpy() for key in ("labels", "scores", "boxes")],
    )
    categories = torchvision.models.get_model_weights(name).COCO_V1.meta["categories"]
    assert ours.names()[0] == categories[found["labels"][0]]
    assert (tmp_path / "cache" / served).exists()
    assert "norm_eps" not in capsys.readouterr().out  # the predictor has what the weights need
