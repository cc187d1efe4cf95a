"""What a language model has to beat: counted n-grams, and a general compressor."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import numpy as np

_GZIP_WINDOW = 32 * 1024  # DEFLATE looks no further back


@dataclass(frozen=True)
class _Counts:
    """How often each n-gram of one order stands in the text, and what follows its context."""

    grams: np.ndarray  # sorted numbers of n-grams [kinds]
    gram_counts: np.ndarray
    contexts: np.ndarray  # sorted numbers of their first n - 1 ids
    context_counts: np.ndarray
    context_kinds: np.ndarray  # how many different ids follow


@dataclass(frozen=True)
class NGrams:
    """Counts of all orders from 1 to n, over ids below `ids`."""

    ids: int
    orders: tuple[_Counts, ...]


def count_ngrams(tokens: np.ndarray, order: int, ids: int) -> NGrams:
    """Count a text's n-grams up to an order; `tokens` int64 [length], ids ** order < 2 ** 63."""
    assert ids**order < 1 << 63
    return NGrams(ids, tuple(_count(_number(tokens, n, ids), ids) for n in range(1, order + 1)))


def probabilities(model: NGrams, tokens: np.ndarray) -> np.ndarray:
    """Of each token the probability after the tokens before it, float64 [length].

    Interpolated Witten-Bell smoothing (Witten, Bell 1991; Chen, Goodman 1998): with c(h) the count
    of a context and T(h) the number of different tokens after it,
    P(w | h) = (c(h w) + T(h) P(w | h without its first)) / (c(h) + T(h)); below order 1 all tokens
    are equally likely. The first tokens of the text have shorter contexts.
    """
    chance = np.full(len(tokens), 1 / model.ids)
    for order, counts in enumerate(model.orders, 1):
        number = _number(tokens, order, model.ids)
        context = number // model.ids
        found = _look_up(counts.grams, counts.gram_counts, number)
        seen = _look_up(counts.contexts, counts.context_counts, context)
        kinds = _look_up(counts.contexts, counts.context_kinds, context)
        shorter = chance[order - 1 :]
        mixed = (found + kinds * shorter) / np.maximum(seen + kinds, 1)
        chance[order - 1 :] = np.where(seen > 0, mixed, shorter)
    return chance


def ngram_bits(train: np.ndarray, test: np.ndarray, order: int, ids: int) -> float:
    """Bits per token of `test` after its first, by n-grams counted in `train`."""
    chance = probabilities(count_ngrams(train, order, ids), test)[1:]
    return float(-np.log2(chance).mean())


def gzip_bits(before: bytes, text: bytes) -> float:
    """Bits per byte that gzip -9 needs for a text when it has just read the text before.

    8 (|gzip(tail + text)| - |gzip(tail)|) / |text|, the tail being the last 32 KiB of what came
    before, as much as gzip looks back at.
    """
    tail = before[-_GZIP_WINDOW:]
    sizes = [len(gzip.compress(part, 9, mtime=0)) for part in (tail + text, tail)]
    return 8 * (sizes[0] - sizes[1]) / len(text)


def _number(tokens: np.ndarray, order: int, ids: int) -> np.ndarray:
    """One number for each n-gram, [length - order + 1]."""
    length = max(len(tokens) - order + 1, 0)
    number = np.zeros(length, np.int64)
    for place in range(order):
        number = number * ids + tokens[place : place + length]
    return number


def _count(numbers: np.ndarray, ids: int) -> _Counts:
    grams, gram_counts = np.unique(numbers, return_counts=True)
    contexts, place, kinds = np.unique(grams // ids, return_inverse=True, return_counts=True)
    totals = np.bincount(place, gram_counts, len(contexts))
    return _Counts(grams, gram_counts, contexts, totals, kinds)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each key that is wanted, 0 of one that is not there."""
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
