"""Tunes in ABC: real and generated ones parse, damaged ones do not."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from models import tunes
from models.datasets import Dataset
from models.tunes import (
    OPENING,
    generated_tunes,
    irish_abc,
    is_tune,
    tune_codec,
    tunes_in,
)
from tests.models.test_corpus import check_text, plain, splits

REAL = """X:1
T:Killavil Fancy
M:C
L:1/8
K:G Major
E|DGBG A2BA|GEE2 cEGE|DGBG A2BA|GEED EFGA|
B3d A2BA|GEE2 cEGE|DGBG A2BA|GEED EFG|]
A|GABd edge|dBB2 (3dcB AB|[GB]ABd edge|dBAB G3|]"""


@pytest.fixture(scope="module")
def generated() -> Dataset:
    return generated_tunes()


def tunes_of(dataset: Dataset) -> list[str]:
    return tunes_in("".join(map(plain, splits(dataset))))


def test_bars_of_generated_tunes_fill_their_metre(generated: Dataset) -> None:
    written = tunes_of(generated)
    assert len(written) == len(set(written)) == 1200
    for tune in written:
        metre = re.search("^M:(.*)$", tune, re.MULTILINE)
        assert metre
        bars = re.split(r"[:|]+", "".join(tune.splitlines()[5:]))
        lengths = [
            sum(int(long or 1) for long in re.findall(r"[A-Ga-g]'?(\d?)", bar))
            for bar in bars
            if bar
        ]
        assert len(lengths) == 16
        assert {Fraction(length, 8) for length in lengths} == {Fraction(metre[1])}


def test_a_generated_tune_parses(generated: Dataset) -> None:
    assert "synthetic" in generated.source
    assert all(map(is_tune, tunes_of(generated)[:10]))
    check_text(generated)


def test_a_real_tune_parses() -> None:
    assert is_tune(REAL)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("X:1\n", ""),
        ("X:1\n", "X:one\n"),
        ("M:C\n", ""),
        ("L:1/8\n", ""),
        ("K:G Major\n", ""),
        ("K:G Major\n", "K:\n"),
        ("GEE2 cEGE", "GEE2 cEGE ?"),
        ("GEE2 cEGE", "GEE2 Killavil"),
        ("M:C\n", "M:3/4\n"),  # bars of eight eighths do not fill three quarters
        ("|", " "),
        (REAL.partition("K:G Major\n")[2], "ABcd|"),
        (REAL.partition("K:G Major\n")[2], ""),
        ("(3dcB", "(3"),
    ],
)  # fmt: skip
def test_a_damaged_tune_does_not(before: str, after: str) -> None:
    damaged = REAL.replace(before, after)
    assert damaged != REAL
    assert not is_tune(damaged)


@pytest.mark.parametrize(
    "text", ["", "X:1", "\x00", "K:" * 500, "X:1\nM:4/0\nL:1/8\nK:C\n|A|B|C|D|"]
)
def test_what_is_no_tune_is_refused_and_raises_nothing(text: str) -> None:
    assert not is_tune(text)


@pytest.mark.parametrize(
    ("sound", "length"),
    [("A", 1), ("^A,2", 2), ("a/", "1/2"), ("a//", "1/4"), ("z3/2", "3/2"), ("[CE]2", 2),
     ("[C2E2]", 2), ("[C/E/]3", "3/2")],
)  # fmt: skip
def test_lengths_are_written_as_abc_writes_them(sound: str, length: str) -> None:
    assert tunes._length(sound) == Fraction(length)


def test_music21_hears_the_same_bars() -> None:
    """Where no bar is too long, so that music21 does not cut it."""
    from music21 import converter

    score = converter.parse(REAL, format="abc")
    heard = [
        bar.duration.quarterLength == 4 for bar in score.recurse().getElementsByClass("Measure")
    ]
    assert tunes._full_bars(*tunes._parts(REAL)) == heard
    assert sum(heard) == len(heard) - 4


def test_tunes_are_told_apart_by_blank_lines() -> None:
    assert tunes_in(f"ABc|\n\n{REAL}\n\n\n{REAL}\nX") == [REAL, f"{REAL}\nX"]


def test_the_codec_begins_a_tune(generated: Dataset) -> None:
    writing = tune_codec(generated).generation
    assert writing is not None
    assert writing.media == "abc"
    assert writing.opening.startswith(OPENING)
    assert REAL.startswith(writing.opening)


def test_the_irish_tunes_are_all_there_once_and_parse(full_data: Path) -> None:
    dataset = irish_abc()
    kept = tunes_of(dataset)
    assert len(kept) > 790
    notes = [tune.partition("\nM:")[2] for tune in kept]
    assert len(set(notes)) == len(notes)
    assert not re.search(r"^Z:|! *$", "\n".join(kept), re.MULTILINE)
    drawn = np.random.default_rng(0).permutation(len(kept))[:40]
    assert sum(is_tune(kept[place]) for place in drawn) >= 38
    check_text(dataset)
