import numpy as np
import pytest
from PIL import Image

from jaxvision.data import read_image
from jaxvision.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(picture, name="picture.png", **options):
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def test_rgb_and_grey(save):
    np.testing.assert_array_equal(read_image(save(Image.fromarray(RGB))), RGB)
    grey = read_image(save(Image.fromarray(RGB)), channels=1)
    assert (grey.shape, grey.dtype) == ((4, 6, 1), np.uint8)
    # ITU-R 601, as in torchvision's rgb_to_grayscale.
    np.testing.assert_allclose(grey[..., 0], RGB @ [0.299, 0.587, 0.114], atol=1)
    path = save(Image.fromarray(RGB[..., 0]))
    np.testing.assert_array_equal(read_image(path), np.repeat(RGB[..., :1], 3, axis=-1))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x)),
    ],
)
@pytest.mark.parametrize("sixteen_bits", [False, True])
def test_exif_orientation_is_applied(save, orientation, upright, sixteen_bits):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = RGB[..., 0].astype(np.uint16) * 257 if sixteen_bits else RGB
    got = read_image(save(Image.fromarray(stored), exif=exif))
    expected = np.repeat(RGB[..., :1], 3, axis=-1) if sixteen_bits else RGB
    np.testing.assert_array_equal(got, upright(expected))


def test_sixteen_bits_are_scaled_not_clipped(save):
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for path in (
        save(Image.fromarray(values)),
        save(Image.fromarray(values), "picture.tif"),
        save(Image.fromarray(values.astype(np.int32)), "picture32.tif"),
    ):
        assert read_image(path, channels=1)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_palettes_and_bilevel(save):
    picture = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), mode=None).convert("P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = [[[255, 0, 0], [0, 255, 0]], [[0, 255, 0], [0, 0, 255]]]
    for name in ("picture.png", "picture.gif"):
        assert read_image(save(picture, name)).tolist() == expected
    bilevel = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_image(save(bilevel), channels=1).tolist() == [[[0], [255]]]


def test_cmyk(save):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    got = read_image(save(picture, "picture.jpg", quality=95))
    np.testing.assert_allclose(got, np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=8)


def test_transparency_is_put_on_white(save):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    expected = [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    assert read_image(save(Image.fromarray(rgba))).tolist() == expected
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 5, 6, 7])
    got = read_image(save(palette, "p.png", transparency=0))
    assert got.tolist() == [[[255, 255, 255], [5, 6, 7]]]
    la = Image.fromarray(np.array([[[10, 0], [10, 255]]], np.uint8), mode=None)
    assert read_image(save(la), channels=1).tolist() == [[[255], [10]]]


def test_only_1_or_3_channels(save):
    with pytest.raises(ValueError, match="1 or 3, got 4"):
        read_image(save(Image.fromarray(RGB)), channels=4)


@pytest.mark.parametrize(
    "name", ["picture.png", "picture.jpg", "picture.gif", "picture.tif", "p.webp"]
)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_one_clear_error(save, name, kept):
    big = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(Image.fromarray(big), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    check_error(path)


def test_other_files_are_one_clear_error(tmp_path):
    (tmp_path / "notes.png").write_text("this is not a picture")
    for path in (tmp_path / "notes.png", tmp_path / "missing.png", tmp_path):
        check_error(path)
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    check_error(tmp_path / "float.tif")


def test_a_decompression_bomb_is_refused(save, monkeypatch):
    path = save(Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    check_error(path)


def check_error(path):
    with pytest.raises(UserError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
