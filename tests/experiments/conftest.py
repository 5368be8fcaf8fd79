"""What the experiments' tests have in common: networks as shallow as they come."""

import pytest
from random_variables import random_variables

from jaxvision.models import get_model, resnet
from jaxvision.train import create_state
from jaxvision.train.checkpoint import CheckpointStore
from jaxvision.train.optim import sgd


@pytest.fixture(autouse=True, scope="module")
def shallow_resnet18():
    """ResNet-18, and every detector on it, with one block a stage, which compiles sooner.

    What an experiment does is the same at any depth, which tests/models and tests/parity look at.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.resnet18.keywords, "stage_sizes", (1, 1, 1, 1))
        yield


@pytest.fixture(scope="session")
def pyramid():
    """Options of a small detector on two maps, of which there is the least to compile."""
    return {
        "width": 8,
        "frozen_norm": True,
        "stages": ["layer2", "layer3"],
        "fpn_features": 8,
        "representation_size": 16,
        "anchor_sizes": [8, 24],
        "pre_nms_top_n": [40, 40],
        "post_nms_top_n": [12, 12],
    }


@pytest.fixture(scope="module")
def faster_run(pyramid, tmp_path_factory):
    """The folder of a run of a Faster R-CNN for garments, as if it had been trained."""
    name, options = "fasterrcnn_resnet18_fpn", {**pyramid, "num_classes": 11}
    variables = random_variables(get_model(name, **options), (64, 64, 3))
    meta = {"model": name, "options": options, "input_shape": (128, 128, 3), "task": "detection"}
    meta |= {"mean": 0.5, "std": 0.25, "class_names": [str(k) for k in range(10)]}
    folder = tmp_path_factory.mktemp("faster") / "run"
    with CheckpointStore(folder) as store:
        store.save(create_state(variables, sgd(0.1)), meta=meta)
    return folder
