"""Pictures in rows with words beneath them: one inline SVG that holds its own pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from PIL import Image

_WIDTH = 389  # units, as the plots are wide, so that words are of one size in a page
_GAP = 6
_LINE = 12  # units that a line of words takes
_WORDS = 9  # units high
_SHARE = 0.58  # width of a character as a share of its height, at most


@dataclass(frozen=True)
class Tile:
    """One picture as a data address, the words beneath it, and whether they are bad news."""

    address: str
    words: str = ""
    bad: bool = False


def signed(pixels: np.ndarray, largest: float | None = None) -> str:
    """[h, w] from blue (negative) over white (0) to red (positive), as a PNG data address.

    `largest` is the absolute value at the ends of the scale: of these pixels unless given.
    """
    values = pixels.astype(np.float64)
    share = values / ((largest or float(np.abs(values).max())) or 1.0) / 2 + 0.5
    colours = matplotlib.colormaps["RdBu_r"](share.clip(0, 1), bytes=True)
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(colours)[:, :, :3]).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def grid(
    rows: Sequence[Sequence[Tile]],
    alt: str,
    *,
    names: Sequence[str] = (),
    aspect: float = 1.0,
    smooth: bool = False,
) -> Markup:
    """Rows of tiles, each row named at its left; `aspect` is a picture's height over its width.

    Pixels stay squares unless `smooth`, which is for photographs.
    """
    left = _GAP + _SHARE * _WORDS * max(map(len, names)) if names else 0.0
    columns = max(len(row) for row in rows)
    width = (_WIDTH - left - _GAP * (columns - 1)) / columns
    height = width * aspect
    parts: list[str] = []
    top = 0.0
    for index, row in enumerate(rows):
        if names:
            parts.append(_text(names[index], 0, top + height / 2, "start"))
        for column, tile in enumerate(row):
            x = left + column * (width + _GAP)
            parts.append(
                f'<image href="{tile.address}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" preserveAspectRatio="none"/>'
            )
            if tile.words:
                y = top + height + 0.85 * _LINE
                parts.append(_text(tile.words, x + width / 2, y, "middle", tile.bad))
        top += height + _GAP + (_LINE if any(tile.words for tile in row) else 0)
    rendering = "auto" if smooth else "pixelated"
    return Markup(
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {_WIDTH} {top:.0f}" '
        f'style="image-rendering: {rendering}; font-size: {_WORDS}px">{"".join(parts)}</svg>'
    )


def _text(words: str, x: float, y: float, anchor: str, bad: bool = False) -> str:
    colour = "var(--bad)" if bad else "currentColor"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )
