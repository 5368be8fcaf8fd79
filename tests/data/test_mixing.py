import numpy as np
import pytest

from jaxvision.data import cutmix, mixup, random_choice
from jaxvision.data.mixing import mix_labels, one_hot


def batch(size=5):
    """Picture i is all 10 * i, with label i."""
    images = np.repeat(np.arange(size, dtype=np.uint8) * 10, 8 * 6 * 3).reshape(size, 8, 6, 3)
    return {
        "image": images,
        "label": np.arange(size, dtype=np.int32),
        "valid": np.arange(size) < size - 1,
    }


@pytest.mark.parametrize("transform", [mixup(5), cutmix(5), random_choice(mixup(5), cutmix(5))])
def test_pictures_and_labels_have_the_same_shares(transform):
    given = batch()
    shares = []
    for seed in range(100):
        mixed = transform(given, np.random.default_rng(seed))
        assert (mixed["image"].dtype, mixed["soft_label"].dtype) == (np.uint8, np.float32)
        for name in ("label", "valid"):
            assert mixed[name] is given[name]
        for i in range(5):
            share = mixed["soft_label"][i, i]
            partner = (i - 1) % 5
            assert mixed["soft_label"][i, partner] == pytest.approx(1 - share, abs=1e-6)
            level = 10 * (share * i + (1 - share) * partner)
            assert mixed["image"][i].mean() == pytest.approx(level, abs=0.51)
        shares.append(share)
    np.testing.assert_array_equal(given["image"], batch()["image"])
    assert min(shares) < 0.6  # of CutMix less is rare: what sticks out of the picture is lost
    assert max(shares) > 0.9


def test_a_small_alpha_mixes_little():
    shares = [
        mixup(5, alpha=0.1)(batch(), np.random.default_rng(seed))["soft_label"][0, 0]
        for seed in range(200)
    ]
    assert np.mean([min(share, 1 - share) < 0.05 for share in shares]) > 0.6


def test_labels_that_are_soft_already_are_mixed_again():
    soft = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], np.float32)
    mixed = mix_labels({"label": np.array([0, 2]), "soft_label": soft}, 3, 0.75)
    np.testing.assert_allclose(mixed, [[0.375, 0.375, 0.25], [0.125, 0.125, 0.75]])


def test_impossible_labels_and_options():
    with pytest.raises(ValueError, match="labels from 0 to 3, got 0 to 4"):
        one_hot(np.arange(5), 4)
    with pytest.raises(ValueError, match="above 0, got 5 and 0"):
        mixup(5, alpha=0.0)
