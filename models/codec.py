"""What turns a person's request into named arrays, and named arrays back into an answer.

A recipe declares it, a bundle carries it as `codec.json`, the service follows it. Rounding and
formatting belong here, never in the graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.errors import BadInput

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


class TiledImage(BaseModel):
    """A picture of any size becomes the float input `name`, grey or RGB in [0, 1], never resized.

    What is larger than the input's axes allow is cut into tiles that begin at multiples of
    `multiple`; the `margin` pixels beside an inner edge see too little around them to be used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    channels: int = 1
    margin: int = Field(ge=0)
    multiple: int = Field(ge=1)


# The ids of a text of characters; 0 is padding.
START = 1
END = 2
FIRST_CHARACTER = 3


class Characters(BaseModel):
    """A text becomes the int64 input `name` [rows, length]: the number of each character.

    0 is padding, 1 begins a text, 2 ends it, 3 is the first character of `alphabet`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    alphabet: tuple[str, ...]

    @model_validator(mode="after")
    def _sound(self) -> Characters:
        if len(set(self.alphabet)) != len(self.alphabet) or any(len(c) != 1 for c in self.alphabet):
            raise ValueError("an alphabet is different single characters")
        return self

    @property
    def ids(self) -> int:
        """How many ids there are, padding and marks among them."""
        return FIRST_CHARACTER + len(self.alphabet)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {
            character: number for number, character in enumerate(self.alphabet, FIRST_CHARACTER)
        }

    def encode(self, text: str) -> np.ndarray:
        """Ids int64 [length], without marks. Raises `BadInput` for what is not in the alphabet."""
        numbers = self._numbers
        try:
            return np.array([numbers[character] for character in text], np.int64)
        except KeyError as error:
            unknown = error.args[0]
            raise BadInput(
                "the text holds a character that the model does not know",
                got=f"{unknown!r} at place {text.index(unknown)}",
                expected="".join(c for c in self.alphabet if c.isprintable()),
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without padding and marks."""
        letters = (self.alphabet[i - FIRST_CHARACTER] for i in ids if i >= FIRST_CHARACTER)
        return "".join(letters)


class Generation(BaseModel):
    """How a text is written, one token after the other.

    `tokens` is the input of what has been written so far, and `logits` the output [rows, length,
    ids] of what may come next. With `source`, that input holds the whole question and the answer
    begins at its mark; without, the text of the request is continued, and `opening` is continued
    where it is empty. `media` says what the text is: plain, or music in ABC notation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Characters
    logits: str
    source: Characters | None = None
    opening: str = "\n"
    media: Literal["text", "abc"] = "text"


class Pictures(BaseModel):
    """Which graph draws a picture from a code, and which reads the code off a picture.

    A graph is the whole, "", or a part by name. The decoder turns its input `latent` [rows, n] into
    the output `drawn` [rows, channels, height, width] of [0, 1]; with `label`, that input holds the
    number of the class to draw. The encoder, where there is one, answers a picture's code as its
    output `code`. `reconstruction` is the whole's output that is to look like its picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: str
    drawn: str
    decoder: str = ""
    label: str | None = None
    encoder: str | None = None
    code: str | None = None
    reconstruction: str | None = None


class Anomaly(BaseModel):
    """The output [rows] that is large for what was never seen, and what is too large."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: str
    threshold: float


class Actions(BaseModel):
    """What an agent sees, what it may do, and the output [rows, actions] of what that is worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    observation: str
    values: str
    names: tuple[str, ...]


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
    # `pixels` names the output [rows, classes, height, width] of probabilities; `colours` are
    # those of the classes in an overlay, as #rrggbb.
    tiled: TiledImage | None = None
    pixels: str | None = None
    colours: tuple[str, ...] = ()
    generation: Generation | None = None
    pictures: Pictures | None = None
    anomaly: Anomaly | None = None
    actions: Actions | None = None
    # Inputs [rows, ...] of any graph that the server draws from a seed, normal with deviation 1,
    # where a request does not give them.
    noise: tuple[str, ...] = ()
    # Engines are asked in batches of just so many rows, so that not a bit of an answer depends on
    # what else is asked.
    block: int | None = Field(default=None, ge=1)

    def of_part(self) -> Codec:
        """The codec of a part of the model: arrays in, arrays out."""
        return Codec(noise=self.noise, block=self.block)

    @model_validator(mode="after")
    def _one_answer(self) -> Codec:
        if sum(name is not None for name in (self.scores, self.sign, self.values)) > 1:
            raise ValueError("an answer is scores of classes, or a sign, or values")
        if self.sign is not None and len(self.classes) != 2:
            raise ValueError(f"a sign tells two classes apart, got {len(self.classes)}")
        if self.pixels is not None and len(self.colours) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes have {len(self.colours)} colours")
        return self

    @property
    def answer(self) -> str | None:
        """The output that predictions are made of; None where arrays are the answer."""
        return self.scores or self.sign or self.values
