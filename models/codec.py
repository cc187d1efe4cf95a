"""What turns a person's request into named arrays, and named arrays back into an answer.

A recipe declares it, a bundle carries it as `codec.json`, the service follows it. Rounding and
formatting belong here, never in the graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

PADDING = 0
UNKNOWN = 1
FIRST_WORD = 2  # the id of a vocabulary's first token

# A word with its inner apostrophes, a run of digits, or any other single character but space.
TOKEN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]|_")


def tokenise(text: str) -> Iterator[str]:
    """The tokens of a text: words, numbers and single signs, in lower case, one at a time.

    Its work grows with the length of the text and no faster: the text may be anybody's.
    """
    return (match.group() for match in TOKEN.finditer(text.lower()))


class ImageInput(BaseModel):
    """An uploaded picture becomes the float input `name`: grey or RGB, resized, in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    height: int
    width: int
    channels: int = 1


class TextInput(BaseModel):
    """Texts become the int64 input `name` [texts, length]: the number of each token.

    0 is padding, 1 a token that the vocabulary lacks, 2 its first token. Training data and
    requests are both read here, so they cannot disagree. No row is shorter than `shortest`; what
    comes after the first `longest` tokens is not read. Rows are padded to a `multiple`, so that
    texts of nearly one length are answered in one batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    vocabulary: tuple[str, ...]
    longest: int = Field(ge=1)
    shortest: int = Field(default=1, ge=1)
    multiple: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _sound(self) -> TextInput:
        if len(set(self.vocabulary)) != len(self.vocabulary):
            raise ValueError("a token stands twice in the vocabulary")
        if self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest}, longest {self.longest}")
        return self

    @property
    def largest(self) -> int:
        """The largest id that `encode` gives."""
        return len(self.vocabulary) + FIRST_WORD - 1

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.vocabulary, FIRST_WORD)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Ids int64 [texts, length], as long as the longest of these texts asks for."""
        ids = self._ids
        rows = [
            [ids.get(token, UNKNOWN) for token in islice(tokenise(text), self.longest)]
            for text in texts
        ]
        length = max(self.shortest, *map(len, rows)) if rows else self.shortest
        length = min(-(-length // self.multiple) * self.multiple, self.longest)
        array = np.full((len(rows), length), PADDING, np.int64)
        for place, row in enumerate(rows):
            array[place, : len(row)] = row
        return array

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The tokens of one row without its padding; a token that was unknown reads `?`."""
        return [
            self.vocabulary[index - FIRST_WORD] if index >= FIRST_WORD else "?"
            for index in ids
            if index != PADDING
        ]


class Codec(BaseModel):
    """How requests are read and answers are said; empty means arrays in, arrays out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: ImageInput | None = None
    text: TextInput | None = None
    # `scores` names the output that holds one probability per class, in the order of `classes`.
    classes: tuple[str, ...] = ()
    scores: str | None = None
    # `sign` names the output [rows, 1] that is positive for the second of two classes.
    sign: str | None = None
    # `values` names the output that holds one number per row, in `unit`.
    values: str | None = None
    unit: str = ""

    @model_validator(mode="after")
    def _one_answer(self) -> Codec:
        if sum(name is not None for name in (self.scores, self.sign, self.values)) > 1:
            raise ValueError("an answer is scores of classes, or a sign, or values")
        if self.sign is not None and len(self.classes) != 2:
            raise ValueError(f"a sign tells two classes apart, got {len(self.classes)}")
        return self

    @property
    def answer(self) -> str | None:
        """The output that predictions are made of; None where arrays are the answer."""
        return self.scores or self.sign or self.values
