"""Uploaded pictures become the arrays a model takes, or a refusal before they are decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image

from models.codec import ImageInput
from models.errors import BadInput
from serving.images import LARGEST_UPLOAD, read_image

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


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has these many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8000, 8000), (60000, 60000)])
def test_an_image_bomb_is_refused_undecoded(size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match=r"too large.*expected at most 50000000 pixels"):
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
    ],
)
def test_what_is_no_sound_picture_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_image(data, GREY)
