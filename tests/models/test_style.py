"""Style transfer: Gram matrices by definition, laws of the losses, a picture that gets there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from models.style import (
    Aim,
    content_distance,
    gram,
    grams,
    patch_distance,
    style_distance,
    total_variation,
    transfer,
)

seeds = st.integers(0, 2**31)


def random(seed: int, *shape: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=chance, dtype=torch.float64)


def test_a_gram_matrix_is_the_papers_sum_over_places() -> None:
    maps = random(0, 2, 3, 4, 5)
    expected = np.zeros((2, 3, 3))
    for b, i, j, y, x in np.ndindex(2, 3, 3, 4, 5):
        expected[b, i, j] += float(maps[b, i, y, x] * maps[b, j, y, x]) / 20
    np.testing.assert_allclose(gram(maps), expected, rtol=1e-12)


@given(seeds)
def test_a_gram_matrix_is_symmetric_and_has_no_negative_eigenvalue(seed: int) -> None:
    (found,) = gram(random(seed, 1, 6, 3, 4) - 0.5)
    torch.testing.assert_close(found, found.T)
    assert torch.linalg.eigvalsh(found).min() >= -1e-12


@given(seeds)
def test_style_does_not_know_where_and_content_does(seed: int) -> None:
    maps = random(seed, 1, 4, 6, 6)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(seed))
    strewn = maps.flatten(2)[:, :, order].reshape(maps.shape)
    wanted = grams({"layer": maps}, ["layer"])
    assert float(style_distance({"layer": strewn}, wanted)) == pytest.approx(0, abs=1e-20)
    assert float(style_distance({"layer": maps}, wanted)) == 0
    assert float(content_distance(maps, maps)) == 0
    if not torch.equal(strewn, maps):
        assert float(content_distance(strewn, maps)) > 1e-3


@given(seeds, st.floats(0.01, 100))
def test_distances_do_not_depend_on_the_scale_of_the_maps(seed: int, scale: float) -> None:
    first, second = random(seed, 1, 4, 5, 5), random(seed + 1, 1, 4, 5, 5)
    plain = style_distance({"a": first}, grams({"a": second}, ["a"]))
    scaled = style_distance({"a": scale * first}, grams({"a": scale * second}, ["a"]))
    assert float(scaled) == pytest.approx(float(plain), rel=1e-9)
    assert float(content_distance(scale * first, scale * second)) == pytest.approx(
        float(content_distance(first, second)), rel=1e-9
    )


def test_style_distance_is_the_mean_over_layers() -> None:
    maps = {name: random(seed, 1, 3, 4, 4) for seed, name in enumerate("abc")}
    wanted = {name: random(9, 1, 3, 3) for name in "ab"}
    each = [
        float(((gram(maps[n]) - wanted[n]) ** 2).sum() / (wanted[n] ** 2).sum()) for n in wanted
    ]
    assert float(style_distance(maps, wanted)) == pytest.approx(sum(each) / 2)


def test_total_variation_is_zero_of_one_colour_and_counts_both_axes() -> None:
    assert float(total_variation(torch.full((1, 3, 5, 7), 0.3))) == 0
    ramp = torch.arange(7.0).expand(1, 3, 5, 7)
    assert float(total_variation(ramp)) == 1
    assert float(total_variation(ramp + 2 * torch.arange(5.0)[:, None])) == 5


def test_patches_of_one_pixel_are_compared_as_by_scipy() -> None:
    """A picture of one channel has one direction, and its distance is Wasserstein's."""
    first, second = random(0, 1, 1, 9, 8), random(1, 1, 1, 9, 8) ** 2
    expected = stats.wasserstein_distance(first.flatten().numpy(), second.flatten().numpy())
    assert patch_distance(first, second, side=1) == pytest.approx(expected)


@given(seeds)
def test_patch_distance_is_a_distance_that_moving_a_pattern_does_not_change(seed: int) -> None:
    state = torch.random.get_rng_state()
    tile = random(seed, 1, 3, 4, 4)
    first = tile.repeat(1, 1, 4, 4)[..., :12, :12]
    moved = tile.roll((1, 2), (2, 3)).repeat(1, 1, 4, 4)[..., :12, :12]
    other = random(seed + 1, 1, 3, 12, 12)
    assert patch_distance(first, first) == 0
    assert patch_distance(first, moved) < 0.1 * patch_distance(first, other)
    assert patch_distance(first, other) == patch_distance(other, first) > 0
    assert torch.equal(state, torch.random.get_rng_state())


def convolved(picture: Tensor) -> dict[str, Tensor]:
    """Maps of two layers of fixed random weights."""
    chance = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=chance) for shape in ((8, 3, 3, 3), (8, 8, 3, 3))]
    maps = {}
    for name, weight in zip(("low", "high"), weights, strict=True):
        picture = torch.relu(torch.conv2d(picture, weight.to(picture.dtype) / 4, padding=1))
        maps[name] = picture
    return maps


AIM = Aim("high", ("low", "high"), content_weight=0.1, style_weight=1, variation_weight=0)


def test_a_picture_gets_the_style_and_keeps_its_content() -> None:
    content, style = random(0, 1, 3, 12, 12).float(), random(1, 1, 3, 12, 12).float() ** 4
    before = content.clone()
    seen: list[int] = []
    picture, history = transfer(
        convolved, content, style, AIM, steps=60, watch=lambda step, shown: seen.append(step)
    )
    assert torch.equal(content, before)
    assert picture.shape == content.shape
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert seen == list(range(len(history)))
    assert 50 <= len(history) <= 90
    first, last = history[0], history[-1]
    assert first.content < 1e-3
    assert last.style < first.style / 10
    wanted = grams(convolved(style), AIM.style)
    reached = float(style_distance(convolved(picture), wanted))
    assert last.style == pytest.approx(reached, rel=1e-4)
    assert last.content == pytest.approx(
        float(content_distance(convolved(picture)["high"], convolved(content)["high"])), rel=1e-4
    )
    kept, other = convolved(content)["high"], convolved(content.flip(3))["high"]
    found = convolved(picture)["high"]
    assert content_distance(found, kept) < content_distance(found, other)


def test_without_style_the_picture_stays_and_without_content_it_goes() -> None:
    content, style = random(0, 1, 3, 10, 10).float(), random(1, 1, 3, 10, 10).float() ** 4
    only = Aim("high", ("low", "high"), content_weight=1, style_weight=0, variation_weight=0)
    still, _ = transfer(convolved, content, style, only, steps=30)
    assert float((still - content.clamp(0.02, 0.98)).abs().max()) < 0.05
    free = Aim("high", ("low", "high"), content_weight=0, style_weight=1, variation_weight=0)
    gone, history = transfer(convolved, content, style, free, steps=30)
    assert history[-1].style < history[0].style / 100
    assert float((gone - content).abs().mean()) > float((still - content).abs().mean())
    smooth = Aim("high", ("low",), content_weight=0, style_weight=0, variation_weight=1)
    flat, history = transfer(convolved, content, style, smooth, steps=30)
    assert history[-1].variation < history[0].variation / 100
    assert float(total_variation(flat)) < 1e-3


def test_the_same_again_to_the_bit() -> None:
    content, style = random(0, 1, 3, 8, 8).float(), random(1, 1, 3, 8, 8).float()
    runs = [transfer(convolved, content, style, AIM, steps=10) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert all(math.isfinite(m.style) for m in runs[0][1])
