"""A detector's backbone from a classifier: every array, whatever normalises, and nothing else."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxvision.errors import UserError
from jaxvision.models import abstract_variables, get_model
from jaxvision.weights import put_backbone

SLIM = {"fpn_features": 8, "representation_size": 16, "width": 8}


def drawn(seed, name, **options):
    """Variables of the model's shapes, all numbers different, without running its init."""
    like = abstract_variables(get_model(name, **options), (64, 64, 3))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like)


@pytest.mark.parametrize("frozen", [True, False])
def test_resnet(frozen):
    classifier = drawn(0, "resnet18", width=8)
    before = drawn(1, "fasterrcnn_resnet18_fpn", frozen_norm=frozen, **SLIM)
    after = put_backbone(before, classifier)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    body = after["params"]["backbone"]["body"]
    np.testing.assert_array_equal(body["conv1"]["kernel"], classifier["params"]["conv1"]["kernel"])
    scale = after["batch_stats" if frozen else "params"]["backbone"]["body"]["bn1"]["scale"]
    np.testing.assert_array_equal(scale, classifier["params"]["bn1"]["scale"])
    mean = after["batch_stats"]["backbone"]["body"]["layer4"]["1"]["bn2"]["mean"]
    wanted = classifier["batch_stats"]["layer4"]["1"]["bn2"]["mean"]
    np.testing.assert_array_equal(mean, wanted)
    moved = {p for p, x in flatten_dict(after).items() if x is not flatten_dict(before)[p]}
    assert moved == {p for p in flatten_dict(before) if p[1:3] == ("backbone", "body")}


def test_from_a_frozen_normalisation_to_one_that_learns():
    frozen = drawn(0, "fasterrcnn_resnet18_fpn", frozen_norm=True, **SLIM)
    body = {kind: frozen[kind]["backbone"]["body"] for kind in ("params", "batch_stats")}
    before = drawn(1, "localizer", backbone_options={"width": 8})
    after = put_backbone(before, body)
    scale = after["params"]["backbone"]["bn1"]["scale"]
    np.testing.assert_array_equal(scale, body["batch_stats"]["bn1"]["scale"])
    stats = (each["batch_stats"]["backbone"]["bn1"] for each in (after, before))
    assert len({float(each["num_batches_tracked"]) for each in stats}) == 1


def test_mobilenet_and_vgg():
    classifier = drawn(0, "mobilenet_v3_large", width_mult=0.25)
    options = {"width_mult": 0.25, "fpn_features": 8, "representation_size": 16}
    after = put_backbone(drawn(1, "fasterrcnn_mobilenet_v3_large_fpn", **options), classifier)
    kernel = after["params"]["backbone"]["body"]["16"]["0"]["kernel"]
    wanted = classifier["params"]["features"]["16"]["0"]["kernel"]
    np.testing.assert_array_equal(kernel, wanted)

    narrow = {"widths": (8, 8, 8, 8, 8), "hidden": 16}
    classifier = drawn(0, "vgg16", **narrow)
    after = put_backbone(drawn(1, "fasterrcnn_vgg16", **narrow), classifier)
    head = after["params"]["roi_heads"]["box_head"]
    for ours, theirs in (("fc6", "0"), ("fc7", "3")):
        for kind, wanted in classifier["params"]["classifier"][theirs].items():
            np.testing.assert_array_equal(head[ours][kind], wanted)


def test_localizer():
    classifier = drawn(0, "resnet18", width=8)
    before = drawn(1, "localizer", backbone_options={"width": 8})
    after = put_backbone(before, classifier)
    for kind in ("params", "batch_stats"):
        for path, leaf in flatten_dict(after[kind]).items():
            given = flatten_dict(classifier[kind] if path[0] == "backbone" else before[kind])
            assert leaf is given[path[1:] if path[0] == "backbone" else path]
    with pytest.raises(UserError, match="layer1/0/conv1/kernel should be"):
        put_backbone(before, drawn(0, "resnet50", width=8))


def test_what_does_not_fit_is_listed():
    detector = drawn(1, "fasterrcnn_resnet18_fpn", **SLIM)
    with pytest.raises(UserError, match=r"should be \[.*8\], is \[.*16\]"):
        put_backbone(detector, drawn(0, "resnet18", width=16))
    with pytest.raises(UserError, match=r"layer1/0/conv1/kernel should be .* and \d+ more"):
        put_backbone(detector, drawn(0, "resnet50", width=8))
    more, less = drawn(0, "resnet18", width=8), drawn(0, "resnet18", width=8)
    more["params"]["layer5"] = {"kernel": np.zeros(3)}
    with pytest.raises(UserError, match="backbone: unexpected layer5/kernel"):
        put_backbone(detector, more)
    del less["params"]["layer4"]["1"]["conv2"]
    with pytest.raises(UserError, match="backbone: missing layer4/1/conv2/kernel"):
        put_backbone(detector, less)
    with pytest.raises(UserError, match="no backbone in them"):
        put_backbone(drawn(0, "resnet18", width=8), drawn(0, "resnet18", width=8))
