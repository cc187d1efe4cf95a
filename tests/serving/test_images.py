"""Uploaded pictures become the arrays a model takes, or a refusal before they are decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from models.codec import ImageInput
from models.errors import BadInput
from serving.images import LARGEST_PICTURE, LARGEST_UPLOAD, MOST_PARTS, MOST_SCANS, read_image

GREY = ImageInput(name="image", height=5, width=4)
COLOUR = ImageInput(name="image", height=5, width=4, channels=3)


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


@given(hnp.arrays(np.uint8, (5, 4)))
def test_a_grey_picture_of_the_right_size_is_its_pixels_over_255(pixels: np.ndarray) -> None:
    read = read_image(encoded(Image.fromarray(pixels)), GREY)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[0, 0], pixels / np.float32(255))
    inverted = read_image(encoded(Image.fromarray(pixels)), GREY, invert=True)
    np.testing.assert_array_equal(inverted, 1 - read)


@given(hnp.arrays(np.uint8, (5, 4, 3)))
def test_a_colour_picture_keeps_its_channels(pixels: np.ndarray) -> None:
    read = read_image(encoded(Image.fromarray(pixels)), COLOUR)
    np.testing.assert_array_equal(read[0], pixels.transpose(2, 0, 1) / np.float32(255))


def test_resizing_keeps_a_constant() -> None:
    read = read_image(encoded(Image.new("L", (97, 31), 51)), GREY)
    np.testing.assert_array_equal(read, np.full((1, 1, 5, 4), np.float32(0.2)))


def test_transparent_parts_are_white() -> None:
    for mode, clear in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        read = read_image(encoded(Image.new(mode, (4, 5), clear)), GREY)
        np.testing.assert_array_equal(read, np.ones((1, 1, 5, 4), np.float32))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    read = read_image(encoded(Image.fromarray(np.full((5, 4), 0x80FF, np.uint16))), GREY)
    np.testing.assert_array_equal(read, np.full((1, 1, 5, 4), np.float32(128) / np.float32(255)))


def test_a_camera_that_was_turned_is_turned_back() -> None:
    pixels = np.zeros((4, 5), np.uint8)
    pixels[0] = 255
    orientation = Image.Exif()
    orientation[0x0112] = 6
    read = read_image(encoded(Image.fromarray(pixels), exif=orientation.tobytes()), GREY)
    np.testing.assert_array_equal(read[0, 0, :, -1], np.ones(5, np.float32))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int, *more: bytes, rows: bytes = b"") -> bytes:
    """A PNG of a few bytes that says it has these many pixels, with more chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def scanned(more: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.effect_noise((64, 64), 50), "JPEG", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * more + data[-2:]


# Formats that Pillow reads and that nobody here may send.
FOREIGN = ("BMP", "PPM", "WEBP", "ICO", "TGA", "PDF", "EPS", "ICNS", "PCX", "SGI", "DDS", "SPIDER")


@pytest.mark.parametrize("size", [(8001, 8000), (60000, 60000)])
def test_an_image_bomb_is_refused_undecoded(size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=rf"too large.*expected at most {LARGEST_PICTURE} pixels"):
        read_image(bomb(*size), GREY)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected a PNG or JPEG"),
        (b"no picture", "expected a PNG or JPEG"),
        (encoded(Image.new("L", (9, 9)), "GIF"), "expected a PNG or JPEG"),
        (encoded(Image.new("L", (9, 9)), "TIFF"), "expected a PNG or JPEG"),
        (bomb(4, 5), "corrupt"),
        (encoded(Image.effect_noise((99, 99), 50))[:2000], "corrupt"),
        (encoded(Image.effect_noise((99, 99), 50), "JPEG")[:900], "corrupt"),
        (bytes(LARGEST_UPLOAD + 1), "too large"),
        (scanned(MOST_SCANS), "too many scans"),
        (bomb(4, 5, chunk(b"tEXt", b"k\0v") * MOST_PARTS), "too many parts"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * (MOST_PARTS + 3), "too many parts"),
        # 50 MB of nothing in 50 kB, as a text, a profile, and many texts
        (bomb(4, 5, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50 * 2**20)))), "corrupt"),
        (bomb(4, 5, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50 * 2**20)))), "corrupt"),
        (bomb(4, 5, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20))) * 70), "corrupt"),
        *((encoded(Image.new("RGB", (9, 9)), kind), "expected a PNG or JPEG") for kind in FOREIGN),
    ],
)
def test_what_is_no_sound_picture_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_image(data, GREY)


def test_the_limit_of_pixels_is_the_callers() -> None:
    picture = encoded(Image.new("L", (10, 10), 51))
    np.testing.assert_allclose(read_image(picture, GREY, largest=100), 0.2, rtol=1e-6)
    with pytest.raises(BadInput, match="10 x 10 pixels, expected at most 99 pixels"):
        read_image(picture, GREY, largest=99)


def test_a_sound_progressive_picture_of_many_scans_is_read() -> None:
    data = scanned(MOST_SCANS - 10)
    assert data.count(b"\xff\xda") > 20
    assert read_image(data, GREY).shape == (1, 1, 5, 4)


@pytest.mark.parametrize("format", ["PNG", "MPO"])
def test_of_several_pictures_the_first_is_read(format: str) -> None:
    """Animated PNGs, and the several pictures that telephones put into one JPEG."""
    frames = [Image.new("RGB", (9, 9), (51,) * 3), Image.new("RGB", (9, 9), (255,) * 3)]
    data = encoded(frames[0], format, save_all=True, append_images=[frames[1]] * 5)
    with Image.open(io.BytesIO(data)) as several:
        assert getattr(several, "n_frames", 1) == 6
    np.testing.assert_allclose(read_image(data, COLOUR), 0.2, atol=1e-2)


@given(st.binary(max_size=300), st.integers(0, 600), st.booleans())
def test_no_damage_escapes_as_another_error(noise: bytes, place: int, png: bool) -> None:
    sound = encoded(Image.effect_noise((30, 30), 50), "PNG" if png else "JPEG")
    damaged = sound[:place] + noise + sound[place + len(noise) :]
    try:
        read = read_image(damaged, GREY)
    except BadInput:
        return
    assert read.shape == (1, 1, 5, 4)
    assert read.min() >= 0 <= read.max() <= 1
