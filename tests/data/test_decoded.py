"""What is kept decoded beside the prepared records."""

import numpy as np
import pytest

from jaxvision.data import load_dataset, prepared, recipes


@pytest.mark.parametrize(
    "fault", ["none", "cut", "byte flipped", "label changed", "pickle", "other type", "missing"]
)
def test_decoded_pictures_are_kept_checked_and_made_again(tmp_path, tiny_full, monkeypatch, fault):
    options = {"data_dir": tmp_path, "announce": lambda line: None}
    before = load_dataset("fashion_mnist", source=tiny_full, **options)
    kept = tmp_path / "fashion_mnist" / "full" / "1.0.0" / "train-images.npy"
    good = kept.read_bytes()
    if fault == "cut":
        kept.write_bytes(good[:-5000])
    elif fault == "byte flipped":
        kept.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif fault == "label changed":
        labels = kept.with_name("train-labels.npy")
        data = labels.read_bytes()
        labels.write_bytes(data[:-1] + bytes([(data[-1] + 1) % 10]))
    elif fault == "pickle":
        np.save(kept, np.array([print], dtype=object))
    elif fault == "other type":
        np.save(kept, before.images.astype(np.float32))
    elif fault == "missing":
        kept.unlink()
    decoded = []
    original = recipes.read_images
    monkeypatch.setattr(recipes, "read_images", lambda *a: decoded.append(a) or original(*a))
    after = load_dataset("fashion_mnist", **options)
    np.testing.assert_array_equal(after.images, before.images)
    np.testing.assert_array_equal(after.labels, before.labels)
    assert len(decoded) == (fault != "none")
    assert kept.read_bytes() == good


def test_a_folder_that_cannot_keep_decoded_pictures_is_no_error(tmp_path):
    array = np.zeros((2, 3), np.uint8)
    prepared.write_decoded(tmp_path / "missing" / "a.npy", array)
    (tmp_path / "a.npy").mkdir()
    prepared.write_decoded(tmp_path / "a.npy", array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
