"""Laws of the codec: one reading of a text for training and serving, whatever the text is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.codec import PADDING, UNKNOWN, Codec, TextInput, tokenise

READER = TextInput(name="tokens", vocabulary=("win", "a", "prize", "!", "i'm"), longest=5)
words = st.sampled_from([*READER.vocabulary, "zebra", "42", "ß"])


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Win a £1000 prize!!", ["win", "a", "£", "1000", "prize", "!", "!"]),
        ("I'm sure, it’s rock'n'roll'", ["i'm", "sure", ",", "it’s", "rock'n'roll", "'"]),
        ("wkly comp2win", ["wkly", "comp", "2", "win"]),
        ("snake_case", ["snake", "_", "case"]),
        ("ÉTÉ Ωmega привет 東京", ["été", "ωmega", "привет", "東京"]),
        ("٣ 😀\u200d", ["٣", "😀", "\u200d"]),
        (" \t\n", []),
        ("", []),
    ],
)
def test_a_text_is_words_numbers_and_single_signs(text: str, tokens: list[str]) -> None:
    assert list(tokenise(text)) == tokens


@given(st.text())
def test_tokens_are_the_text_without_its_space(text: str) -> None:
    tokens = list(tokenise(text))
    assert "".join(tokens) == "".join(text.lower().split())
    assert list(tokenise(" ".join(tokens))) == tokens


@given(st.lists(st.text(max_size=20), max_size=8))
def test_every_text_becomes_a_row_of_ids_in_range(texts: list[str]) -> None:
    ids = READER.encode(texts)
    assert ids.dtype == np.int64
    assert ids.shape[0] == len(texts)
    assert READER.shortest <= ids.shape[1] <= READER.longest
    assert ((ids >= 0) & (ids <= READER.largest)).all()
    for text, row in zip(texts, ids, strict=True):
        count = min(len(list(tokenise(text))), READER.longest)
        assert (row[:count] != PADDING).all()
        assert (row[count:] == PADDING).all()


@given(st.lists(st.text(max_size=20), min_size=1, max_size=8))
def test_other_texts_change_only_how_far_a_row_is_padded(texts: list[str]) -> None:
    together = READER.encode(texts)
    for text, row in zip(texts, together, strict=True):
        (alone,) = READER.encode([text])
        width = min(len(alone), len(row))
        np.testing.assert_array_equal(row[:width], alone[:width])
        assert not row[width:].any()


@given(st.lists(words, min_size=1, max_size=READER.longest))
def test_decoding_gives_back_what_the_vocabulary_has(tokens: list[str]) -> None:
    (row,) = READER.encode([" ".join(tokens).upper().replace("SS", "ß")])
    known = [token if token in READER.vocabulary else "?" for token in tokens]
    assert READER.decode(row.tolist()) == known


def test_ids_begin_after_padding_and_unknown() -> None:
    assert READER.encode(["win zebra"]).tolist() == [[2, UNKNOWN]]
    assert READER.encode(["i'm"]).tolist() == [[READER.largest]]
    assert READER.encode(["a", "a b"]).tolist() == [[3, PADDING], [3, UNKNOWN]]


def test_rows_are_padded_to_a_multiple_and_never_past_the_longest() -> None:
    four = READER.model_copy(update={"multiple": 4})
    assert four.encode(["a"]).tolist() == [[3, 0, 0, 0]]
    assert four.encode(["a " * 4]).shape == (1, 4)
    assert four.encode(["a " * 5]).shape == (1, 5)
    assert four.encode([]).shape == (0, 4)


def test_a_row_is_cut_at_the_longest_and_padded_to_the_shortest() -> None:
    assert READER.encode(["a " * 9]).shape == (1, 5)
    wide = READER.model_copy(update={"shortest": 4})
    assert wide.encode(["", "a"]).tolist() == [[0, 0, 0, 0], [3, 0, 0, 0]]


def test_it_travels_as_json() -> None:
    codec = Codec(text=READER, classes=("ham", "spam"), scores="probabilities")
    READER.encode(["a"])  # what it keeps to read faster is no part of it
    assert Codec.model_validate_json(codec.model_dump_json()) == codec


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TextInput(name="t", vocabulary=("a", "a"), longest=2), "stands twice"),
        (lambda: TextInput(name="t", vocabulary=(), longest=2, shortest=3), "shortest is 3"),
        (lambda: TextInput(name="t", vocabulary=(), longest=0), "greater than or equal to 1"),
        (lambda: Codec(scores="a", values="b"), "scores of classes, or a sign, or values"),
        (lambda: Codec(sign="a", classes=("x",)), "two classes apart, got 1"),
    ],
)
def test_what_contradicts_itself_is_refused(make: object, said: str) -> None:
    assert callable(make)
    with pytest.raises(ValidationError, match=said):
        make()
