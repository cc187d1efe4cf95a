"""An uploaded picture, by anybody and of any content, as the array that a model takes."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.codec import ImageInput
from models.errors import BadInput
from serving.settings import Settings

LARGEST_UPLOAD = 16 * 2**20
# A large camera's picture and, decoded, 192 MB; less than what Pillow itself warns of.
LARGEST_PICTURE = Settings.largest_pixels
FORMATS = ("PNG", "JPEG")
# Progressive encoders write about ten scans, and each costs a pass over all pixels: 200 kB with 206
# of them took 26 seconds to decode, measured.
MOST_SCANS = 32
# Each is a turn of Pillow's own loop: a second for 100,000.
MOST_PARTS = 10_000
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # but those that stand in a scan's data
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_MODES = {1: "L", 3: "RGB"}


def read_image(
    data: bytes, wanted: ImageInput, *, invert: bool = False, largest: int = LARGEST_PICTURE
) -> np.ndarray:
    """A PNG or JPEG of `largest` pixels at most as float32 [1, channels, height, width], resized.

    Values are of [0, 1]; `invert` turns dark on light into light on dark. Raises `BadInput`.
    """
    picture = open_picture(data, largest=largest).convert(_MODES[wanted.channels])
    picture = picture.resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
    scaled = pixels(picture, wanted.channels).astype(np.float32) / np.float32(255)
    if invert:
        scaled = np.float32(1) - scaled
    return np.ascontiguousarray(scaled[None])


def open_picture(data: bytes, *, largest: int = LARGEST_PICTURE) -> Image.Image:
    """A PNG or JPEG of at most `largest` pixels, decoded, upright and opaque.

    What the file says it is decides, not its name or content type. Of several pictures in it only
    the first is decoded. Transparent parts become white. Raises `BadInput`.
    """
    if len(data) > LARGEST_UPLOAD:
        raise BadInput(
            "the image is too large", got=len(data), expected=f"at most {LARGEST_UPLOAD} bytes"
        )
    _check_parts(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        # Checked before a pixel is decoded; Pillow itself refuses the largest while opening.
        if width * height > largest:
            raise Image.DecompressionBombError(f"{width} x {height} pixels")
        picture.load()
        return _opaque(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise BadInput(
            "the image is too large", got=error, expected=f"at most {largest} pixels"
        ) from error
    except UnidentifiedImageError as error:
        raise BadInput(
            "the image cannot be read", got=f"{len(data)} bytes", expected="a PNG or JPEG file"
        ) from error
    except Exception as error:  # Pillow raises many kinds for a corrupt file
        raise BadInput("the image is corrupt", got=str(error) or type(error).__name__) from error


def pixels(picture: Image.Image, channels: int) -> np.ndarray:
    """The picture as uint8 [channels, height, width]: grey for one channel, RGB for three."""
    array = np.asarray(picture.convert(_MODES[channels]))
    return array.reshape(picture.height, picture.width, channels).transpose(2, 0, 1)


def _check_parts(data: bytes) -> None:
    """Refuse a file of more parts, or scans of a JPEG, than an encoder writes."""
    png = data.startswith(b"\x89PNG")
    place, parts, scans = 8 if png else 2, 0, 0
    while place + 8 <= len(data) and parts <= MOST_PARTS and scans <= MOST_SCANS:
        if png:
            place += 12 + int.from_bytes(data[place : place + 4])
        else:
            marker = _MARKER.search(data, place)
            if marker is None or marker[0] == _END:
                break
            scans += marker[0] == _SCAN
            place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
        parts += 1
    if parts > MOST_PARTS or scans > MOST_SCANS:
        got, most = (scans, MOST_SCANS) if scans > MOST_SCANS else (parts, MOST_PARTS)
        raise BadInput(
            f"the image has too many {'scans' if scans > MOST_SCANS else 'parts'}",
            got=f"{got} or more", expected=f"at most {most}",
        )  # fmt: skip


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture)
    return picture
