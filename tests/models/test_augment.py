"""Augmentation: exact where geometry is exact, and nothing without settings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.augment import add_noise, affine, augment, augment_maps, draw_noise
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


def maps(height: int = 16, width: int = 16, classes: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, classes, (4, height, width), generator=generator)


def both(settings: Training, height: int = 16, width: int = 16) -> tuple[torch.Tensor, ...]:
    """Pictures whose values are their classes, and those classes, before and after."""
    before = maps(height, width)
    moved, after = augment_maps(before[:, None].float(), before, settings, bent=1)
    return before, moved, after


def test_maps_without_settings_are_untouched_and_no_chance_is_spent() -> None:
    torch.manual_seed(0)
    before = maps()
    pictures, after = augment_maps(before[:, None].float(), before, Training())
    assert torch.equal(after, before)
    assert torch.equal(pictures[:, 0], before.float())
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(1))


def test_flips_are_torchs_and_each_row_draws_its_own() -> None:
    torch.manual_seed(3)
    seen = set()
    for _ in range(20):
        before, moved, after = both(Training(flip=True), 16, 20)
        torch.testing.assert_close(moved[:, 0], after.float(), atol=1e-4, rtol=0)
        for row, was in zip(after, before, strict=True):
            flips = {dims: was.flip(dims) for dims in ((), (0,), (1,), (0, 1))}
            (dims,) = [dims for dims, flipped in flips.items() if torch.equal(row, flipped)]
            seen.add(dims)
        pictures = images(16, 20)
        flipped = augment(pictures, Training(flip=True))
        assert torch.allclose(flipped.sort(3)[0].sum(), pictures.sum(), atol=1e-3)
    assert len(seen) == 4


@pytest.mark.parametrize("degrees", [90.0, 180.0])
def test_quarter_turns_of_maps_are_torchs(degrees: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.ones(shape))  # turns by all of it
    before, moved, after = both(Training(rotate=degrees))
    assert torch.equal(after, before.rot90(int(degrees // 90), (1, 2)))
    torch.testing.assert_close(moved[:, 0], after.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        Training(rotate=180),
        Training(shift=0.3),
        Training(scale=0.3),
        Training(elastic=3),
        Training(elastic=3, rotate=180, scale=0.2, shift=0.1, flip=True, crop=32),
    ],
    ids=lambda settings: str(settings.model_dump(exclude_defaults=True)),
)
def test_a_map_moves_with_its_picture(settings: Training) -> None:
    """The nearest of four pixels weighs a quarter or more: a class above 3/4 is the map's."""
    before = maps(6, 6).repeat_interleave(8, 1).repeat_interleave(8, 2)
    sure = 0.0
    for value in range(3):
        torch.manual_seed(0)
        share, after = augment_maps((before == value)[:, None].float(), before, settings)
        assert after.dtype == torch.int64
        assert bool((after[share[:, 0] > 0.751] == value).all())
        sure += float((share > 0.751).float().mean())
    assert 0.8 < sure <= 1


@pytest.mark.parametrize(("height", "width"), [(40, 56), (24, 24), (16, 40)])
def test_a_crop_is_a_window_of_the_picture(height: int, width: int) -> None:
    torch.manual_seed(0)
    before, moved, after = both(Training(crop=24), height, width)
    sides = min(24, height), min(24, width)
    assert tuple(after.shape[1:]) == sides
    torch.testing.assert_close(moved[:, 0], after.float(), atol=1e-4, rtol=0)
    for row, was in zip(after, before, strict=True):
        windows = was.unfold(0, sides[0], 1).unfold(1, sides[1], 1)
        assert bool((windows == row).all(dim=(2, 3)).any())
    if height > 24:
        assert not torch.equal(after, both(Training(crop=24), height, width)[2])


def test_an_elastic_bend_has_the_deviation_that_was_asked_for() -> None:
    """Of pictures whose values are their own x, the change is the displacement in pixels."""
    torch.manual_seed(0)
    x = torch.arange(64.0).expand(300, 1, 64, 64)
    nothing = torch.zeros(300, 64, 64, dtype=torch.int64)
    bent = augment_maps(x, nothing, Training(elastic=2.0), bent=1)[0]
    middle = (bent - x)[:, 0, 32, 32]  # beside the coarse grid's middle point
    assert float(middle.std()) == pytest.approx(2.0, rel=0.15)
    assert float(middle.mean()) == pytest.approx(0.0, abs=0.4)
    assert float((bent - x).diff(dim=3)[:, :, 16:48, 16:48].abs().max()) < 1


def test_half_of_the_pictures_keep_their_grain() -> None:
    """Those are the picture itself; the others lie between its pixels."""
    torch.manual_seed(0)
    pictures = torch.rand(1, 1, 32, 32).expand(200, 1, 32, 32)
    nothing = torch.zeros(200, 32, 32, dtype=torch.int64)
    moved = augment_maps(pictures, nothing, Training(rotate=20, elastic=2.0))[0]
    kept = (moved - pictures).abs().amax((1, 2, 3)) < 1e-5
    assert 80 < int(kept.sum()) < 120


def test_what_comes_in_from_outside_is_mirrored() -> None:
    ones = torch.ones(8, 1, 16, 16)
    moved, after = augment_maps(ones, ones[:, 0].long(), Training(rotate=45, shift=0.5))
    torch.testing.assert_close(moved, ones)
    assert torch.equal(after, ones[:, 0].long())
