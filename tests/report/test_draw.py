"""Pictures in captions and grids."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxvision.report import theme
from jaxvision.report.draw import as_rgb, encode_picture, picture_grid, prediction_caption
from jaxvision.report.embed import to_png


def pixels(size, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_are_encoded_exactly(channels):
    image = pixels((28, 20), channels)
    kind, data = encode_picture(image)
    assert kind == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), as_rgb(image))


def test_large_pictures_shrink_and_keep_their_shape():
    kind, data = encode_picture(pixels((600, 300)), longest=200)
    assert kind == "image/jpeg"
    assert Image.open(io.BytesIO(data)).size == (100, 200)


@pytest.mark.parametrize("shape", [(4, 4, 2), (4, 4, 4), (0, 4, 3)])
def test_wrong_shapes_say_what_was_expected(shape):
    with pytest.raises(ValueError, match=r"expected uint8 pictures .* got shape \[1, "):
        as_rgb(np.zeros(shape, np.uint8))


def test_captions_carry_a_sign_besides_the_colour():
    assert prediction_caption("a", "a", 0.25) == ["✓ a", "25.0 % sure"]
    assert prediction_caption("a", "b", 1.0) == ["✗ b", "100.0 % sure", "true: a"]


def test_grid_frames_right_green_and_wrong_red():
    captions = [["one", "$x_{$"], ["two"], ["three"]]
    figure = picture_grid(
        np.stack([pixels((8, 8), 1, i) for i in range(3)]), captions, [True, False, True], columns=2
    )
    assert len(figure.axes) == 4
    labels = [axes.xaxis.label for axes in figure.axes[:3]]
    assert [x.get_text() for x in labels] == ["one\n$x_{$", "two", "three"]
    assert [x.get_color() for x in labels] == [theme.RIGHT, theme.WRONG, theme.RIGHT]
    shown = figure.axes[1].images[0].get_array()
    np.testing.assert_array_equal(shown, as_rgb(pixels((8, 8), 1, 1)))
    assert to_png(figure, dpi=30).startswith(b"\x89PNG")


def test_an_empty_grid_and_missing_captions():
    assert to_png(picture_grid(np.zeros((0, 8, 8, 3), np.uint8), []), dpi=30)
    with pytest.raises(ValueError, match="for each of 2 pictures"):
        picture_grid(np.zeros((2, 8, 8, 3), np.uint8), [["one"]])
