"""Mask R-CNN's and Keypoint R-CNN's names, shapes and counts are torchvision's; COCO_V1 by name."""

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
from jaxvision.weights import ShortestSide, find_weights
from jaxvision.weights.catalog import CATALOG
from jaxvision.weights.convert import template_leaves

from .test_faster_rcnn import blobs
from .torch_detectors import (
    _operators_in_python,  # noqa: F401
    by_name,
    detection,
)
from .torch_instances import torch_instances
from .torchvision_cpu import torchvision

NAMES = [name for name in CATALOG if name.startswith(("maskrcnn", "keypointrcnn"))]
MORE = {"mask_AP": "mask_map", "keypoint_AP": "kp_map"}


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_parameter_counts_are_torchvisions(name):
    with torch.device("meta"):  # names and shapes without the numbers
        model = by_name(name)
    options = {} if name.endswith("_v2") else {"frozen_norm": False}
    theirs = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    ours = {leaf.torch_name: leaf.torch_shape for leaf in template_leaves(name, **options)}
    assert ours == theirs
    # With frozen normalisation its scales are no parameters, and so it is counted.
    count = sum(math.prod(x.shape) for x in template_leaves(name) if x.collection == "params")
    assert count == find_weights(name).num_params


def test_the_catalog_is_torchvisions(monkeypatch):
    """Also that an epsilon of 0 is for COCO_V1 of the first versions, and for no other."""
    seen = []
    for module in (detection.mask_rcnn, detection.keypoint_rcnn):
        monkeypatch.setattr(module, "overwrite_eps", lambda model, eps: seen.append(eps))
    monkeypatch.setattr(detection.FasterRCNN, "load_state_dict", lambda self, state: None)
    assert len(NAMES) == 3
    for name in NAMES:
        published = torchvision.models.get_model_weights(name)
        assert [w.name for w in published] == list(CATALOG[name])
        assert find_weights(name).name == published.DEFAULT.name
        monkeypatch.setattr(published, "get_state_dict", lambda *_, **__: {})
        for theirs in published:
            ours = find_weights(name, theirs.name)
            assert ours.url == theirs.url
            assert ours.num_params == theirs.meta["num_params"]
            background, *classes = theirs.meta["categories"]
            assert background in ("__background__", "no person")
            assert list(ours.class_names) == classes
            metrics = theirs.meta["_metrics"][ours.data]
            assert ours.metrics == {key: metrics[MORE.get(key, "box_map")] for key in ours.metrics}
            assert len(ours.metrics) == len(metrics)
            seen.clear()
            with torch.device("meta"):
                transform = getattr(detection, name)(weights=theirs).transform
            assert ours.options == ({"norm_eps": 0.0} if seen == [0.0] else {})
            prepared = ours.preprocessing
            assert prepared.shortest == transform.min_size[-1]
            assert prepared.longest == transform.max_size
            assert prepared.multiple == transform.size_divisible
            assert list(prepared.mean) == transform.image_mean
            assert list(prepared.std) == transform.image_std


def older(name):
    """A tensor's name in torchvision's file of 2019."""
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    if "_blocks." in name:
        name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
    for i in range(4):
        name = name.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
    return name


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server of the files in tmp_path."""
    monkeypatch.delenv("JAXVISION_OFFLINE", raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield f"http://127.0.0.1:{running.server_address[1]}/"
    running.shutdown()
    running.server_close()


@pytest.mark.slow
def test_a_file_of_coco_v1s_layout_predicts_as_torchvision_does(server, tmp_path, monkeypatch):
    """In its full size, by its name, from a server; pictures small enough to need no resizing."""
    name = "maskrcnn_resnet50_fpn"
    pictures = [(255 * image).astype(np.uint8) for image in blobs([(64, 80), (90, 64)])]
    tensors = [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in pictures]
    theirs = torch_instances(name, tensors[:1], min_size=64, max_size=400)
    published = find_weights(name, "COCO_V1")
    file = tmp_path / published.file_name
    torch.save({older(key): x for key, x in theirs.state_dict().items()}, file)
    ours = dataclasses.replace(
        published,
        url=server + published.file_name,
        sha256_prefix=hashlib.sha256(file.read_bytes()).hexdigest()[:8],
        preprocessing=ShortestSide(64, 400),
    )
    monkeypatch.setitem(CATALOG[name], "COCO_V1", ours)
    monkeypatch.setenv("JAXVISION_WEIGHTS", str(tmp_path / "cache"))
    predictor = Predictor.from_weights(name, "COCO_V1")
    assert predictor.class_names[0] == "person"
    for picture, tensor in zip(pictures, tensors, strict=True):
        with torch.no_grad():
            (wanted,) = theirs([tensor])
        found = predictor(picture)
        assert len(found) == len(wanted["boxes"]) > 10
        np.testing.assert_array_equal(found.labels + 1, wanted["labels"].numpy())
        np.testing.assert_allclose(found.scores, wanted["scores"].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.boxes, wanted["boxes"].numpy(), atol=1e-2)
        masks = wanted["masks"][:, 0].numpy()
        clear = np.abs(masks - 0.5) > 1e-3
        np.testing.assert_array_equal(np.stack(list(found.masks))[clear], (masks > 0.5)[clear])
