import gzip
import hashlib

import numpy as np
import pytest

from jaxvision.data.idx import decompressed_sha256, find_idx, idx_bytes, idx_sha256, read_idx
from jaxvision.errors import UserError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
# Written out by hand from the format's description, not by the code under test.
BYTES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + bytes(range(24))
SHAPE = (None, 3, 4)


@pytest.fixture(params=["raw", "gzip"])
def write(request, tmp_path):
    def write(data: bytes):
        path = tmp_path / ("x.gz" if request.param == "gzip" else "x")
        path.write_bytes(gzip.compress(data) if request.param == "gzip" else data)
        return path

    return write


def test_it_reads_raw_and_gzipped_files(write):
    sha256 = hashlib.sha256(BYTES).hexdigest()
    path = write(BYTES)
    images = read_idx(path, shape=SHAPE, sha256=sha256)
    np.testing.assert_array_equal(images, IMAGES)
    assert images.dtype == np.uint8
    assert images.flags.writeable
    assert decompressed_sha256(path) == sha256 == idx_sha256(IMAGES)
    assert idx_bytes(IMAGES) == BYTES


@pytest.mark.parametrize(
    ("data", "shape", "expected"),
    [
        (
            BYTES[:-1],
            SHAPE,
            "truncated: expected 24 bytes of data for dimensions 2 x 3 x 4, got 23",
        ),
        (BYTES[:16], SHAPE, "expected 24 bytes of data for dimensions 2 x 3 x 4, got 0 bytes"),
        (BYTES[:9], SHAPE, "truncated: expected a header of 16 bytes, got 9"),
        (b"", SHAPE, "(magic number 0x00000803), got 0x"),
        (BYTES + b"!", SHAPE, "trailing bytes: expected 24 bytes of data"),
        (BYTES, (None,), "(magic number 0x00000801), got 0x00000803"),
        (b"<html>not found</html>", SHAPE, "(magic number 0x00000803), got 0x3c68746d"),
        (BYTES, (None, 28, 28), "expected dimensions any x 28 x 28, got 2 x 3 x 4"),
        (BYTES, (3, 3, 4), "expected dimensions 3 x 3 x 4, got 2 x 3 x 4"),
        # A header that promises 280 TB must not be believed.
        (BYTES[:4] + b"\0\0\xff\xff" * 3 + b"x", SHAPE, "truncated: expected 281,462,092,005,375"),
    ],
    ids=[
        "data",
        "header-only",
        "cut-header",
        "empty",
        "trailing",
        "labels",
        "html",
        "dims",
        "count",
        "lying-header",
    ],
)
def test_each_fault_is_one_line_with_the_file_expected_and_got(write, data, shape, expected):
    path = write(data)
    with pytest.raises(UserError) as caught:
        read_idx(path, shape=shape)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_sha256_names_both(write):
    with pytest.raises(UserError, match=f"expected sha256 {'0' * 64} .*, got [0-9a-f]{{64}}"):
        read_idx(write(BYTES), shape=SHAPE, sha256="0" * 64)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda z: z[: len(z) // 2], "truncated"),
        (lambda z: z[:-4], "truncated"),
        (lambda z: z[:12] + bytes([z[12] ^ 255]) + z[13:], "damaged gzip data"),
        (lambda z: z[:-6] + bytes([z[-6] ^ 255]) + z[-5:], "damaged gzip data"),  # the CRC
        (lambda z: z + b"garbage", "damaged gzip data"),
    ],
)
@pytest.mark.parametrize("read", [lambda p: read_idx(p, shape=SHAPE), decompressed_sha256])
def test_damaged_gzip_is_one_clear_error(tmp_path, damage, expected, read):
    path = tmp_path / "x.gz"
    path.write_bytes(damage(gzip.compress(BYTES)))
    with pytest.raises(UserError, match=expected) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="there is none"):
        read_idx(tmp_path / "x", shape=SHAPE)
    with pytest.raises(UserError, match="Is a directory"):
        read_idx(tmp_path, shape=SHAPE)
    with pytest.raises(UserError, match="no such folder"):
        find_idx(tmp_path / "nowhere", "x")
    with pytest.raises(UserError, match=r"expected x.gz or x in this folder"):
        find_idx(tmp_path, "x")


def test_the_zipped_file_is_preferred(tmp_path):
    (tmp_path / "x").touch()
    assert find_idx(tmp_path, "x").name == "x"
    (tmp_path / "x.gz").touch()
    assert find_idx(tmp_path, "x").name == "x.gz"
