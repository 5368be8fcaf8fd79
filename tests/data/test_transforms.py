import numpy as np
import pytest

from jaxvision.data import compose, random_crop, random_horizontal_flip

IMAGE = np.arange(1, 4 * 6 * 3 + 1, dtype=np.uint8).reshape(4, 6, 3)
EXAMPLE = {"image": IMAGE, "label": np.int32(7)}


def results(transform, count=300):
    return [transform(EXAMPLE, np.random.default_rng(seed))["image"] for seed in range(count)]


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flips_happen_with_their_probability_and_mirror_left_to_right(p):
    flipped = 0
    for image in results(random_horizontal_flip(p)):
        if not np.array_equal(image, IMAGE):
            np.testing.assert_array_equal(image[:, 0], IMAGE[:, -1])
            np.testing.assert_array_equal(image, np.fliplr(IMAGE))
            flipped += 1
    assert abs(flipped / 300 - p) < 0.1


def test_every_crop_of_the_padded_picture_comes_up_and_nothing_else():
    padded = np.full((6, 8, 3), 9, np.uint8)
    padded[1:5, 1:7] = IMAGE
    expected = {padded[y : y + 4, x : x + 6].tobytes() for y in range(3) for x in range(3)}
    got = results(random_crop((4, 6), padding=1, fill=9))
    assert {image.shape for image in got} == {(4, 6, 3)}
    assert {image.tobytes() for image in got} == expected


def test_a_crop_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match=r"at least 5 x 6 .*, got 4 x 6"):
        random_crop((5, 6))(EXAMPLE, np.random.default_rng(0))


def test_compose_goes_left_to_right_and_keeps_the_rest():
    def add(example, rng):
        return {**example, "image": example["image"] + 1}

    def double(example, rng):
        return {**example, "image": example["image"] * 2}

    got = compose(add, double)({"image": np.array([3]), "label": 7}, np.random.default_rng(0))
    assert (got["image"].tolist(), got["label"]) == ([8], 7)
    assert compose()(EXAMPLE, np.random.default_rng(0)) is EXAMPLE


def test_the_given_picture_is_not_changed():
    before = IMAGE.copy()
    results(compose(random_crop((4, 6), padding=2), random_horizontal_flip(1.0)), count=3)
    np.testing.assert_array_equal(IMAGE, before)


def test_a_probability_outside_0_to_1_is_an_error():
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        random_horizontal_flip(2.0)
