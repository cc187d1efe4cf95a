"""Tiles answer each pixel once, fit the engine, and together say what the whole would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.codec import Codec, TiledImage
from models.signature import Axis, Signature, TensorSpec
from serving.tiles import group_tiles, mirror, plan_spans, plan_tiles, tileable, tiling_problem


def tiled(margin: int, multiple: int, channels: int = 1) -> TiledImage:
    return TiledImage(name="image", channels=channels, margin=margin, multiple=multiple)


@st.composite
def planned(draw: st.DrawFn) -> tuple[Axis, TiledImage]:
    """An axis and a way to tile it that fit together."""
    wanted = tiled(draw(st.integers(0, 9)), draw(st.integers(1, 8)))
    low = draw(st.integers(1, 40))
    high = low + draw(st.integers(0, 40))
    axis = Axis("side", low, low, high)
    assume(tileable(axis, wanted))
    return axis, wanted


@given(planned(), st.integers(0, 400))
def test_spans_answer_each_pixel_once_and_fit_the_engine(
    plan: tuple[Axis, TiledImage], more: int
) -> None:
    axis, wanted = plan
    size = axis.min + more
    spans = plan_spans(size, axis, wanted.margin, wanted.multiple)
    answered = [pixel for span in spans for pixel in range(size)[span.outer]]
    assert answered == list(range(size))
    for span in spans:
        assert 0 <= span.start <= span.first < span.last <= span.end <= size
        assert axis.min <= span.size <= axis.max
        assert span.start % wanted.multiple == 0
        # At an inner edge the margin is dropped; windows end there as they do over the whole.
        if span.start > 0:
            assert span.first - span.start >= wanted.margin
        if span.end < size:
            assert span.end - span.last >= wanted.margin
            assert span.end % wanted.multiple == 0
    assert len(spans) == 1 or size > axis.max


def network(picture: np.ndarray, radius: int, multiple: int, border: str) -> np.ndarray:
    """Each block's largest value, then the sum over a box: it sees radius + multiple - 1 pixels.

    A block begins at a multiple of its size, and may be cut at the end; beyond its border the
    picture is taken as zeros, or as mirrored.
    """
    tall, wide = picture.shape
    blocks = np.add.outer(np.arange(tall) // multiple * 1000, np.arange(wide) // multiple)
    largest = np.zeros_like(picture)
    for block in np.unique(blocks):
        largest[blocks == block] = picture[blocks == block].max()
    mirrored = np.pad(largest, radius, mode="symmetric")
    padded = mirrored if border == "mirrored" else np.pad(largest, radius)
    side = 2 * radius + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (side, side)).sum((2, 3))


def stitched(
    picture: np.ndarray, wanted: TiledImage, radius: int, multiple: int, border: str = "zeros"
) -> np.ndarray:
    """What that network says of a picture that is cut into tiles of 10 to 26 pixels a side."""
    whole = np.full_like(picture, -1)
    side = Axis("side", 10, 20, 26)
    tall, wide = picture.shape
    for tile in plan_tiles(tall, wide, (side, side), wanted):
        tile.stitch(whole, network(tile.cut(picture), radius, multiple, border))
    return whole


@given(
    radius=st.integers(0, 2), multiple=st.integers(1, 4), slack=st.integers(0, 3),
    size=st.tuples(st.integers(10, 70), st.integers(10, 70)), seed=st.integers(0, 99),
    border=st.sampled_from(["zeros", "mirrored"]),
)  # fmt: skip
def test_stitched_equals_whole(
    radius: int, multiple: int, slack: int, size: tuple[int, int], seed: int, border: str
) -> None:
    wanted = tiled(radius + multiple - 1 + slack, multiple)
    picture = np.random.default_rng(seed).integers(0, 1000, size)
    expected = network(picture, radius, multiple, border)
    np.testing.assert_array_equal(stitched(picture, wanted, radius, multiple, border), expected)


@pytest.mark.parametrize(
    "wrong", [{"margin": 0}, {"multiple": 5}], ids=["no margin", "another multiple"]
)
def test_a_codec_that_is_wrong_shows_seams(wrong: dict[str, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 1000, (60, 70))
    expected = network(picture, 2, 4, "zeros")
    right = tiled(5, 4)
    np.testing.assert_array_equal(stitched(picture, right, 2, 4), expected)
    assert (stitched(picture, right.model_copy(update=wrong), 2, 4) != expected).any()


@given(planned(), planned(), st.integers(0, 150), st.integers(0, 150), st.integers(1, 5))
def test_groups_hold_every_tile_once_and_one_size_each(
    rows: tuple[Axis, TiledImage], columns: tuple[Axis, TiledImage], tall: int, wide: int, most: int
) -> None:
    axes = (rows[0], columns[0])
    wanted = rows[1]
    assume(tileable(axes[1], wanted))
    height, width = axes[0].min + tall, axes[1].min + wide
    tiles = plan_tiles(height, width, axes, wanted)
    groups = list(group_tiles(tiles, most))
    assert [tile for group in groups for tile in group] == tiles
    assert all(len(group) <= most and len({t.size for t in group}) == 1 for group in groups)
    assert sum(len(group) < most for group in groups) <= len({tile.size for tile in tiles})
    times = np.zeros((height, width), int)
    for tile in tiles:
        tile.stitch(times, tile.cut(times) + 1)
    np.testing.assert_array_equal(times, 1)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_what_is_too_small_is_mirrored_at_its_end(
    tall: int, wide: int, low: int, high: int
) -> None:
    axes = (Axis("height", low, low, 20), Axis("width", high, high, 20))
    picture = np.random.default_rng(0).random((2, tall, wide))
    larger = mirror(picture, axes)
    assert larger.shape == (2, max(tall, low), max(wide, high))
    np.testing.assert_array_equal(larger[:, :tall, :wide], picture)
    # There and back, each edge pixel twice, as many times as it takes.
    waves = [np.r_[:side, side - 1 : -1 : -1] for side in (tall, wide)]
    rows, columns = (np.resize(w, n) for w, n in zip(waves, larger.shape[1:], strict=True))
    np.testing.assert_array_equal(larger, picture[:, rows][:, :, columns])


BATCH = Axis("batch", 1, 2, 4)


def signature(channels: int = 1, low: int = 16, high: int = 64, classes: int = 2) -> Signature:
    height, width = (Axis(name, low, high, high) for name in ("height", "width"))
    return Signature(
        (TensorSpec("image", "float32", (BATCH, channels, height, width), 0.0, 1.0),),
        (
            TensorSpec("probabilities", "float32", (BATCH, classes, height, width)),
            TensorSpec("turned", "float32", (BATCH, classes, width, height)),
        ),
    )


CODEC = Codec(
    tiled=tiled(8, 4), pixels="probabilities", classes=("a", "b"), colours=("#000000", "#FF00ff")
)


def test_a_codec_that_fits_its_signature_has_no_problem() -> None:
    assert tiling_problem(CODEC, signature()) is None
    assert tiling_problem(Codec(), signature()) is None
    colour = CODEC.model_copy(update={"tiled": tiled(8, 4, channels=3)})
    assert tiling_problem(colour, signature(channels=3)) is None


@pytest.mark.parametrize(
    ("codec", "sizes", "said"),
    [
        ({"tiled": None}, {}, "alone"),
        ({"pixels": None}, {}, "alone"),
        ({"tiled": TiledImage(name="x", margin=1, multiple=1)}, {}, "into 'x'"),
        ({}, {"channels": 3}, "pictures of 1 channels"),
        ({"tiled": tiled(8, 4, channels=2)}, {"channels": 2}, "pictures of 2 channels"),
        ({}, {"classes": 3}, "names 2 classes of pixels in 'probabilities'"),
        ({"pixels": "turned"}, {}, "names 2 classes of pixels in 'turned'"),
        ({"pixels": "nothing"}, {}, "in 'nothing'"),
        ({"colours": ("#000000", "red")}, {}, "names a colour"),
        ({"tiled": tiled(31, 4)}, {}, "cuts no tiles"),
        ({}, {"low": 62}, "cuts no tiles"),
    ],
)
def test_a_codec_that_does_not_fit_has_one(
    codec: dict[str, object], sizes: dict[str, int], said: str
) -> None:
    problem = tiling_problem(CODEC.model_copy(update=codec), signature(**sizes))
    assert problem is not None
    assert said in problem[0]
