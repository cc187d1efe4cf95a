"""Plots as inline SVG and arrays as PNG: the same numbers give the same bytes."""

from __future__ import annotations

import base64
import io
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Points = tuple[Sequence[float], Sequence[float]]

_MOST_TILES = 64
_MOST_CELLS = 1 << 18

# Stand-ins that become the page's own colours, so that one drawing serves light and dark.
_INK, _BAD = "#010203", "#010204"
_PAGE_COLOURS = {_INK: "currentColor", _BAD: "var(--bad)"}
# Legible on white and on near-black alike.
_SERIES = ("#3b82f6", "#e2711d", "#12a594", "#d6409f", "#8e6bd8", "#8a8f3c")
_DEPTH = LinearSegmentedColormap.from_list("depth", (_SERIES[0], "#a86f9e", _SERIES[1]))
_MARKERS = "os^DvP"
_SHEET = 720  # CSS pixels, of many pictures together
_LABELS = 8  # more labels than this do not fit beside a plot
_LONGEST = 28  # characters of a label beside a plot
_WIDTH = 5.4  # inches; at 72 points each this is read well on a phone and in half a page

_STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": _INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
# matplotlib's settings are global: drawings of two threads must not see each other's.
_SETTINGS = threading.Lock()


@dataclass(frozen=True)
class Filters:
    """A layer's weights as a picture `width` pixels wide, or only a sentence that says why not."""

    note: str
    picture: str = ""
    width: int = 0


def lines(
    name: str,
    series: Mapping[str, Points],
    alt: str,
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    ordered: bool = False,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Lines of (x, y) with their names at their ends; `mark` is a vertical line with a word.

    `name` must be unique in the page: it keeps the ids of two drawings apart. `ordered` colours
    the series from first to last, as layers are. On a logarithmic axis, values of 0 are left out.
    """
    with _style(name):
        figure, axes = _axes(3.1, left=0.68, right=0.25 + max(0.85, _width(series)))
        if log_y:
            axes.set_yscale("log")
            _scale_ticks(axes.yaxis, (y for _, ys in series.values() for y in ys))
        if log_x:
            axes.set_xscale("log", base=2)
            ticks: list[float] = []
            for x in sorted({x for xs, _ in series.values() for x in xs}, reverse=True):
                if not ticks or x < ticks[-1] / 1.3:  # beside 64, 63 would be unreadable
                    ticks.append(x)
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        colours = _colours(len(series), ordered)
        ends = []
        for (label, (xs, ys)), colour in zip(series.items(), colours, strict=True):
            seen = [y if math.isfinite(y) and (y > 0 or not log_y) else math.nan for y in ys]
            marker = "o" if len(xs) <= 12 else None
            axes.plot(xs, seen, color=colour, marker=marker)
            known = [(x, y) for x, y in zip(xs, seen, strict=True) if not math.isnan(y)]
            if known:
                ends.append((label, *known[-1], colour))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if mark:
            axes.axvline(mark[0], color=_INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.6)
            axes.annotate(
                mark[1], (mark[0], 1), (0, 3), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="bottom", fontsize=9,
            )  # fmt: skip
        _label_ends(axes, ends)
        return _svg(figure, alt)


def dots(
    name: str,
    rows: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    alt: str,
    *,
    xlabel: str,
) -> Markup:
    """Each series' value on each row, on a logarithmic axis on which 1 is the limit.

    A value of 0 is a hollow mark at the left edge, one that is infinite or None a cross at the
    right edge; NaN is not drawn.
    """
    values = [v for column in series.values() for v in column if v and math.isfinite(v)]
    left = min([*values, 0.1]) / 3
    right = max([*values, 1.0]) * 6
    with _style(name):
        figure, axes = _axes(1.05 + 0.21 * len(rows), left=0.15 + _width(rows), right=0.15, top=0.5)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        _scale_ticks(axes.xaxis, (left, right))
        axes.axvspan(1, right, color=_BAD, alpha=0.1, linewidth=0)
        axes.axvline(1, color=_BAD, linewidth=1.2)
        axes.annotate(
            "limit", (1, 1), (0, 3), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="bottom", fontsize=9, color=_BAD,
        )  # fmt: skip
        for index, (label, column) in enumerate(series.items()):
            colour, marker = _SERIES[index % len(_SERIES)], _MARKERS[index % len(_MARKERS)]
            axes.plot([], [], marker, color=colour, label=label)
            shift = (index - (len(series) - 1) / 2) * min(0.25, 0.7 / len(series))
            for row, value in enumerate(column):
                y = row + shift
                if value is not None and math.isnan(value):
                    continue
                if value is None or math.isinf(value):
                    axes.plot(right, y, "x", color=_BAD, markersize=6, clip_on=False)
                elif value == 0:
                    axes.plot(left, y, marker, color=colour, fillstyle="none", clip_on=False)
                else:
                    axes.plot(value, y, marker, color=colour)
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(xlabel)
        figure.legend(
            loc="upper left", ncols=4, handletextpad=0.2, columnspacing=1.2, borderaxespad=0
        )
        return _svg(figure, alt)


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


def picture(pixels: np.ndarray, low: float, high: float, largest: int = 112) -> str:
    """[1 or 3, h, w], values from `low` to `high`, as a PNG data address; shrunk to `largest`."""
    share = (np.nan_to_num(pixels.astype(np.float64)) - low) / ((high - low) or 1.0)
    channels = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(channels[0] if len(channels) == 1 else channels.transpose(1, 2, 0))
    image.thumbnail((largest, largest))
    return _data_address(image)


def sheet(pictures: np.ndarray) -> tuple[str, int]:
    """Pictures uint8 [rows, columns, 1 or 3, h, w] side by side, as a PNG, and how wide to show it.

    A pixel is shown as large as fits, up to 48 pixels for a whole picture.
    """
    rows, columns, channels, height, width = pictures.shape
    gap = 1
    tall, wide = height + gap, width + gap
    whole = np.full((rows * tall - gap, columns * wide - gap, channels), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * tall, column * wide
            whole[top : top + height, left : left + width] = pictures[row, column].transpose(
                1, 2, 0
            )
    image = Image.fromarray(whole[:, :, 0] if channels == 1 else whole)
    return _data_address(image), min(_SHEET, columns * max(48, width))


def class_map(classes: np.ndarray, colours: Sequence[str], largest: int = 112) -> str:
    """[h, w] of class numbers in their colours, #rrggbb, as a PNG data address."""
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], np.uint8)
    image = Image.fromarray(palette[classes])
    image.thumbnail((largest, largest), Image.Resampling.NEAREST)
    return _data_address(image)


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
        return _data_address(Image.fromarray(np.dstack([canvas, filled])))
    image = Image.fromarray(canvas)
    colours = matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 255), bytes=True)
    image.putpalette(np.asarray(colours)[:, :3].tobytes() + bytes(3))
    return _data_address(image, transparency=255)


@contextmanager
def _style(name: str) -> Iterator[None]:
    with _SETTINGS, matplotlib.rc_context():
        matplotlib.rcdefaults()  # nobody's matplotlibrc changes a report
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": name})
        yield


def _axes(height: float, *, left: float, right: float, top: float = 0.28) -> tuple[Figure, Axes]:
    """A figure with margins in inches: the browser's font cannot be measured here."""
    figure = Figure((_WIDTH, height))
    bottom = 0.5
    box = (
        left / _WIDTH,
        bottom / height,
        1 - (left + right) / _WIDTH,
        1 - (bottom + top) / height,
    )
    return figure, figure.add_axes(box)


def _width(texts: Iterable[str]) -> float:
    """Inches that the longest text beside a plot takes."""
    return 0.083 * max((len(_short(text)) for text in texts), default=0)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _colours(count: int, ordered: bool) -> list[str]:
    if not ordered:
        return [_SERIES[index % len(_SERIES)] for index in range(count)]
    shares = np.linspace(0, 1, max(count, 2))[:count]
    return [to_hex(_DEPTH(share)) for share in shares]


def _scale_ticks(axis: Axis, values: Iterable[float]) -> None:
    """Label a logarithmic axis at powers of ten, and between them where they are few."""
    known = [value for value in values if value > 0]
    narrow = max(known, default=1.0) < 100 * min(known, default=1.0)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    """0.01 as it is, 2e-05 as 2·10⁻⁵."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    digits, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def _label_ends(axes: Axes, ends: list[tuple[str, float, float, str]]) -> None:
    """Write each name to the right of where its line ends, moved apart where they would overlap."""
    if len(ends) > _LABELS:
        ends = [ends[i] for i in np.linspace(0, len(ends) - 1, _LABELS).round().astype(int)]
    axes.get_ylim()  # decides the limits, which the transformation needs
    to_share = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (float(to_share.transform((x, y))[1]), i) for i, (_, x, y, _) in enumerate(ends)
    )
    gap = 0.08
    heights = [share for share, _ in placed]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + gap)
    for k in reversed(range(len(heights))):
        heights[k] = min(heights[k], 1.0 if k == len(heights) - 1 else heights[k + 1] - gap)
    for height, (_, index) in zip(heights, placed, strict=True):
        label, x, y, colour = ends[index]
        axes.annotate(
            _short(label), (x, y), (1.03, height), xycoords="data", textcoords="axes fraction",
            va="center", color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
        )  # fmt: skip


def _svg(figure: Figure, alt: str) -> Markup:
    """The drawing for a page: named for readers, in the page's font and colours, ids its own."""
    buffer = io.StringIO()
    silent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=silent)
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    view = re.search(r'viewBox="[^"]*"', body)
    body = body[body.index(">") + 1 :]
    used = set(re.findall(r"#(\w+)", body))
    body = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("xlink:href", "href").replace("> <", "><")
    for stand_in, colour in _PAGE_COLOURS.items():
        body = body.replace(stand_in, colour)
    head = f'<svg role="img" aria-label="{escape(alt)}" {view[0] if view else ""}>'
    return Markup(head + body.strip())


def _data_address(image: Image.Image, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
