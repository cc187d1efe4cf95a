"""Augmentation: exact where geometry is exact, and nothing without settings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.augment import add_noise, affine, augment, draw_noise
from models.recipe import Training


def images(height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(0))


def test_a_quarter_turn_is_torchs() -> None:
    turned = affine(images(), degrees=90.0)
    torch.testing.assert_close(turned, images().rot90(1, (2, 3)), atol=1e-5, rtol=0)
    there_and_back = affine(affine(images(), degrees=90.0), degrees=-90.0)
    torch.testing.assert_close(there_and_back, images(), atol=1e-5, rtol=0)


@given(st.integers(0, 7), st.integers(0, 11))
def test_a_shift_by_whole_pixels_moves_them(down: int, right: int) -> None:
    source = images(8, 12)
    moved = affine(source, shift_x=right / 12, shift_y=down / 8)
    expected = torch.zeros_like(source)
    expected[:, :, down:, right:] = source[:, :, : 8 - down, : 12 - right]
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_a_turn_in_a_wide_picture_keeps_its_shape() -> None:
    """A square drawn in a wide picture is a square after a quarter turn."""
    source = torch.zeros(1, 1, 6, 12)
    source[0, 0, 2:4, 5:7] = 1
    torch.testing.assert_close(affine(source, degrees=90.0), source, atol=1e-5, rtol=0)


def test_scaling_enlarges_about_the_centre() -> None:
    source = torch.zeros(1, 1, 16, 16)
    source[0, 0, 6:10, 6:10] = 1
    assert affine(source, scale=2.0).sum() == pytest.approx(64, rel=0.1)
    assert affine(source, scale=0.5).sum() == pytest.approx(4, rel=0.3)
    assert affine(source, scale=2.0)[0, 0, 5:11, 5:11].min() == pytest.approx(1, abs=1e-5)


def test_amounts_are_each_pictures_own() -> None:
    turned = affine(images(), degrees=torch.tensor([0.0, 90.0, 180.0]))
    for quarter in range(3):
        expected = images()[quarter].rot90(quarter, (1, 2))
        torch.testing.assert_close(turned[quarter], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings", [Training(rotate=20), Training(shift=0.2), Training(scale=0.3)], ids=str
)
def test_every_setting_changes_pictures_each_time_otherwise(settings: Training) -> None:
    torch.manual_seed(0)
    one, two = augment(images(), settings), augment(images(), settings)
    assert not torch.equal(one, two)
    torch.manual_seed(0)
    assert torch.equal(augment(images(), settings), one)


def test_without_settings_nothing_is_changed_and_no_chance_is_spent() -> None:
    torch.manual_seed(0)
    assert torch.equal(augment(images(), Training()), images())
    assert torch.equal(draw_noise(images(), Training()), images())
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(1))


def test_each_row_draws_its_deviation_up_to_the_largest() -> None:
    torch.manual_seed(0)
    noise = draw_noise(torch.zeros(400, 1, 30, 30), Training(noise=0.3))
    deviations = noise.std((1, 2, 3))
    assert 0 <= float(deviations.min()) < 0.01
    assert 0.28 < float(deviations.max()) < 0.33
    assert float(deviations.mean()) == pytest.approx(0.15, rel=0.1)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    fixed = add_noise(torch.zeros(400, 1, 30, 30), 0.3).std((1, 2, 3))
    assert 0.25 < float(fixed.min()) < float(fixed.max()) < 0.35
