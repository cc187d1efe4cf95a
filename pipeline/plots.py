"""Plots as inline SVG and arrays as PNG: the same numbers give the same bytes."""

from __future__ import annotations

import base64
import io
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        _limit(axes, 1, right, "limit")
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
        _legend(figure)
        return _svg(figure, alt)


def bars(
    name: str,
    rows: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    alt: str,
    *,
    xlabel: str,
    limit: tuple[float, str] | None = None,
) -> Markup:
    """A bar for each series on each row, on a logarithmic axis; a value of 0 has none.

    `limit` is a line with a word, beyond which is red. A value of None is a cross at the right.
    """
    known = [v for column in series.values() for v in column if v and math.isfinite(v)]
    ends = [*known, *([limit[0]] if limit else [])] or [1.0]
    left, right = min(ends) / 4, max(ends) * 4
    with _style(name):
        height = 1.05 + (0.12 + 0.16 * len(series)) * len(rows)
        figure, axes = _axes(height, left=0.15 + _width(rows), right=0.2, top=0.5)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        _scale_ticks(axes.xaxis, (left, right))
        if limit:
            _limit(axes, limit[0], right, limit[1])
        thick = 0.8 / len(series)
        for index, (label, column) in enumerate(series.items()):
            colour = _SERIES[index % len(_SERIES)]
            places = [row + (index + 0.5) * thick - 0.4 for row in range(len(rows))]
            wide = [max(v - left, 0) if v and math.isfinite(v) else 0 for v in column]
            axes.barh(places, wide, thick * 0.86, left=left, color=colour, label=label)
            for place, value in zip(places, column, strict=True):
                if value is None or math.isinf(value):
                    axes.plot(right, place, "x", color=_BAD, markersize=6, clip_on=False)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlabel(xlabel)
        if len(series) > 1:
            _legend(figure)
        return _svg(figure, alt)


def histogram(
    name: str,
    values: Sequence[float],
    alt: str,
    *,
    xlabel: str,
    ylabel: str,
    limit: tuple[float, str] | None = None,
) -> Markup:
    """How many values lie where on a logarithmic axis; those of 0 stand in the first bin.

    `limit` is a line with a word; beyond it is red.
    """
    known = [value for value in values if value > 0] + ([limit[0]] if limit and limit[0] else [])
    low, high = min(known, default=0.1) / 2, max(known, default=1.0) * 2
    edges = np.geomspace(low, high, max(8, min(24, round(4 * math.log10(high / low)))))
    with _style(name):
        figure, axes = _axes(2.4, left=0.6, right=0.2)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        _scale_ticks(axes.xaxis, (low, high))
        if limit and limit[0]:
            _limit(axes, limit[0], high, limit[1])
        axes.hist(np.clip(values, low, high), edges.tolist(), color=_SERIES[0], rwidth=0.9)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return _svg(figure, alt)


def picture(pixels: np.ndarray, low: float, high: float, largest: int = 112) -> str:
    """[1 or 3, h, w], values from `low` to `high`, as a PNG data address; shrunk to `largest`."""
    share = (np.nan_to_num(pixels.astype(np.float64)) - low) / ((high - low) or 1.0)
    channels = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(channels[0] if len(channels) == 1 else channels.transpose(1, 2, 0))
    image.thumbnail((largest, largest))
    return data_address(image)


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
    return data_address(image), min(_SHEET, columns * max(48, width))


def class_map(classes: np.ndarray, colours: Sequence[str], largest: int = 112) -> str:
    """[h, w] of class numbers in their colours, #rrggbb, as a PNG data address."""
    palette = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours], np.uint8)
    image = Image.fromarray(palette[classes])
    image.thumbnail((largest, largest), Image.Resampling.NEAREST)
    return data_address(image)


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


def _limit(axes: Axes, value: float, right: float, word: str) -> None:
    """A red line with its word, and what lies beyond it shaded."""
    axes.axvspan(value, right, color=_BAD, alpha=0.1, linewidth=0)
    axes.axvline(value, color=_BAD, linewidth=1.2)
    axes.annotate(
        word, (value, 1), (0, 3), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="center", va="bottom", fontsize=9, color=_BAD,
    )  # fmt: skip


def _legend(figure: Figure) -> None:
    figure.legend(loc="upper left", ncols=4, handletextpad=0.4, columnspacing=1.2, borderaxespad=0)


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


def data_address(image: Image.Image, **options: int) -> str:
    """A picture as a PNG inside an address."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
