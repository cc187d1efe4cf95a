"""Long texts as windows: what is read is the text, whole, in order, and in one split only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import corpus
from models.codec import PADDING, Characters
from models.corpus import (
    ALPHABET,
    IDS,
    NEXT,
    TOKENS,
    pydoc_text,
    read_back,
    text_dataset,
    tiny_shakespeare,
)
from models.datasets import Dataset, Split
from models.errors import BadInput, DataUnavailable

CHARACTERS = Characters(name=TOKENS, alphabet=ALPHABET)


def splits(dataset: Dataset) -> list[Split]:
    return [dataset.train, dataset.validation, dataset.test]


def plain(split: Split) -> str:
    return CHARACTERS.decode(read_back(split).tolist())


@given(st.text(ALPHABET, min_size=60, max_size=400), st.integers(2, 30))
def test_windows_are_the_text_in_reading_order(text: str, window: int) -> None:
    dataset = text_dataset("t", "", "", text, window)
    assert "".join(map(plain, splits(dataset))) == text
    for split in splits(dataset):
        tokens, following = split.inputs[TOKENS], split.targets[NEXT]
        assert tokens.shape == following.shape == (len(split), window)
        assert tokens.dtype == following.dtype == np.int64
        # Moved by one, over the ends of rows as well.
        whole = tokens.ravel()[tokens.ravel() != PADDING]
        np.testing.assert_array_equal(whole[1:], following.ravel()[: len(whole) - 1])
        assert ((tokens == PADDING) == (following == PADDING)).all()
        assert (tokens[:-1] != PADDING).all(), "only the last row ends early"


def test_nine_tenths_train_and_the_last_part_tests() -> None:
    text = "abcdefghij" * 1000
    lengths = [len(plain(split)) for split in splits(text_dataset("t", "", "", text, 64))]
    assert lengths == [9000, 500, 500]


def test_a_character_that_is_not_in_the_alphabet_is_refused() -> None:
    with pytest.raises(BadInput, match="'é' at place 3"):
        text_dataset("t", "", "", "caféteria" * 9, 8)
    assert CHARACTERS.ids == IDS
    assert len(set(ALPHABET)) == len(ALPHABET)


def check_text(dataset: Dataset) -> None:
    assert dataset.vocabulary == ALPHABET
    train = plain(dataset.train)
    for split in (dataset.validation, dataset.test):
        text = plain(split)
        windows = [text[place : place + 64] for place in range(0, len(text) - 64, 50)]
        assert not [window for window in windows if window in train], "tests what was trained on"


@pytest.mark.parametrize("window", [48, 64, 128])
def test_the_embedded_text_is_python_s_own_and_never_repeats(window: int) -> None:
    dataset = pydoc_text(window)
    check_text(dataset)
    train = plain(dataset.train)
    assert len(train) > 200_000
    assert "statement" in train
    assert "PSF" in dataset.licence


def test_a_python_without_documentation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_paragraphs", lambda: iter(["short"]))
    with pytest.raises(DataUnavailable, match="got 5 characters of pydoc_data"):
        pydoc_text()


def test_tiny_shakespeare_is_the_whole_file(full_data: Path) -> None:
    dataset = tiny_shakespeare(100)
    text = (full_data / "tinyshakespeare/input.txt").read_text("ascii")
    assert "".join(map(plain, splits(dataset))) == text
    check_text(dataset)
