"""Texts as data: splits that share nothing, a vocabulary of the training rows, a net that pads."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from torch.nn import functional

from models import spam_cnn, text
from models.codec import FIRST_WORD, PADDING, UNKNOWN, tokenise
from models.datasets import Dataset, Split
from models.errors import BadSetting, DataUnavailable
from models.layers import inspect
from models.metrics import one_class
from models.spam_cnn import SPAM_CNN, WIDTHS, SentenceCNN, naive_bayes
from models.text import build_vocabulary, pydoc_passages, sms_spam, text_codec


@pytest.fixture(scope="module")
def passages() -> Dataset:
    return pydoc_passages()


def splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def check_texts(dataset: Dataset) -> None:
    """What every data set of texts holds to."""
    seen: set[bytes] = set()
    share = dataset.train.targets["label"].mean()
    for split in splits(dataset).values():
        rows = {row.tobytes() for row in split.inputs["tokens"]}
        assert not rows & seen
        seen |= rows
        assert split.targets["label"].mean() == pytest.approx(share, abs=0.01)
        ids = split.inputs["tokens"]
        assert ids.min() == PADDING
        assert ids.max() <= len(dataset.vocabulary) + FIRST_WORD - 1
        # Padding stands behind a text and nowhere else.
        assert ((ids[:, 1:] == PADDING) >= (ids[:, :-1] == PADDING)).all()
        assert (ids[:, 0] != PADDING).all()
    total = sum(map(len, splits(dataset).values()))
    assert len(dataset.train) / total == pytest.approx(0.7, abs=0.01)
    assert len(dataset.validation) / total == pytest.approx(0.1, abs=0.01)
    # Of the training texts each word of the vocabulary stands in two, where they are not cut.
    ids = dataset.train.inputs["tokens"]
    often = Counter(token for row in ids for token in set(row.tolist()))
    known = [often[index] for index in range(FIRST_WORD, FIRST_WORD + len(dataset.vocabulary))]
    assert np.mean(np.array(known) >= 2) > 0.97


def test_embedded_passages_are_sound(passages: Dataset) -> None:
    check_texts(passages)
    assert passages.classes == ("docstring", "reference")
    assert 0.15 < passages.test.targets["label"].mean() < 0.25
    assert 1500 < len(passages.train) < 10_000
    assert passages.digest == pydoc_passages().digest


def test_markup_does_not_tell_the_classes_apart(passages: Dataset) -> None:
    signs = {token for token in passages.vocabulary if not token[0].isalnum()}
    assert signs <= set(".,;:?!'-")
    for passage in text._passages(["Title\n=====\n\nThis calls f(x) and it is code, no prose."]):
        pytest.fail(passage)
    assert not any("’" in token for token in passages.vocabulary)
    kept = list(text._passages(['The "name" is `bound` to *one* object [1]. It stays, it\'s so.']))
    assert kept == ["The name is bound to one object . It stays, it's so."]


def test_a_python_without_its_documentation_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataUnavailable, match=r"0 of docstrings; use --data full"):
        pydoc_passages()


@given(st.lists(st.text("abc ", max_size=9), max_size=9), st.integers(0, 9), st.integers(1, 3))
def test_a_vocabulary_is_what_stands_in_most_texts(texts: list[str], size: int, least: int) -> None:
    words = build_vocabulary(texts, size, least)
    counts = Counter(token for one in texts for token in set(tokenise(one)))
    assert len(words) == len(set(words)) <= size
    assert build_vocabulary(texts[::-1], size, least) == words
    kept = [counts[word] for word in words]
    assert kept == sorted(kept, reverse=True)
    left = [count for word, count in counts.items() if word not in words and count >= least]
    assert all(count >= least for count in kept)
    assert not left or (len(words) == size and max(left) <= min(kept, default=max(left)))


def test_texts_that_read_the_same_stand_in_one_split() -> None:
    texts = [f"word{n % 7} same text number {n}" for n in range(200)]
    texts += [one.upper().replace(" ", "  ") for one in texts]
    labels = ["x" if n % 2 else "y" for n in range(200)] * 2
    dataset = text._dataset("t", "", "", ("x", "y"), texts, labels, 64, 8)
    assert sum(map(len, splits(dataset).values())) <= 200
    rows = [row.tobytes() for split in splits(dataset).values() for row in split.inputs["tokens"]]
    train = {row.tobytes() for row in dataset.train.inputs["tokens"]}
    assert not train & set(rows[len(dataset.train) :])


def test_the_codec_reads_a_text_as_training_did(passages: Dataset) -> None:
    reader = text_codec(passages).text
    assert reader is not None
    row = passages.test.inputs["tokens"][0]
    (again,) = reader.encode([" ".join(reader.decode(row.tolist()))])
    length = int((row != PADDING).sum())
    known = row[:length] != UNKNOWN
    np.testing.assert_array_equal(again[:length][known], row[:length][known])
    assert reader.largest <= (SPAM_CNN.make_signature().input("tokens").high or 0)


def test_the_published_size_has_its_count_of_parameters() -> None:
    # Vectors; of each width a filter of width x 300 and its bias, 100 times; 300 to 2.
    expected = 4096 * 300 + sum((w * 300 + 1) * 100 for w in (3, 4, 5)) + 300 * 2 + 2
    assert inspect(SPAM_CNN).parameters == expected
    assert WIDTHS == (3, 4, 5)


@pytest.fixture(scope="module")
def network() -> SentenceCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SentenceCNN(vocabulary=30, embedding=8, maps=6).eval()


@given(
    st.lists(st.lists(st.integers(1, 29), max_size=9), min_size=1, max_size=5), st.integers(1, 12)
)
def test_padding_and_neighbours_do_not_change_an_answer(
    network: SentenceCNN, rows: list[list[int]], more: int
) -> None:
    longest = max(map(len, rows)) + more
    batch = torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        together = network(batch)
        for row, answer in zip(rows, together, strict=True):
            alone = network(torch.tensor([row or [PADDING]]))[0]
            torch.testing.assert_close(answer, alone, rtol=1e-5, atol=1e-6)


def test_it_is_the_papers_formula_window_by_window(network: SentenceCNN) -> None:
    """max over windows of relu(w . x_{i:i+h-1} + b), Kim 2014, equations 2 and 3."""
    row = [5, 9, 2, 7]
    with torch.inference_mode():
        features = []
        for width, convolution in zip(WIDTHS, network.convolutions, strict=True):
            assert isinstance(convolution, torch.nn.Conv1d)
            assert convolution.bias is not None
            side = [PADDING] * (width - 1)
            ids = torch.tensor(side + row + side)
            windows = [network.embedding(ids[i : i + width]) for i in range(len(row) + width - 1)]
            filters = convolution.weight.transpose(1, 2)  # [maps, width, embedding]
            each = [(filters * window).sum((1, 2)) + convolution.bias for window in windows]
            features.append(functional.relu(torch.stack(each)).amax(0))
        expected = network.output(torch.cat(features))
        torch.testing.assert_close(network(torch.tensor([row]))[0], expected)


def test_the_vector_of_padding_is_zero_and_stays_zero() -> None:
    network = SentenceCNN(vocabulary=10, embedding=4, maps=3)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    network(torch.tensor([[1, 2, 0, 0]])).sum().backward()
    optimizer.step()
    assert not network.embedding.weight[PADDING].any()
    assert network.embedding.weight.abs().amax() > 0


def test_word_dropout_makes_words_unknown_in_training_only() -> None:
    tokens = torch.arange(2, 30)[None].repeat(200, 1)
    tokens[:, 20:] = PADDING
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kept = spam_cnn._forget(tokens, 0.25)
    assert set(kept[kept != tokens].tolist()) == {UNKNOWN}
    assert (kept == UNKNOWN).float().mean() * 28 / 20 == pytest.approx(0.25, abs=0.03)
    assert not kept[:, 20:].any()
    network = SentenceCNN(vocabulary=30, embedding=8, maps=6, dropout=0, word_dropout=0.5)
    assert not torch.equal(network(tokens), network(tokens))
    assert torch.equal(network.eval()(tokens), network(tokens))


def test_settings_reach_data_network_and_signature_at_once() -> None:
    recipe = SPAM_CNN.override({"vocabulary": 100, "longest": 16})
    assert len(recipe.load("embedded").vocabulary) == 98
    assert recipe.load("embedded").test.inputs["tokens"].shape[1] == 16
    assert recipe.make_signature().input("tokens").high == 99
    assert recipe.build().get_parameter("network.embedding.weight").shape[0] == 100
    for bad in ({"vocabulary": 2}, {"longest": 0}, {"dropout": 1.0}):
        with pytest.raises(BadSetting, match="is refused"):
            SPAM_CNN.override(bad)


def test_the_baseline_learns_and_is_scored_as_the_recipe_is(passages: Dataset) -> None:
    (f1,) = naive_bayes(passages).values()
    label = passages.test.targets["label"]
    everything = one_class({"logits": np.eye(2)[np.ones_like(label)]}, {"label": label})["f1"]
    assert everything == pytest.approx(f1_score(label, np.ones_like(label)))
    assert everything + 0.2 < f1 < 1


def test_sms_spam_is_the_whole_collection_without_what_comes_twice(full_data: Path) -> None:
    lines = (full_data / "sms_spam/SMSSpamCollection").read_text("utf-8").splitlines()
    assert Counter(line.split("\t")[0] for line in lines) == {"ham": 4827, "spam": 747}
    dataset = sms_spam()
    check_texts(dataset)
    different = {re.sub(r"\s+", " ", line.lower()).strip() for line in lines}
    assert 0.97 * len(different) < sum(map(len, splits(dataset).values())) <= len(different)
    assert dataset.classes == ("ham", "spam")
    assert "CC BY 4.0" in dataset.licence
