"""Which token comes next: greedy, or drawn with temperature, top-k and top-p; many rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How one text's tokens are drawn; temperature 0 is greedy, top-k 0 and top-p 1 keep all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def choose(
    logits: np.ndarray, samplings: Sequence[Sampling], randoms: Sequence[np.random.Generator]
) -> np.ndarray:
    """An id for each row of logits [rows, ids]: int64 [rows]; what is -inf is never chosen.

    p = softmax(logits / temperature), cut to the `top_k` most probable ids and then to the fewest
    whose share of what is left reaches `top_p` (Holtzman 2019, arXiv 1904.09751); of equal ones
    the lower id is the more probable. One number of the row's own generator decides, and a row's
    draw depends on nothing that other rows ask for.
    """
    chosen = logits.argmax(1)
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if warm:
        asked = [samplings[row] for row in warm]
        powers = _limited(logits[warm], _powers(logits[warm], asked), asked)
        draws = np.array([randoms[row].random() for row in warm])
        chosen[warm] = _drawn(powers, draws)
    return chosen


def _powers(logits: np.ndarray, samplings: Sequence[Sampling]) -> np.ndarray:
    """exp(logits / temperature), the largest of each row 1."""
    wide = logits.astype(np.float64)
    temperatures = np.array([sampling.temperature for sampling in samplings])[:, None]
    with np.errstate(over="ignore"):  # a temperature near 0 leaves -inf of all but the largest
        return np.exp((wide - wide.max(1, keepdims=True)) / temperatures)


def _limited(logits: np.ndarray, powers: np.ndarray, samplings: Sequence[Sampling]) -> np.ndarray:
    """The powers with 0 for each id that its row's top-k or top-p leaves out."""
    rows = [row for row, s in enumerate(samplings) if s.top_k > 0 or s.top_p < 1]
    if not rows:
        return powers
    ids = powers.shape[1]
    most = np.array([samplings[row].top_k or ids for row in rows])[:, None]
    # All is kept at 1, also what rounds away in a sum.
    share = np.array([p if (p := samplings[row].top_p) < 1 else np.inf for row in rows])[:, None]
    # Of two logits that are nearly equal the powers may be equal: the logits know the larger.
    order = np.argsort(-logits[rows], axis=1, kind="stable")
    ranked = np.take_along_axis(powers[rows], order, 1) * (np.arange(ids) < most)
    sums = ranked.cumsum(1)
    before = np.hstack([np.zeros((len(rows), 1)), sums[:, :-1]])
    kept = np.empty_like(ranked)
    np.put_along_axis(kept, order, ranked * (before < share * sums[:, -1:]), 1)
    powers[rows] = kept
    return powers


def _drawn(powers: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The first id of each row whose cumulative share exceeds the draw in [0, 1)."""
    sums = powers.cumsum(1)
    total = sums[:, -1]
    # The product of a draw just below 1 may round up to the total, which no sum exceeds.
    reached = np.minimum(draws * total, np.nextafter(total, 0))
    return (sums > reached[:, None]).argmax(1)
