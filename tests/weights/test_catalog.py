"""What is known of published weights (that it is torchvision's is a parity test)."""

import re

import pytest

from jaxvision.errors import UserError
from jaxvision.weights import Preprocessing, find_weights
from jaxvision.weights.catalog import CATALOG, imagenet_classes
from jaxvision.weights.rules import RULES


def test_every_model_has_weights():
    own = {name for name in RULES if name.endswith("_resnet18_fpn")} | {"fasterrcnn_vgg16"}
    own |= {name for name in RULES if name.startswith("fastrcnn")}
    assert set(CATALOG) == set(RULES) - own
    for model, known in CATALOG.items():
        for name, weights in known.items():
            assert (weights.model, weights.name) == (model, name)
            digits = 32 if model.startswith("yolox") else 8
            assert re.fullmatch(f"[0-9a-f]{{{digits}}}", weights.sha256_prefix)
            if not model.startswith("yolox"):
                assert weights.file_name.endswith(f"-{weights.sha256_prefix}.pth")
            assert hash(weights) == hash(find_weights(model, name))


def test_the_default_is_the_best():
    for model in CATALOG:
        rated = [w for w in CATALOG[model].values() if w.metrics]
        best = max(rated, key=lambda w: next(iter(w.metrics.values())))
        assert find_weights(model) is best


def test_features_cannot_classify():
    weights = find_weights("vgg16", "IMAGENET1K_FEATURES")
    assert weights.class_names == ()
    assert weights.metrics == {}
    assert weights.preprocessing != Preprocessing()


def test_classes():
    names = imagenet_classes()
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert find_weights("resnet18").class_names == names


def test_segmentation_weights_keep_the_whole_picture_and_have_the_classes_of_voc():
    weights = find_weights("fcn_resnet50")
    assert weights.name == "COCO_WITH_VOC_LABELS_V1"
    assert len(weights.class_names) == 21
    assert (weights.class_names[0], weights.class_names[15]) == ("__background__", "person")
    assert weights.metrics == {"miou": 60.5, "pixel_acc": 91.4}
    assert (weights.preprocessing.resize_size, weights.preprocessing.crop_size) == (520, None)


def test_what_is_not_known_is_said():
    with pytest.raises(UserError, match="there are IMAGENET1K_V1, IMAGENET1K_V2 and DEFAULT"):
        find_weights("resnet50", "V3")
    with pytest.raises(UserError, match="no weights are published for the model 'lenet'"):
        find_weights("lenet")
