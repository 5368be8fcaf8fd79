"""What the experiments' tests have in common: networks as shallow as they come."""

import pytest

from jaxvision.models import resnet


@pytest.fixture(autouse=True, scope="module")
def shallow_resnet18():
    """ResNet-18, and every detector on it, with one block a stage, which compiles sooner.

    What an experiment does is the same at any depth, which tests/models and tests/parity look at.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.resnet18.keywords, "stage_sizes", (1, 1, 1, 1))
        yield
