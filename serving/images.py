"""An uploaded picture, by anybody and of any content, as the array that a model takes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from models.codec import ImageInput
from models.errors import BadInput

LARGEST_UPLOAD = 16 * 2**20
# 50 million pixels is a large camera's picture and, decoded, 150 MB.
LARGEST_PICTURE = 50_000_000
FORMATS = ("PNG", "JPEG")
_MODES = {1: "L", 3: "RGB"}


def read_image(data: bytes, wanted: ImageInput, *, invert: bool = False) -> np.ndarray:
    """A PNG or JPEG as float32 [1, channels, height, width] in [0, 1], resized.

    `invert` turns dark on light into light on dark. Raises `BadInput`.
    """
    picture = open_picture(data).convert(_MODES[wanted.channels])
    picture = picture.resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
    scaled = pixels(picture, wanted.channels).astype(np.float32) / np.float32(255)
    if invert:
        scaled = np.float32(1) - scaled
    return np.ascontiguousarray(scaled[None])


def open_picture(data: bytes, *, largest: int = LARGEST_PICTURE) -> Image.Image:
    """A PNG or JPEG of at most `largest` pixels, decoded, upright and opaque.

    What the file says it is decides, not its name or content type. Transparent parts become
    white. Raises `BadInput`.
    """
    if len(data) > LARGEST_UPLOAD:
        raise BadInput(
            "the image is too large", got=len(data), expected=f"at most {LARGEST_UPLOAD} bytes"
        )
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


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture)
    return picture
