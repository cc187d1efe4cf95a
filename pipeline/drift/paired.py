"""Paired: two models on the same rows, how often they differ, and by how much, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pipeline.evaluation import wilson

# One model's value, the other's, and the 95 % interval of the other's less the one's.
Measure = tuple[float, float, float, float]

_RESAMPLES = 400
_TAILS = (2.5, 97.5)


def changed_share(changed: np.ndarray, answers: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The share of answers that changed, from counts of each row [rows], with its 95 % interval.

    The score interval (Wilson 1927) of as many answers as these are worth: those of one row change
    together. That is p (1 - p) over the variance of p as a ratio over rows (Korn, Graubard 1998),
    and one a row where none or all changed.
    """
    total = int(answers.sum())
    share = float(changed.sum()) / total
    variance = float(np.square(changed - share * answers).sum()) / total**2
    rows = float((answers > 0).sum())
    worth = min(share * (1 - share) / variance, total) if variance and 0 < share < 1 else rows
    low, high = wilson(share * worth, worth)
    return share, (min(low, share), max(high, share))


def bootstrap(
    one: np.ndarray, other: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> Measure:
    """A statistic of two models with the paired bootstrap's interval of its difference.

    `one` and `other` are terms of each row [rows, ...]; `statistic` turns sums of them over rows
    [samples, ...] into [samples]. The rows are drawn 400 times, for both alike (Efron 1979).
    """
    weights = np.vstack([np.ones(len(one)), _weights(len(one))])
    ours, theirs = (statistic(np.tensordot(weights, terms, 1)) for terms in (one, other))
    return float(ours[0]), float(theirs[0]), *_between(theirs - ours)


def accuracies(one: np.ndarray, other: np.ndarray) -> Measure:
    """The shares of rows that two models get right, from bool [rows] of each.

    The interval of the difference is of paired proportions, by squares and addition of the score
    intervals of both (Newcombe 1998, method 10), for which no discordant row is no certainty.
    """
    rows = len(one)
    hits, both, neither = (int(a.sum()) for a in (one, one & other, ~one & ~other))
    theirs = int(other.sum())
    won, lost = theirs - both, hits - both
    spread = math.sqrt(hits * (rows - hits) * theirs * (rows - theirs))
    together = float(both * neither - won * lost)
    if together > 0:
        together = max(together - rows / 2, 0.0)
    phi = together / spread if spread else 0.0
    p, q = hits / rows, theirs / rows
    (p_low, p_high), (q_low, q_high) = wilson(hits, rows), wilson(theirs, rows)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = q - p
    return (
        p,
        q,
        difference - reach(q - q_low, p_high - p),
        difference + reach(q_high - q, p - p_low),
    )


def mcnemar(won: int, lost: int) -> float:
    """The exact two-sided p of McNemar 1947: that as unequal a split of won and lost is chance."""
    rows = won + lost
    tail = sum(math.comb(rows, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**rows)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> Measure:
    """Spearman's rho [rows] of two models, beside 1, with the bootstrap's interval of rho - 1."""
    rows = len(one)
    draws = np.vstack([np.arange(rows), _draws(rows)])
    rho = np.array([_pearson(_ranks(one[draw]), _ranks(other[draw])) for draw in draws])
    return 1.0, float(rho[0]), *_between(rho - 1)


def discordant(one: np.ndarray, other: np.ndarray) -> float:
    """The share of pairs of rows, [rows] each, that two models put in another order."""
    orders = [np.sign(values[:, None] - values) for values in (one, other)]
    pairs = len(one) * (len(one) - 1)
    return float((orders[0] != orders[1]).sum()) / pairs if pairs else 0.0


def _between(differences: np.ndarray) -> tuple[float, float]:
    """The percentile interval of resampled differences, whose first is the value itself."""
    low, high = np.percentile(differences[1:], _TAILS)
    return min(float(low), float(differences[0])), max(float(high), float(differences[0]))


def _draws(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, rows, (_RESAMPLES, rows))


def _weights(rows: int) -> np.ndarray:
    """How often each row was drawn, [samples, rows]."""
    places = _draws(rows) + rows * np.arange(_RESAMPLES)[:, None]
    counts = np.bincount(places.ravel(), minlength=_RESAMPLES * rows)
    return counts.reshape(_RESAMPLES, rows).astype(float)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, equal values sharing the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation; of values that are all equal 1 where both are, and 0 where one is."""
    a, b = one - one.mean(), other - other.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    if spread:
        return min(1.0, float(a @ b) / spread)
    return float(not a.any() and not b.any())
