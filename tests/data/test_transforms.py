import numpy as np
import pytest

from jaxvision.data import (
    classification_train,
    color_jitter,
    compose,
    every_picture,
    rand_augment,
    random_crop,
    random_erasing,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
    trivial_augment_wide,
)
from jaxvision.data.images import to_picture
from jaxvision.data.transforms import PictureTransform, as_array

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


# On Pillow's form and on arrays

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
OURS = {
    "flip": random_horizontal_flip(),
    "vertical flip": random_vertical_flip(),
    "crop": random_crop((20, 25), padding=3, fill=7),
    "resized crop": random_resized_crop((12, 17)),
    "jitter": color_jitter(0.4, 0.4, 0.4, 0.2),
    "RandAugment": rand_augment(),
    "TrivialAugment": trivial_augment_wide(),
    "erasing": random_erasing(1.0),
    "noise": random_erasing(1.0, fill="noise"),
    "preset": classification_train(16, auto_augment="rand_augment", erase=0.5),
    "composed": compose(random_horizontal_flip(), random_crop((20, 20))),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OURS)
def test_arrays_and_pillow_pictures_get_the_same(name, channels):
    transform, image, seen = OURS[name], PHOTO[..., :channels], set()
    before = image.copy()
    for seed in range(40):
        array, picture = (
            transform({"image": form, "label": 1}, np.random.default_rng(seed))
            for form in (image, to_picture(image))
        )
        assert isinstance(array["image"], np.ndarray)
        assert not isinstance(picture["image"], np.ndarray)
        np.testing.assert_array_equal(array["image"], as_array(picture)["image"])
        assert array["image"].dtype == np.uint8
        assert array["image"].shape[-1] == channels
        assert array["label"] == 1
        seen.add(array["image"].tobytes())
    np.testing.assert_array_equal(image, before)
    assert len(seen) > (1 if "flip" in name else 5)


def test_only_our_own_compose_to_one_of_ours():
    def own(example, rng):
        assert isinstance(example["image"], np.ndarray)
        return example

    flip = random_horizontal_flip()
    assert isinstance(compose(flip, flip), PictureTransform)
    mixed = compose(flip, own, flip)
    assert not isinstance(mixed, PictureTransform)
    mixed({"image": to_picture(PHOTO), "label": 0}, np.random.default_rng(0))


def test_a_preset_of_evaluation_may_be_followed_by_others():
    transform = compose(every_picture(lambda picture: np.asarray(picture)[:8]), random_crop((4, 4)))
    image = transform({"image": PHOTO, "label": 0}, np.random.default_rng(0))["image"]
    assert image.shape == (4, 4, 3)


def test_vertical_flips():
    flipped = [image for image in results(random_vertical_flip(0.4)) if image[0, 0, 0] != 1]
    assert abs(len(flipped) / 300 - 0.4) < 0.1
    np.testing.assert_array_equal(flipped[0], IMAGE[::-1])


# Distributions


def test_resized_crops_cover_their_range_of_areas():
    """A picture whose levels are its columns shows how wide the box was."""
    columns = np.tile(np.arange(200, dtype=np.uint8)[:, None], (200, 1, 1))
    crop = random_resized_crop((1, 200), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    ramps = []
    for seed in range(50):
        example = crop({"image": columns, "label": 0}, np.random.default_rng(seed))
        ramp = example["image"][0, :, 0].astype(int)
        ramps.append((ramp[0], ramp[-1] - ramp[0]))
    starts, widths = np.array(ramps).T
    assert (abs(widths - 99) <= 1).all()  # a quarter of the area: half the side
    assert starts.min() < 10
    assert starts.max() > 90


def test_erased_boxes_have_the_colour_and_a_size_within_the_range():
    black = np.zeros((60, 80, 3), np.uint8)
    erase = random_erasing(1.0, scale=(0.1, 0.2), fill=(1, 2, 3))
    shares = []
    for seed in range(100):
        image = erase({"image": black, "label": 0}, np.random.default_rng(seed))["image"]
        erased = image[..., 0] == 1
        assert (image[erased] == [1, 2, 3]).all()
        rows, columns = np.nonzero(erased.any(axis=1))[0], np.nonzero(erased.any(axis=0))[0]
        assert erased.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # one box
        shares.append(erased.mean())
    assert 0.09 < min(shares) < 0.115
    assert 0.185 < max(shares) < 0.21
    changed = [
        random_erasing(0.3)({"image": black, "label": 0}, np.random.default_rng(seed))[
            "image"
        ].any()
        for seed in range(300)
    ]
    assert abs(np.mean(changed) - 0.3) < 0.1


def test_jitters_use_their_whole_range_and_every_order():
    grey = np.full((2, 2, 3), 100, np.uint8)
    levels = [
        int(image[0, 0, 0])
        for seed in range(200)
        for image in [
            color_jitter(brightness=0.5)({"image": grey}, np.random.default_rng(seed))["image"]
        ]
    ]
    assert min(levels) in range(50, 56)
    assert max(levels) in range(145, 151)
    fixed = dict(brightness=(1.7, 1.7), contrast=(0.5, 0.5), saturation=(1.6, 1.6), hue=(0.2, 0.2))
    patch = {"image": PHOTO[:12, :12]}
    results = {
        color_jitter(**fixed)(patch, np.random.default_rng(seed))["image"].tobytes()
        for seed in range(300)
    }
    assert len(results) == 24
    np.testing.assert_array_equal(
        color_jitter()({"image": PHOTO}, np.random.default_rng(0))["image"], PHOTO
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: color_jitter(hue=0.6), "range of hue within -0.5 and 0.5"),
        (lambda: color_jitter(brightness=(-0.1, 1.0)), "range of brightness within 0.0"),
        (lambda: color_jitter(contrast=(2.0, 1.0)), "range of contrast"),
        (lambda: random_resized_crop(4, scale=(0.5, 1.2)), "a scale within 0 and 1"),
        (lambda: random_erasing(ratio=(2.0, 1.0)), "lower bound first"),
        (lambda: random_erasing(1.1), "from 0 to 1, got 1.1"),
        (lambda: rand_augment(magnitude=31), "from 0 to 30, got 31"),
    ],
)
def test_impossible_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
