"""Classes of pixels as pictures for people: a coloured map, and the colours over a picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from starlette.responses import Response

from models.codec import Codec


def paint(codec: Codec, classes: np.ndarray) -> Image.Image:
    """Class numbers [height, width] as a picture with a palette of the classes' colours."""
    painted = Image.fromarray(classes).copy()
    painted.putpalette(bytes.fromhex("".join(codec.colours).replace("#", "")))
    return painted


def overlay(codec: Codec, classes: np.ndarray, picture: Image.Image, opacity: float) -> Image.Image:
    """The picture with each pixel's colour moved by `opacity` towards that of its class."""
    return Image.blend(picture.convert("RGB"), paint(codec, classes).convert("RGB"), opacity)


def png(picture: Image.Image) -> Response:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")
