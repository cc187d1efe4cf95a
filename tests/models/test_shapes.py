"""Generated shapes: the pictures show the factors that made them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.shapes import FACTORS, draw, shapes

SIDE = 32
LOW, HIGH = np.transpose(list(FACTORS.values()))


@st.composite
def factors(draws: st.DrawFn) -> np.ndarray:
    shares = draws(st.tuples(*[st.floats(0, 1)] * len(FACTORS)))
    return (LOW + np.array(shares) * (HIGH - LOW))[None]


def moments(picture: np.ndarray) -> tuple[float, complex, complex]:
    """Area, middle and third moment about it, in shares of the side; x + iy."""
    centres = (np.arange(SIDE) + 0.5) / SIDE
    place = centres + 1j * centres[:, None]
    area = picture.sum()
    middle = (picture * place).sum() / area
    return area / SIDE**2, middle, (picture * (place - middle) ** 3).sum() / area


@given(factors())
def test_a_picture_shows_its_factors(row: np.ndarray) -> None:
    x, y, size, rotation = row[0]
    picture = draw(row, SIDE)[0, 0]
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    area, middle, third = moments(picture)
    assert area == pytest.approx(3 * np.sqrt(3) / 4 * size**2, rel=0.06)
    assert middle == pytest.approx(x + 1j * y, abs=0.1 / SIDE)
    # A third of a turn is a whole one for the third moment of a triangle.
    assert np.angle(third * np.exp(-3j * rotation)) == pytest.approx(0, abs=0.15)


@given(factors(), st.integers(-4, 4))
def test_a_whole_pixel_moves_the_same_picture(row: np.ndarray, pixels: int) -> None:
    moved = row + np.array([pixels / SIDE, 0, 0, 0])
    inner = slice(5, -5)
    before = np.roll(draw(row, SIDE)[0, 0], pixels, 1)
    np.testing.assert_allclose(draw(moved, SIDE)[0, 0][:, inner], before[:, inner], atol=1e-4)


@given(factors())
def test_mirrored_factors_make_the_mirrored_picture(row: np.ndarray) -> None:
    mirrored = row * [1, -1, 1, -1] + [0, 1, 0, 0]
    np.testing.assert_allclose(draw(mirrored, SIDE)[0, 0], draw(row, SIDE)[0, 0, ::-1], atol=1e-4)


def test_a_third_of_a_turn_is_not_seen_and_no_two_angles_of_the_range_look_alike() -> None:
    row = np.array([[0.5, 0.5, 0.25, 0.1]])
    third = row + np.array([0, 0, 0, 2 * np.pi / 3])
    np.testing.assert_allclose(draw(third, SIDE), draw(row, SIDE), atol=1e-4)
    angles = np.linspace(*FACTORS["rotation"], 9)
    pictures = draw(np.stack([[0.5, 0.5, 0.25, angle] for angle in angles]), SIDE).reshape(9, -1)
    apart = np.abs(pictures[:, None] - pictures).sum(2)
    assert (apart + 1e9 * np.eye(9)).min() > 1


def test_factors_are_uniform_and_independent() -> None:
    dataset = shapes(16)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [
        8000, 1000, 2000,
    ]  # fmt: skip
    assert dataset.digest == shapes(16).digest
    drawn = dataset.train.targets["factors"]
    assert drawn.dtype == np.float32
    shares = (drawn - LOW) / (HIGH - LOW)
    assert shares.min() >= -1e-6
    assert shares.max() <= 1 + 1e-6
    np.testing.assert_allclose(np.histogram(shares, 5)[0] / shares.size, 0.2, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(shares.T), np.eye(4), atol=0.04)
    image = dataset.train.inputs["image"]
    np.testing.assert_array_equal(image[:5], draw(drawn[:5], 16))


def test_every_shape_is_whole() -> None:
    """At its largest, in each corner and turned either way, it does not leave the picture."""
    corners = np.array(np.meshgrid(*FACTORS.values())).reshape(len(FACTORS), -1).T
    largest = corners[corners[:, 2] == HIGH[2]]
    pictures = draw(largest, SIDE)
    areas = pictures.sum((1, 2, 3)) / SIDE**2
    np.testing.assert_allclose(areas, 3 * np.sqrt(3) / 4 * HIGH[2] ** 2, rtol=0.02)
