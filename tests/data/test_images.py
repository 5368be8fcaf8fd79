import numpy as np
import pytest
from PIL import Image

from jaxvision.data import decode_image, read_image
from jaxvision.data.images import check_header, to_array, to_picture
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


def test_sixteen_bit_colour_and_transparency(tmp_path):
    """Pillow itself reads 16-bit RGB as 8-bit; cv2 writes what Pillow can't."""
    import cv2

    rgba = np.zeros((1, 2, 4), np.uint16)
    rgba[0, :, :] = [[65535, 32768, 0, 65535], [9, 9, 9, 0]]
    cv2.imwrite(str(tmp_path / "deep.png"), rgba[..., [2, 1, 0, 3]])
    got = read_image(tmp_path / "deep.png")
    np.testing.assert_allclose(got, [[[255, 128, 0], [255, 255, 255]]], atol=1)


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp"])
def test_an_animation_gives_its_first_frame(save, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(frames[0], name, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(path) as opened:
        assert opened.n_frames == 2
    assert (read_image(path) == [255, 0, 0]).all()


def test_bytes_are_read_as_the_file_is(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    for picture, name in [(Image.fromarray(RGB), "a.jpg"), (Image.new("CMYK", (9, 5)), "b.jpg")]:
        path = save(picture, name, exif=exif)
        for channels in (1, 3):
            got = decode_image(path.read_bytes(), channels=channels)
            np.testing.assert_array_equal(got, read_image(path, channels=channels))
            assert got.shape == (*picture.size, channels)  # turned by a quarter
    with pytest.raises(UserError, match=r"^upload: expected a picture"):
        decode_image(b"junk", name="upload")
    with pytest.raises(UserError, match=r"^picture: expected a complete picture"):
        decode_image(path.read_bytes()[:-200])


def test_an_array_can_be_written_to(save):
    image = read_image(save(Image.fromarray(RGB)))
    image[:] = 0


def test_the_header_is_enough_for_a_quick_check(save, tmp_path):
    path = save(Image.fromarray(np.tile(RGB, (20, 20, 1))), "a.jpg")
    check_header(path)
    data = path.read_bytes()
    check_header(data[: len(data) * 3 // 4])  # broken, but it begins well
    with pytest.raises(UserError, match="got a file of another kind"):
        check_header(b"junk")
    with pytest.raises(UserError, match="no such file"):
        check_header(tmp_path / "missing.jpg")


def test_arrays_and_pictures_are_the_same_thing():
    for image in (RGB, RGB[..., :1], RGB[::2, 1:5]):
        np.testing.assert_array_equal(to_array(to_picture(image)), image)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        to_picture(np.zeros((2, 2, 4), np.uint8))


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
