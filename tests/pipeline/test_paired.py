"""Two models on the same rows: shares, differences, ranks, and intervals that keep their word."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from pipeline.drift.paired import (
    accuracies,
    bootstrap,
    changed_share,
    discordant,
    mcnemar,
    rank_correlation,
)
from pipeline.evaluation import wilson


@given(st.integers(1, 400), st.data())
def test_of_one_answer_a_row_the_interval_is_wilsons(rows: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, rows))
    changed = np.arange(rows) < hits
    share, interval = changed_share(changed, np.ones(rows))
    assert share == hits / rows
    wanted = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert interval == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=60))
def test_an_interval_holds_the_share_and_is_inside_0_and_1(counts: list[tuple[int, int]]) -> None:
    changed, more = np.array(counts).T
    share, (low, high) = changed_share(changed, changed + more)
    assert 0 <= low <= share <= high <= 1
    assert share == changed.sum() / (changed + more).sum()


def test_answers_of_one_row_that_change_together_are_worth_one() -> None:
    answers = np.full(50, 100)
    together, apart = np.where(np.arange(50) < 5, 100, 0), np.full(50, 10)
    share, interval = changed_share(together, answers)
    assert share == 0.1
    assert interval == pytest.approx(wilson(5, 50))
    share, interval = changed_share(apart, answers)  # in every row as many
    assert share == 0.1
    assert interval == pytest.approx(wilson(5, 50))
    mixed = np.random.default_rng(0).binomial(100, 0.1, 50)
    _, (low, high) = changed_share(mixed, answers)
    independent = wilson(500, 5000)
    assert high - low == pytest.approx(independent[1] - independent[0], rel=0.25)
    for none in (np.zeros(50), answers):
        _, interval = changed_share(none, answers)
        assert interval == pytest.approx(wilson(50 * none[0] / 100, 50))


def test_the_interval_of_clustered_answers_covers_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        shares = random.beta(0.4, 3.6, 60)  # a row's own share, 0.1 on average
        answers = random.integers(10, 60, 60)
        _, (low, high) = changed_share(random.binomial(answers, shares), answers)
        inside += low <= 0.1 <= high
    assert 0.91 <= inside / 400 <= 0.98


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_is_the_binomial_tests(won: int, lost: int) -> None:
    wanted = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(wanted)
    assert mcnemar(1, 1) == 1
    assert mcnemar(0, 6) == 2 / 64


@given(arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 80))))
def test_accuracies_are_shares_and_their_difference_is_inside(right: np.ndarray) -> None:
    p, q, low, high = accuracies(*right)
    assert (p, q) == (right[0].mean(), right[1].mean())
    assert low <= q - p <= high
    assert accuracies(*right[::-1]) == pytest.approx((q, p, -high, -low))
    assert accuracies(*~right) == pytest.approx((1 - p, 1 - q, -high, -low))


def test_the_interval_of_a_paired_difference_covers_as_it_says() -> None:
    """Exactly: over every table of 30 rows, weighted by how likely it is."""
    both, first, second, rows = 0.75, 0.08, 0.05, 30
    truth = second - first
    covered = 0.0
    for a, b, c in itertools.product(range(rows + 1), repeat=3):
        if a + b + c > rows:
            continue
        counts = (a, b, c, rows - a - b - c)
        weight = stats.multinomial.pmf(counts, rows, (both, first, second, 0.12))
        if weight < 1e-6:
            continue
        one = np.repeat([True, True, False, False], counts)
        other = np.repeat([True, False, True, False], counts)
        _, _, low, high = accuracies(one, other)
        covered += weight * (low <= truth <= high)
    assert 0.94 <= covered <= 0.99


def test_where_no_row_is_discordant_a_difference_is_not_certain() -> None:
    right = np.arange(360) < 324
    _, _, low, high = accuracies(right, right)
    assert -0.02 < low < -0.005
    assert 0.005 < high < 0.02


def test_the_bootstrap_is_scipys() -> None:
    random = np.random.default_rng(0)
    errors = random.gamma(1, 1, 200)
    others = errors * random.uniform(0.7, 1.5, 200)

    def root(sums: np.ndarray) -> np.ndarray:
        return np.sqrt(sums / 200)

    one, other, low, high = bootstrap(errors, others, root)
    assert (one, other) == pytest.approx((np.sqrt(errors.mean()), np.sqrt(others.mean())))
    wanted = stats.bootstrap(
        (errors, others),
        lambda a, b: np.sqrt(b.mean()) - np.sqrt(a.mean()),
        paired=True, vectorized=False, method="percentile", n_resamples=2000, rng=1,
    ).confidence_interval  # fmt: skip
    width = wanted.high - wanted.low
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.15 * width)
    assert bootstrap(errors, others, root) == (one, other, low, high)
    assert bootstrap(errors, errors, root) == (one, one, 0, 0)


@settings(max_examples=30)
@given(arrays(np.float64, st.tuples(st.just(2), st.integers(3, 60)), elements=st.integers(0, 9)))
def test_rank_correlation_is_scipys(values: np.ndarray) -> None:
    one, other = values
    itself, rho, low, high = rank_correlation(one, other)
    assert itself == 1
    assert low <= rho - 1 <= high <= 0
    if np.ptp(one) and np.ptp(other):
        assert rho == pytest.approx(stats.spearmanr(one, other)[0])
    else:
        assert rho == float(np.ptp(one) == np.ptp(other))


def test_discordant_pairs_are_kendalls() -> None:
    random = np.random.default_rng(0)
    one = random.normal(0, 1, 100)
    other = one + random.normal(0, 0.3, 100)
    tau, _ = np.array(stats.kendalltau(one, other))
    assert discordant(one, other) == pytest.approx((1 - tau) / 2)
    assert discordant(one, one) == 0
    assert discordant(one, -one) == 1
    assert discordant(one[:1], other[:1]) == 0
