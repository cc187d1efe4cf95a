"""Generated pairs: each answer is right by the calendar, and no split knows another's."""

from __future__ import annotations

from datetime import date, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codec import END, PADDING, START, Characters
from models.datasets import Dataset, Split
from models.dates import (
    ALPHABET,
    dates,
    dates_and_numbers,
    ordinal,
    ordinal_words,
    words,
    year_words,
)

READER = Characters(name="tokens", alphabet=ALPHABET)
FORMS = (
    "%d.%m.%Y", "%m/%d/%Y", "%d %B %Y", "%d %b %Y", "%B %d %Y", "%b %d %Y", "%Y %B %d",
)  # fmt: skip


@pytest.fixture(scope="module")
def embedded() -> Dataset:
    return dates()


@pytest.fixture(scope="module")
def full() -> Dataset:
    return dates_and_numbers()


@pytest.fixture(params=["embedded", "full"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return request.getfixturevalue(request.param)


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


def pairs(split: Split) -> list[tuple[str, str]]:
    return [
        (READER.decode(asked), READER.decode(said))
        for asked, said in zip(split.inputs["source"], split.targets["next"], strict=True)
    ]


def test_no_question_and_no_answer_of_one_split_stands_in_another(dataset: Dataset) -> None:
    questions: set[str] = set()
    answers: set[str] = set()
    assert "synthetic" in dataset.source
    for split in splits(dataset):
        asked, said = map(set, zip(*pairs(split), strict=True))
        assert len(asked) == len(said) == len(split), "nothing stands twice either"
        assert not asked & questions
        assert not said & answers
        questions |= asked
        answers |= said


def test_tokens_are_the_answer_moved_by_one(dataset: Dataset) -> None:
    for split in splits(dataset):
        tokens, following = split.inputs["tokens"], split.targets["next"]
        assert (tokens[:, 0] == START).all()
        inner = tokens[:, 1:]
        assert (inner == np.where(following == END, PADDING, following)[:, :-1]).all()
        assert ((following == END).sum(1) == 1).all()
        assert ((tokens == PADDING) == (following == PADDING)).all()
        for array in (split.inputs["source"], tokens):  # padding stands behind
            assert ((array[:, 1:] == PADDING) >= (array[:, :-1] == PADDING)).all()


def read_date(text: str) -> date:
    """The date that a text says, as Python's own parser of dates reads it."""
    for mark in ("the ", "of ", ","):
        text = text.replace(mark, "")
    parts = text.split()
    if parts[0][:3] in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"):
        weekday, *parts = parts
        day = read_date(" ".join(parts))
        assert day.strftime("%A").startswith(weekday)
        return day
    text = " ".join(p[:-2] if p[0].isdigit() and p[-1].isalpha() else p for p in parts)
    for form in FORMS:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            continue
    raise AssertionError(text)


def test_every_embedded_answer_is_the_date_that_was_asked(embedded: Dataset) -> None:
    ways = set()
    for split in splits(embedded):
        for asked, said in pairs(split):
            assert read_date(asked).isoformat() == said
            ways.add("".join("9" if c.isdigit() else "a" if c.isalpha() else c for c in asked))
    assert len({way.replace("a", "").replace("9", "") for way in ways}) >= 5


def test_the_full_set_also_asks_for_numbers_and_in_words(full: Dataset) -> None:
    found = [pair for split in splits(full) for pair in pairs(split)]
    numbers = [(asked, said) for asked, said in found if asked.isdigit()]
    assert all(words(int(asked)) == said for asked, said in numbers)
    assert 0.4 < len(numbers) / len(found) < 0.6
    assert any("nineteen eighty-seven" in asked for asked, _ in found)
    assert all(date.fromisoformat(said) for asked, said in found if not asked.isdigit())


@given(st.integers(0, 999_999))
def test_words_can_be_read_back(number: int) -> None:
    values = {words(n): n for n in range(20)} | {words(n): n for n in range(20, 100, 10)}
    total = group = 0
    for word in words(number).replace("-", " ").replace(" and", "").split():
        if word == "thousand":
            total, group = group * 1000, 0
        elif word == "hundred":
            group *= 100
        else:
            group += values[word]
    assert total + group == number


def test_how_numbers_are_said() -> None:
    assert words(412) == "four hundred and twelve"
    assert words(70_005) == "seventy thousand and five"
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 31)] == (
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "23rd", "31st"]
    )
    assert [ordinal_words(n) for n in (1, 5, 8, 12, 20, 23, 30)] == (
        ["first", "fifth", "eighth", "twelfth", "twentieth", "twenty-third", "thirtieth"]
    )
    said = [year_words(year) for year in (1900, 1905, 1987, 2000, 2007, 2024)]
    assert said == [
        "nineteen hundred", "nineteen oh five", "nineteen eighty-seven", "two thousand",
        "two thousand and seven", "two thousand and twenty-four",
    ]  # fmt: skip
