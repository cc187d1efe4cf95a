"""A picture of any size over an engine of bounded size: overlapping tiles, without seams."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice, pairwise

import numpy as np

from models.codec import Codec, TiledImage
from models.signature import Axis, Signature, TensorSpec

# The numbers of classes are written as bytes.
MOST_CLASSES = 256


@dataclass(frozen=True)
class Span:
    """Along one axis: the tile's pixels [start, end), of which [first, last) are answered."""

    start: int
    end: int
    first: int
    last: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def inner(self) -> slice:
        """What is answered, counted from the tile's own start."""
        return slice(self.first - self.start, self.last - self.start)

    @property
    def outer(self) -> slice:
        """What is answered, counted from the picture's start."""
        return slice(self.first, self.last)


@dataclass(frozen=True)
class Tile:
    """A rectangle of the picture that is asked at once."""

    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The tile of a picture [..., height, width], as a view."""
        rows, columns = self.rows, self.columns
        return picture[..., rows.start : rows.end, columns.start : columns.end]

    def stitch(self, whole: np.ndarray, answer: np.ndarray) -> None:
        """Write the answered part of a tile's own [..., height, width] into the whole picture's."""
        whole[..., self.rows.outer, self.columns.outer] = answer[
            ..., self.rows.inner, self.columns.inner
        ]


def plan_spans(size: int, axis: Axis, margin: int, multiple: int) -> tuple[Span, ...]:
    """Spans that answer each of `size` pixels once; `size` is not below the axis' minimum.

    A picture that fits is one span. Otherwise all but the last are the largest multiple that the
    axis allows and the last ends where the picture does, so that windows and strides fall as they
    do over the whole. Neighbours overlap by twice the margin or more, and their seam lies in the
    middle of it. An axis that `tileable` refuses has no such spans.
    """
    largest = axis.max // multiple * multiple
    stride = (largest - 2 * margin) // multiple * multiple
    starts = [0]
    while size - starts[-1] > axis.max:
        # The last may have to begin earlier, for no tile is smaller than the axis' minimum.
        latest = (size - axis.min) // multiple * multiple
        starts.append(min(starts[-1] + stride, latest))
    ends = [*(start + largest for start in starts[:-1]), size]
    seams = [(start + end) // 2 for start, end in zip(starts[1:], ends[:-1], strict=True)]
    return tuple(
        Span(start, end, first, last)
        for start, end, (first, last) in zip(starts, ends, pairwise([0, *seams, size]), strict=True)
    )


def plan_tiles(height: int, width: int, axes: tuple[Axis, Axis], wanted: TiledImage) -> list[Tile]:
    """Tiles that answer each pixel of a picture once, those of equal size after one another."""
    rows, columns = (
        plan_spans(size, axis, wanted.margin, wanted.multiple)
        for size, axis in zip((height, width), axes, strict=True)
    )
    tiles = [Tile(r, c) for r in rows for c in columns]
    return sorted(tiles, key=lambda tile: tile.size, reverse=True)


def group_tiles(tiles: Iterable[Tile], most: int) -> Iterator[list[Tile]]:
    """Runs of at most `most` neighbouring tiles of one size, which an engine takes together."""
    for _, alike in groupby(tiles, key=lambda tile: tile.size):
        while group := list(islice(alike, most)):
            yield group


def picture_axes(spec: TensorSpec) -> tuple[Axis, Axis]:
    """The heights and widths of the pictures that an input takes."""
    height, width = (s if isinstance(s, Axis) else Axis("fixed", s, s, s) for s in spec.shape[2:])
    return height, width


def tileable(axis: Axis, wanted: TiledImage) -> bool:
    """Whether pictures of every size can be cut into tiles of this axis.

    The largest tile has to leave a core between its margins, and tiles that begin at every
    multiple have to reach every end.
    """
    largest = axis.max // wanted.multiple * wanted.multiple
    core = largest - 2 * wanted.margin
    return core >= wanted.multiple and axis.max - axis.min >= wanted.multiple - 1


def tiling_problem(codec: Codec, signature: Signature) -> tuple[str, object, object] | None:
    """Why pictures cannot be tiled: what the codec does, got and expected; None where they can."""
    tiled, size = codec.tiled, len(codec.classes)
    if tiled is None and codec.pixels is None:
        return None
    if tiled is None or codec.pixels is None:
        return "names tiled pictures or pixels alone", None, "both"
    inputs = {spec.name: spec for spec in signature.inputs}
    outputs = {spec.name: spec for spec in signature.outputs}
    spec, answer = inputs.get(tiled.name), outputs.get(codec.pixels)
    if spec is None or len(inputs) != 1 or not _takes_pictures(spec, tiled, signature):
        wanted = f"one input {tiled.name!r} of floats [batch, 1 or 3 channels, height, width]"
        return f"reads pictures of {tiled.channels} channels into {tiled.name!r}", spec, wanted
    if answer is None or not answer.picture or answer.shape[1:] != (size, *spec.shape[2:]):
        wanted = f"floats [batch, {size}, height, width] as the input's"
        return f"names {size} classes of pixels in {codec.pixels!r}", answer, wanted
    if not 1 <= size <= MOST_CLASSES:
        return "names pixels of no or too many classes", size, f"1 to {MOST_CLASSES}"
    for colour in codec.colours:
        if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            return "names a colour", repr(colour), "#rrggbb"
    for axis in picture_axes(spec):
        if not tileable(axis, tiled):
            got = f"{axis} with a margin of {tiled.margin} at multiples of {tiled.multiple}"
            return "cuts no tiles of this size", got, "max >= 2 margin + multiple, and > min"
    return None


def _takes_pictures(spec: TensorSpec, tiled: TiledImage, signature: Signature) -> bool:
    batched = signature.batch is not None and signature.batch.min == 1
    return batched and spec.picture and spec.shape[1] == tiled.channels in (1, 3)


def mirror(picture: np.ndarray, axes: tuple[Axis, Axis]) -> np.ndarray:
    """The picture [channels, height, width], mirrored at its end up to the axes' minimum."""
    missing = [
        (0, max(0, axis.min - size)) for axis, size in zip(axes, picture.shape[1:], strict=True)
    ]
    return np.pad(picture, [(0, 0), *missing], mode="symmetric") if np.any(missing) else picture
