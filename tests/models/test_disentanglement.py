"""The mutual information gap: codes of which the score is known, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from models.disentanglement import mutual_information, mutual_information_gap

ROWS = 4000


def drawn(seed: int, columns: int, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def turned(factors: np.ndarray, angle: float) -> np.ndarray:
    """The first two columns mixed by a rotation."""
    mixed = factors.copy()
    one, other = factors[:, 0], factors[:, 1]
    mixed[:, 0] = np.cos(angle) * one - np.sin(angle) * other
    mixed[:, 1] = np.sin(angle) * one + np.cos(angle) * other
    return mixed


@pytest.mark.parametrize("seed", range(3))
def test_each_factor_in_a_latent_of_its_own_is_1(seed: int) -> None:
    factors = drawn(seed, 4)
    unused = drawn(seed + 100, 3)
    code = np.hstack([unused, factors])[:, np.random.default_rng(seed).permutation(7)]
    assert mutual_information_gap(code, factors) > 0.97


def test_noise_is_0() -> None:
    assert 0 <= mutual_information_gap(drawn(1, 6), drawn(0, 4)) < 0.01


def test_a_factor_in_two_latents_counts_0() -> None:
    factors = drawn(0, 2)
    twice = np.hstack([factors, factors[:, :1]])
    assert mutual_information_gap(twice, factors) == pytest.approx(0.5, abs=0.02)
    # and one that no latent tells, as well
    assert mutual_information_gap(factors[:, :1], factors) == pytest.approx(0.5, abs=0.02)


def test_the_farther_a_code_is_turned_the_less_it_scores() -> None:
    factors = drawn(0, 2)
    scores = [mutual_information_gap(turned(factors, t), factors) for t in (0, 0.2, 0.4, 0.6)]
    assert scores == sorted(scores, reverse=True)
    # Half a right angle: both latents tell as much of either factor.
    assert mutual_information_gap(turned(factors, np.pi / 4), factors) < 0.02


def test_noisier_codes_score_less() -> None:
    factors = drawn(0, 3)
    noise = drawn(1, 3)
    scores = [mutual_information_gap(factors + width * noise, factors) for width in (0, 0.3, 1, 3)]
    assert scores == sorted(scores, reverse=True)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), latents=st.integers(1, 6), factors=st.integers(1, 4))
def test_the_score_asks_nothing_of_order_scale_and_shape(
    seed: int, latents: int, factors: int
) -> None:
    random = np.random.default_rng(seed)
    causes = random.uniform(-1, 1, (500, factors))
    codes = random.standard_normal((500, latents)) + causes @ random.standard_normal(
        (factors, latents)
    )
    score = mutual_information_gap(codes, causes)
    assert 0 <= score <= 1
    # The bins of a column turned round are the same: 10 divides 500 rows.
    bent = np.sinh(codes[:, ::-1]) * random.choice([-2.0, 1e-3, 50.0], latents) + 7
    assert mutual_information_gap(bent, causes[:, ::-1] ** 3) == pytest.approx(score, abs=1e-9)


@given(seed=st.integers(0, 2**31))
def test_mutual_information_is_that_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    one = random.integers(0, 10, 300)
    other = np.where(random.random(300) < 0.5, one, random.integers(0, 10, 300))
    assert mutual_information(one, other) == pytest.approx(mutual_info_score(one, other))
    assert mutual_information(one, other) == pytest.approx(mutual_information(other, one))
