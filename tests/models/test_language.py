"""Language models: the loss and the metrics are one, padding counts nothing, the codec decodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from models.corpus import ALPHABET, IDS, NEXT, TOKENS, pydoc_text, read_back, text_dataset
from models.language import (
    LOGITS,
    language_baseline,
    language_codec,
    language_loss,
    language_metrics,
    language_rows,
)
from models.ngrams import ngram_bits
from models.signature import Arrays


def drawn(rows: int, length: int, ids: int, seed: int) -> tuple[Arrays, Arrays]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (rows, length, ids)).astype(np.float32)
    following = random.integers(0, ids, (rows, length))
    following[0, 0] = ids - 1  # something is counted
    return {LOGITS: logits}, {NEXT: following}


sizes = (st.integers(1, 5), st.integers(1, 6), st.integers(2, 7), st.integers(0, 99))


@given(*sizes)
def test_metrics_are_those_of_scikit_learn_and_of_the_loss(
    rows: int, length: int, ids: int, seed: int
) -> None:
    outputs, targets = drawn(rows, length, ids, seed)
    metrics = language_metrics(language_rows(outputs, targets), targets)
    counted = targets[NEXT] != 0
    label, logits = targets[NEXT][counted], outputs[LOGITS][counted].astype(np.float64)
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = log_loss(label, chance, labels=range(ids))
    assert metrics["nats_per_character"] == pytest.approx(expected, rel=1e-5)
    assert metrics["bits_per_character"] == pytest.approx(expected / math.log(2), rel=1e-5)
    assert metrics["accuracy"] == accuracy_score(label, logits.argmax(1))
    loss = language_loss(
        {LOGITS: torch.from_numpy(outputs[LOGITS])}, {NEXT: torch.from_numpy(targets[NEXT])}
    )
    assert float(loss) == pytest.approx(metrics["nats_per_character"], rel=1e-4)


@given(*sizes, st.integers(1, 4))
def test_padding_and_the_cut_into_batches_change_nothing(
    rows: int, length: int, ids: int, seed: int, more: int
) -> None:
    outputs, targets = drawn(rows, length, ids, seed)
    whole = language_rows(outputs, targets)
    padded = language_rows(
        {LOGITS: np.pad(outputs[LOGITS], ((0, 0), (0, more), (0, 0)), constant_values=9)},
        {NEXT: np.pad(targets[NEXT], ((0, 0), (0, more)))},
    )
    alone = [
        language_rows({LOGITS: outputs[LOGITS][[row]]}, {NEXT: targets[NEXT][[row]]})
        for row in range(rows)
    ]
    for name, values in whole.items():
        np.testing.assert_allclose(padded[name], values)
        np.testing.assert_allclose(np.concatenate([row[name] for row in alone]), values)


def test_a_uniform_guess_is_the_logarithm_of_how_many_there_are() -> None:
    outputs = {LOGITS: np.zeros((2, 8, 32), np.float32)}
    targets = {NEXT: np.random.default_rng(0).integers(1, 32, (2, 8))}
    metrics = language_metrics(language_rows(outputs, targets), targets)
    assert metrics["bits_per_character"] == pytest.approx(5)


def test_the_codec_reads_prompts_as_the_text_was_read() -> None:
    text = "To be, or not to be: that is the question.\n" * 30
    dataset = text_dataset("t", "", "", text, 16)
    writing = language_codec(dataset).generation
    assert writing is not None
    assert writing.tokens.ids == IDS
    assert writing.tokens.name == TOKENS
    np.testing.assert_array_equal(writing.tokens.encode(text[:16]), dataset.train.inputs[TOKENS][0])
    assert set(writing.opening) <= set(ALPHABET)


def test_the_baselines_are_of_the_same_test_characters() -> None:
    dataset = pydoc_text()
    five, gzip = language_baseline(dataset).values()
    train, test = read_back(dataset.train), read_back(dataset.test)
    orders = [ngram_bits(train, test, order, IDS) for order in (1, 3, 5)]
    assert orders == sorted(orders, reverse=True), "a longer context helps here"
    assert five == orders[-1]
    # A count of letters is worse than both, and what neither can do is known from experience.
    assert 1.5 < five < gzip < orders[0] < math.log2(IDS)
