"""Pictures in rows: every pixel and word is there, and nothing breaks out of the drawing."""

from __future__ import annotations

import base64
import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from pipeline.pictures import Tile, grid, signed


def test_signed_pixels_are_blue_white_and_red() -> None:
    address = signed(np.array([[-2.0, 0.0, 2.0]]))
    raw = base64.b64decode(address.partition(",")[2])
    blue, white, red = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), int)[0]
    assert blue[2] > blue[0]
    assert white.min() > 240
    assert red[0] > red[2]
    assert signed(np.zeros((2, 2)))  # no scale to divide by


def test_a_grid_holds_every_picture_and_says_its_words_safely() -> None:
    address = signed(np.eye(3))
    rows = [[Tile(address, "<3 & more")] * 2, [Tile(address, "wrong", bad=True)]]
    markup = grid(rows, 'a "grid"', names=("first", "second"))
    root = ElementTree.fromstring(str(markup))  # noqa: S314 (our own markup)
    assert root.get("aria-label") == 'a "grid"'
    assert len(root.findall("image")) == 3
    words = {text.text: text.get("fill") for text in root.findall("text")}
    assert words.keys() == {"first", "second", "<3 & more", "wrong"}
    assert words["wrong"] != words["<3 & more"]
    # Nothing leaves the drawing, and pictures of one row do not overlap.
    width, height = map(float, (root.get("viewBox") or "").split()[2:])
    boxes = [
        [float(i.get(k) or 0) for k in ("x", "y", "width", "height")] for i in root.iter("image")
    ]
    assert all(x + w <= width + 0.1 and y + h <= height for x, y, w, h in boxes)
    assert boxes[0][0] + boxes[0][2] < boxes[1][0]
