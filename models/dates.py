"""Generated pairs of a question and its one right answer: dates and numbers. Synthetic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Annotated

import numpy as np
from pydantic import Field

from models.codec import END, START, Characters
from models.datasets import Dataset, Split

SOURCE = "source"
TOKENS = "tokens"
NEXT = "next"

# Settings of the data and of the signature: of one default each.
QUESTION = 64  # characters of the longest question
ANSWER = 56  # tokens of the longest answer, its end among them
Question = Annotated[int, Field(ge=1, le=4096)]
Answer = Annotated[int, Field(ge=1, le=4096)]

ALPHABET = tuple(" ,-./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
IDS = Characters(name=TOKENS, alphabet=ALPHABET).ids  # of questions and answers alike

_FIRST = date(1900, 1, 1)
_LAST = date(2099, 12, 31)
_NUMBERS = 100_000
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth",
    "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip

Pair = tuple[str, str]


def dates(question: Question = QUESTION, answer: Answer = ANSWER) -> Dataset:
    """9,000 dates from 1900 to 2099 as they are written in English, and as ISO 8601.

    Synthetic. Each date stands in one split only, and so does each question: what is tested was
    never seen. With slashes the month comes first, with full stops the day.
    """
    random = np.random.default_rng(0)
    pairs = [_date_pair(random, _WRITTEN, place) for place in _draw(random, _days(), 9_000)]
    return _dataset("dates", pairs, question, answer)


def dates_and_numbers(question: Question = QUESTION, answer: Answer = ANSWER) -> Dataset:
    """15,000 dates, also in words, to ISO 8601, and 15,000 numbers below 100,000 to words.

    Synthetic. Each date and each number stands in one split only.
    """
    random = np.random.default_rng(1)
    pairs = [
        _date_pair(random, (*_WRITTEN, *_SPOKEN), place) for place in _draw(random, _days(), 15_000)
    ]
    pairs += [(str(n), words(n)) for n in _draw(random, _NUMBERS, 15_000)]
    order = random.permutation(len(pairs))
    return _dataset("dates-and-numbers", [pairs[i] for i in order], question, answer)


def words(number: int) -> str:
    """A number below a million in English, such as 412: four hundred and twelve."""
    if number >= 1000:
        rest = number % 1000
        joined = f"{' and' if rest < 100 else ''} {words(rest)}" if rest else ""
        return f"{words(number // 1000)} thousand{joined}"
    if number >= 100:
        rest = number % 100
        return f"{_UNITS[number // 100]} hundred" + (f" and {words(rest)}" if rest else "")
    if number >= 20:
        rest = number % 10
        return _TENS[number // 10 - 2] + (f"-{_UNITS[rest]}" if rest else "")
    return _UNITS[number]


def ordinal(number: int) -> str:
    """The ordinal in digits, such as 3rd."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number // 10 % 10 == 1 else endings.get(number % 10, 'th')}"


def ordinal_words(number: int) -> str:
    """The ordinal of a number below a hundred in words, such as twenty-third."""
    head, dash, last = words(number).rpartition("-")
    if last in _ORDINALS:
        return f"{head}{dash}{_ORDINALS[last]}"
    return f"{head}{dash}{last[:-1]}ieth" if last.endswith("y") else f"{head}{dash}{last}th"


def year_words(year: int) -> str:
    """A year as it is said, such as nineteen eighty-seven, nineteen oh five, two thousand."""
    century, rest = divmod(year, 100)
    if century % 10 == 0:
        return words(year)
    if rest == 0:
        return f"{words(century)} hundred"
    return f"{words(century)} {'oh ' if rest < 10 else ''}{words(rest)}"


_Format = Callable[[date], str]
_WRITTEN: tuple[_Format, ...] = (
    lambda d: f"{d.day} {_month(d)} {d.year}",
    lambda d: f"{ordinal(d.day)} of {_month(d)}, {d.year}",
    lambda d: f"the {ordinal(d.day)} of {_month(d)} {d.year}",
    lambda d: f"{_month(d)} {d.day}, {d.year}",
    lambda d: f"{_month(d)} {ordinal(d.day)} {d.year}",
    lambda d: f"{d.day} {_month(d)[:3]} {d.year}",
    lambda d: f"{_month(d)[:3]} {d.day} {d.year}",
    lambda d: f"{_weekday(d)}, {d.day} {_month(d)} {d.year}",
    lambda d: f"{_weekday(d)[:3]} {_month(d)[:3]} {d.day}, {d.year}",
    lambda d: f"{_weekday(d)} the {ordinal(d.day)} of {_month(d)} {d.year}",
    lambda d: f"{d.year} {_month(d)} {d.day}",
    lambda d: f"{d.day}.{d.month}.{d.year}",
    lambda d: f"{d.month}/{d.day}/{d.year}",
)
_SPOKEN: tuple[_Format, ...] = (
    lambda d: f"the {ordinal_words(d.day)} of {_month(d)} {year_words(d.year)}",
    lambda d: f"{_month(d)} {ordinal_words(d.day)}, {year_words(d.year)}",
    lambda d: f"{ordinal_words(d.day)} of {_month(d)[:3]} {d.year}",
)


def _month(day: date) -> str:
    return _MONTHS[day.month - 1]


def _weekday(day: date) -> str:
    return _DAYS[day.weekday()]


def _days() -> int:
    return (_LAST - _FIRST).days + 1


def _draw(random: np.random.Generator, below: int, count: int) -> list[int]:
    """Different numbers, so that none can stand in two splits."""
    return random.choice(below, count, replace=False).tolist()


def _date_pair(random: np.random.Generator, formats: Sequence[_Format], place: int) -> Pair:
    day = _FIRST + timedelta(days=place)
    return formats[int(random.integers(len(formats)))](day), day.isoformat()


def _dataset(name: str, pairs: Sequence[Pair], question: int, answer: int) -> Dataset:
    """Splits of 80, 10 and 10 % in the order given; longer pairs than allowed are left out."""
    reader = Characters(name=TOKENS, alphabet=ALPHABET)
    pairs = [(q, a) for q, a in pairs if len(q) <= question and len(a) < answer]
    source = np.zeros((len(pairs), question), np.int64)
    tokens = np.zeros((len(pairs), answer), np.int64)
    following = np.zeros_like(tokens)
    for row, (asked, said) in enumerate(pairs):
        ids = reader.encode(said)
        source[row, : len(asked)] = reader.encode(asked)
        tokens[row, : len(ids) + 1] = [START, *ids]
        following[row, : len(ids) + 1] = [*ids, END]
    ends = (0, len(pairs) * 8 // 10, len(pairs) * 9 // 10, len(pairs))
    train, validation, test = (
        Split({SOURCE: source[a:b], TOKENS: tokens[a:b]}, {NEXT: following[a:b]})
        for a, b in itertools.pairwise(ends)
    )
    return Dataset(
        name=name,
        source="generated by models.dates, synthetic: no text that somebody wrote",
        licence="Apache-2.0",
        train=train,
        validation=validation,
        test=test,
        vocabulary=ALPHABET,
    )
