"""Published weights on a folder of pictures: the same count as picture by picture."""

import cv2
import numpy as np
import pytest
from random_variables import random_variables

from jaxvision.errors import UserError
from jaxvision.models import get_model
from jaxvision.predict import Predictor
from jaxvision.weights import read_torch, to_torch, write_torch

CLASSES = tuple(f"n{i:08}" for i in range(7))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder for each of seven classes with two pictures, and a resnet18 for seven classes."""
    root = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
        for i in range(2):
            image = rng.integers(0, 256, (30 + 10 * i, 40, 3), dtype=np.uint8)
            assert cv2.imwrite(str(root / "val" / name / f"{i}.png"), image)
    model = get_model("resnet18", num_classes=7)
    variables = random_variables(model, (32, 32, 3))
    write_torch(root / "seven.pth", to_torch("resnet18", variables, num_classes=7))
    return root


def test_accuracy_is_that_of_the_predictor(experiment, files, capsys):
    module = experiment("published_accuracy")
    weights = str(files / "seven.pth")
    config = module.Config(source=files / "val", weights=weights, batch_size=4)  # 14 = 3 * 4 + 2
    found = module.evaluate(config)
    assert "acc@1" in capsys.readouterr().out
    predictor = Predictor.from_weights("resnet18", weights, class_names=CLASSES)
    ranks = []
    for path in sorted((files / "val").rglob("*.png")):
        probabilities = predictor(path).probabilities
        right = probabilities[CLASSES.index(path.parent.name)]
        ranks.append((probabilities > right).sum())
    expected = {f"acc@{k}": 100 * np.mean(np.array(ranks) < k) for k in (1, 5)}
    assert found == pytest.approx(expected)
    assert 0 < found["acc@5"] < 100


def test_what_is_not_a_number_is_not_right(experiment, files):
    module = experiment("published_accuracy")
    tensors = dict(read_torch(files / "seven.pth"))
    tensors["fc.bias"] = np.full_like(tensors["fc.bias"], np.nan)
    write_torch(files / "nan.pth", tensors)
    found = module.evaluate(module.Config(source=files / "val", weights=str(files / "nan.pth")))
    assert found == {"acc@1": 0, "acc@5": 0}
    tensors["fc.bias"][:], tensors["fc.weight"] = 0, np.zeros_like(tensors["fc.weight"])
    write_torch(files / "equal.pth", tensors)
    config = module.Config(source=files / "val", weights=str(files / "equal.pth"))
    assert module.evaluate(config)["acc@1"] == pytest.approx(100 / 7)


def test_the_number_of_classes_must_fit(experiment, files):
    module = experiment("published_accuracy")
    with pytest.raises(UserError, match=r"expected 1,000 folders, one a class .*, got 7"):
        module.evaluate(module.Config(source=files / "val"))
    with pytest.raises(UserError, match="no such folder"):
        module.evaluate(module.Config(source=files / "train"))
