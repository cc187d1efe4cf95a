"""N-grams against counting by hand, and gzip's bits against what it writes."""

from __future__ import annotations

import gzip
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ngrams import count_ngrams, gzip_bits, ngram_bits, probabilities

IDS = 4
texts = st.lists(st.integers(0, IDS - 1), min_size=1, max_size=40)


def by_hand(train: list[int], history: tuple[int, ...], token: int) -> float:
    """P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h)), written as the papers do."""
    shorter = by_hand(train, history[1:], token) if history else 1 / IDS
    places = range(len(train) - len(history))
    follow = Counter(
        train[i + len(history)] for i in places if tuple(train[i : i + len(history)]) == history
    )
    count, kinds = sum(follow.values()), len(follow)
    return (follow[token] + kinds * shorter) / (count + kinds) if count else shorter


@given(texts, texts, st.integers(1, 4))
def test_probabilities_are_the_formula(train: list[int], test: list[int], order: int) -> None:
    model = count_ngrams(np.array(train), order, IDS)
    got = probabilities(model, np.array(test))
    for place, token in enumerate(test):
        history = tuple(test[max(0, place - order + 1) : place])
        assert got[place] == pytest.approx(by_hand(train, history, token))


@given(texts, st.lists(st.integers(0, IDS - 1), max_size=4), st.integers(1, 5))
def test_probabilities_of_all_tokens_sum_to_one(
    train: list[int], history: list[int], order: int
) -> None:
    model = count_ngrams(np.array(train), order, IDS)
    every = [probabilities(model, np.array([*history, token]))[-1] for token in range(IDS)]
    assert sum(every) == pytest.approx(1)
    assert min(every) > 0


def test_bits_of_what_is_certain_and_of_what_is_chance() -> None:
    random = np.random.default_rng(0).integers(0, IDS, 40_000)
    assert ngram_bits(random[:30_000], random[30_000:], 3, IDS) == pytest.approx(2, abs=0.02)
    turns = np.arange(40_000) % IDS
    assert ngram_bits(turns[:30_000], turns[30_000:], 3, IDS) < 0.01
    # Two letters, each as often: of an order-2 source of p = 0.9 the entropy is known.
    flips = np.cumsum(np.random.default_rng(1).random(100_000) < 0.1) % 2
    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert ngram_bits(flips[:90_000], flips[90_000:], 2, 2) == pytest.approx(entropy, abs=0.03)
    assert ngram_bits(flips[:90_000], flips[90_000:], 1, 2) == pytest.approx(1, abs=0.01)


def test_gzip_is_given_what_came_before() -> None:
    text = bytes(np.random.default_rng(0).integers(97, 123, 5000, dtype=np.uint8))
    assert gzip_bits(b"", text) == pytest.approx(8 * len(gzip.compress(text)) / 5000, abs=0.05)
    assert gzip_bits(text, text) < 0.2
    assert gzip_bits(text[::-1], text) > 4
    # What lies further back than gzip's window helps no more.
    assert gzip_bits(text + bytes(40_000), text) > 4
