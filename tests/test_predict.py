"""From a checkpoint to predictions on pictures."""

import numpy as np
import pytest
from PIL import Image

from jaxvision.data import load_dataset
from jaxvision.errors import UserError
from jaxvision.predict import Predictor


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor.from_checkpoint(trained_run)


@pytest.fixture(scope="module")
def pictures(data_dir):
    return load_dataset("fashion_mnist", split="test", data="embedded", data_dir=data_dir)


def test_a_trained_run_knows_its_classes(predictor, pictures):
    assert predictor.class_names == pictures.class_names
    assert predictor.input_shape == (28, 28, 1)
    predictions = predictor(list(pictures.images[:200]))
    right = np.mean([p.label == y for p, y in zip(predictions, pictures.labels, strict=False)])
    assert right > 0.6


def test_one_picture_or_many_give_the_same(predictor, pictures):
    images = pictures.images[:20]
    many = predictor(list(images))
    assert len(many) == 20
    for image, from_many in zip(images[:3], many, strict=False):
        np.testing.assert_allclose(
            predictor(image).probabilities, from_many.probabilities, atol=1e-6
        )
    assert predictor([]) == []


def test_a_classification_reads_well(predictor, pictures):
    result = predictor(pictures.images[0])
    assert result.probabilities.shape == (10,)
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert result.name == result.class_names[result.label]
    top = result.top(3)
    assert top[0] == (result.name, result.score)
    assert [score for _, score in top] == sorted((s for _, s in top), reverse=True)


def test_files_arrays_sizes_and_modes(predictor, pictures, tmp_path):
    image = pictures.images[3]
    expected = predictor(image).probabilities
    grey = Image.fromarray(image[..., 0])
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "colour.png")
    for name in ("grey.png", "colour.png"):
        np.testing.assert_allclose(predictor(tmp_path / name).probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(predictor(image[..., 0]).probabilities, expected, atol=1e-6)
    rgb = np.repeat(image, 3, axis=-1)
    np.testing.assert_allclose(predictor(rgb).probabilities, expected, atol=1e-6)
    big = np.asarray(grey.resize((280, 280), Image.NEAREST))
    assert predictor(big).label == predictor(image).label


def test_what_is_not_a_picture_is_refused(predictor, tmp_path):
    (tmp_path / "no.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"no\.png"):
        predictor(tmp_path / "no.png")
    with pytest.raises(TypeError, match="uint8"):
        predictor(np.zeros((28, 28, 1)))
    with pytest.raises(ValueError, match="expected a picture"):
        predictor(np.zeros((2, 28, 28, 1), np.uint8))
