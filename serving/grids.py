"""Pictures as one PNG: a grid of rows and columns, each pixel enlarged to a square."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from models.errors import BadInput

LARGEST_GRID = 16_000_000  # pixels
LARGEST_SCALE = 32


def columns_of(count: int) -> int:
    """How many columns make a grid of so many pictures about square."""
    return math.ceil(math.sqrt(count))


def grid_png(pictures: np.ndarray, columns: int, scale: int) -> bytes:
    """Pictures [count, 1 or 3, height, width] in [0, 1], row by row, what is left over black.

    Raises `BadInput` for a grid that is too large.
    """
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    tall, wide = rows * height * scale, columns * width * scale
    if tall * wide > LARGEST_GRID:
        raise BadInput(
            "the grid is too large",
            got=f"{wide} x {tall} pixels",
            expected=f"at most {LARGEST_GRID} pixels",
            fix="ask for fewer pictures or a smaller 'scale'",
        )
    cells = np.zeros((rows * columns, channels, height, width), np.uint8)
    cells[:count] = np.rint(np.clip(pictures, 0, 1) * 255)
    whole = cells.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    whole = whole.reshape(rows * height, columns * width, channels)
    image = Image.fromarray(whole.squeeze(2) if channels == 1 else whole)
    file = io.BytesIO()
    image.resize((wide, tall), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def paired(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
    """Two sets of pictures as one for a grid: each row of the first above its row of the second."""
    count, *picture = above.shape
    rows = -(-count // columns)
    cells = np.zeros((rows, 2, columns, *picture), above.dtype)
    for place, pictures in enumerate((above, below)):
        padded = np.zeros((rows * columns, *picture), above.dtype)
        padded[:count] = pictures
        cells[:, place] = padded.reshape(rows, columns, *picture)
    return cells.reshape(rows * 2 * columns, *picture)
