"""The first layer's weights as a picture: kernels, or a small matrix, as tiles."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image

from pipeline.plots import data_address

_MOST_TILES = 64
_MOST_CELLS = 1 << 18


@dataclass(frozen=True)
class Filters:
    """A layer's weights as a picture `width` pixels wide, or only a sentence that says why not."""

    note: str
    picture: str = ""
    width: int = 0


def filters(name: str, weights: np.ndarray) -> Filters:
    """Kernels [out, in, h, w] as tiles, of many those of largest norm; a small matrix whole."""
    shape = " x ".join(str(size) for size in weights.shape)
    what = f"{name} [{shape}]"
    scale = f"largest absolute weight {np.abs(weights).max():.3g}"
    signs = f"blue negative, white zero, red positive, {scale}"
    if weights.ndim == 4 and weights.shape[1] in (1, 3):
        tiles, chosen = _strongest(weights)
        if weights.shape[1] == 1:
            return _tiled(tiles[:, 0], 16, f"{what}: {chosen}; {signs}.")
        note = f"{what}: {chosen}; each input channel as a colour, mid-grey is zero, {scale}."
        return _tiled(tiles.transpose(0, 2, 3, 1), 16, note)
    if weights.ndim == 4 and weights.shape[1] <= _MOST_TILES:
        kept = weights[: max(1, _MOST_TILES // weights.shape[1])]
        note = f"{what}: a row of kernels for each of {len(kept)} outputs, a column for each input"
        return _tiled(kept.reshape(-1, *kept.shape[2:]), kept.shape[1], f"{note}; {signs}.")
    if weights.ndim == 2 and weights.size <= _MOST_CELLS:
        return _tiled(weights[None], 1, f"{what}: a row for each output; {signs}.")
    return Filters(f"{what} is not drawn: it is no stack of kernels and no small matrix.")


def _strongest(weights: np.ndarray) -> tuple[np.ndarray, str]:
    """The units of largest norm in their own order, and how many of how many they are."""
    if len(weights) <= _MOST_TILES:
        return weights, f"all {len(weights)} units"
    norms = np.sqrt((weights.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    chosen = np.sort(np.argsort(-norms, kind="stable")[:_MOST_TILES])
    return weights[chosen], f"the {_MOST_TILES} of {len(weights)} units with the largest norms"


def _tiled(tiles: np.ndarray, columns: int, note: str) -> Filters:
    columns = min(columns, len(tiles))
    across = columns * (tiles.shape[2] + 1) - 1
    # Small kernels are enlarged until one is about 56 pixels wide, if the page is.
    return Filters(note, _mosaic(tiles, columns), across * max(1, 56 // tiles.shape[2]))


def _mosaic(tiles: np.ndarray, columns: int) -> str:
    """Tiles [n, h, w], or [n, h, w, 3] in colour, with gaps between, as a PNG data address.

    Grey values are shown from blue (negative) over white (0) to red; colours around mid-grey.
    Either way the largest absolute value of all tiles is the end of the scale.
    """
    count, height, width = tiles.shape[:3]
    share = tiles / (np.abs(tiles).max() or 1.0) / 2 + 0.5
    # Of 256 palette entries the last is the transparent gap.
    empty = 255 if tiles.ndim == 3 else 0
    top = 254 if tiles.ndim == 3 else 255
    values = np.rint(np.nan_to_num(share) * top).astype(np.uint8)
    rows = -(-count // columns)
    shape = (rows * (height + 1) - 1, columns * (width + 1) - 1)
    canvas = np.full((*shape, *tiles.shape[3:]), empty, np.uint8)
    filled = np.zeros(shape, np.uint8)
    for index in range(count):
        y, x = index // columns * (height + 1), index % columns * (width + 1)
        canvas[y : y + height, x : x + width] = values[index]
        filled[y : y + height, x : x + width] = 255
    if tiles.ndim == 4:
        return data_address(Image.fromarray(np.dstack([canvas, filled])))
    image = Image.fromarray(canvas)
    colours = matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 255), bytes=True)
    image.putpalette(np.asarray(colours)[:, :3].tobytes() + bytes(3))
    return data_address(image, transparency=255)
