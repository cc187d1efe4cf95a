"""Sampling equals its definitions, written out one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.sampling import Sampling, choose

IDS = 9
LOGITS = st.integers(1, 5).flatmap(
    lambda rows: arrays(np.float32, (rows, IDS), elements=st.floats(-30, 30, width=32))
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-300, 0.3, 1.0, 2.5]),
    top_k=st.integers(0, IDS + 2),
    top_p=st.sampled_from([1e-9, 0.2, 0.5, 0.9, 1 - 1e-9, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def plain(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities of one row: temperature, top-k, top-p, each as a loop would do it."""
    if sampling.temperature == 0:
        return np.eye(len(logits))[int(logits.argmax())]
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        powers = np.exp((wide - wide.max()) / sampling.temperature)
    ranked = sorted(range(len(powers)), key=lambda i: (-logits[i], i))
    kept = ranked[: sampling.top_k or None]
    total = sum(powers[i] for i in kept)
    if sampling.top_p < 1:
        share, fewest = 0.0, []
        for i in kept:
            fewest.append(i)
            share += powers[i]
            if share >= sampling.top_p * total:
                break
        kept = fewest
    probabilities = np.zeros(len(powers))
    probabilities[kept] = powers[kept]
    return probabilities / probabilities.sum()


def generators(samplings: list[Sampling]) -> list[np.random.Generator]:
    return [np.random.default_rng(sampling.seed) for sampling in samplings]


def many(row: np.ndarray, sampling: Sampling, count: int) -> np.ndarray:
    """How often each id is chosen."""
    random = np.random.default_rng(sampling.seed)
    chosen = choose(np.tile(row, (count, 1)), [sampling] * count, [random] * count)
    return np.bincount(chosen, minlength=len(row))


@given(LOGITS, st.data())
def test_only_what_the_definition_keeps_is_chosen(logits: np.ndarray, data: st.DataObject) -> None:
    samplings = [data.draw(SAMPLINGS) for _ in logits]
    chosen = choose(logits, samplings, generators(samplings))
    for row, sampling, choice in zip(logits, samplings, chosen, strict=True):
        assert plain(row, sampling)[choice] > 0


@given(LOGITS, st.data())
def test_a_row_is_chosen_alone_as_among_others(logits: np.ndarray, data: st.DataObject) -> None:
    samplings = [data.draw(SAMPLINGS) for _ in logits]
    together = choose(logits, samplings, generators(samplings))
    alone = [choose(logits[[i]], [s], generators([s]))[0] for i, s in enumerate(samplings)]
    assert together.tolist() == alone


@given(LOGITS, st.integers(0, 2**64 - 1), st.floats(1e-3, 10))
@example(np.array([[0.0, 1e-20]], np.float32), 0, 1.0)
def test_the_most_probable_of_one_is_greedy(
    logits: np.ndarray, seed: int, temperature: float
) -> None:
    first = [Sampling(temperature, top_k=1, seed=seed)] * len(logits)
    assert choose(logits, first, generators(first)).tolist() == logits.argmax(1).tolist()
    greedy = [Sampling(0.0, seed=seed)] * len(logits)
    assert choose(logits, greedy, generators(greedy)).tolist() == logits.argmax(1).tolist()


@given(LOGITS, st.integers(0, 2**64 - 1))
def test_what_is_minus_infinity_is_never_chosen(logits: np.ndarray, seed: int) -> None:
    logits[:, :3] = -np.inf
    samplings = [Sampling(5.0, top_k=IDS, top_p=0.999, seed=seed)] * len(logits)
    assert choose(logits, samplings, generators(samplings)).min() >= 3


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
@given(logits=LOGITS)
@settings(max_examples=50)
def test_the_ends_of_the_draw_choose_what_may_be_chosen(draw: float, logits: np.ndarray) -> None:
    class Ends(np.random.Generator):
        def random(self, *args: object, **kwargs: object) -> float:  # pyright: ignore
            return draw

    logits[:, :2] = -np.inf
    logits[:, -1] = -np.inf
    samplings = [Sampling(1.0)] * len(logits)
    chosen = choose(logits, samplings, [Ends(np.random.PCG64(0))] * len(logits))
    assert np.isfinite(logits[np.arange(len(logits)), chosen]).all()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, seed=1),
        Sampling(0.5, seed=2),
        Sampling(3.0, top_k=4, seed=3),
        Sampling(1.0, top_p=0.8, seed=4),
        Sampling(2.0, top_k=6, top_p=0.7, seed=2**64 - 1),
    ],
)
def test_frequencies_are_those_of_softmax(sampling: Sampling) -> None:
    row = np.random.default_rng(5).normal(0, 1.5, IDS).astype(np.float32)
    expected = plain(row, sampling) * 20_000
    counts = many(row, sampling, 20_000)
    assert not counts[expected == 0].any()
    likely = expected > 0
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert statistic < 27.9  # 0.1 % of chi-square with 8 degrees of freedom; fewer have less


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    row = np.zeros(50, np.float32)
    first, again, other = (many(row, Sampling(seed=seed), 100) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()
