"""Long texts, read character by character in windows that follow one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from models.codec import FIRST_CHARACTER, PADDING, Characters
from models.datasets import Dataset, RemoteFile, Split, fetch
from models.errors import DataUnavailable

TOKENS = "tokens"
NEXT = "next"
WINDOW = 64  # characters of a row, and so the steps that gradients go back
Window = Annotated[int, Field(ge=2, le=4096)]

# One alphabet for every text, so that neither a split nor a version of Python changes the net.
ALPHABET = ("\n", *map(chr, range(ord(" "), ord("~") + 1)))
IDS = FIRST_CHARACTER + len(ALPHABET)  # padding and marks among them

_SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
_LEAST_CHARACTERS = 100_000
_RULES = ("-----", "=====")  # of drawn tables, which say nothing and come again and again
_TO_ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})

_SHAKESPEARE_FILE = RemoteFile(
    "tinyshakespeare/input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def tiny_shakespeare(window: Window = WINDOW) -> Dataset:
    """Plays of Shakespeare, 1,115,394 characters, as Karpathy's char-rnn reads them.

    The first 90 % to train, 5 % to validate, the last 5 % to test.
    """
    return text_dataset(
        "tinyshakespeare",
        "tinyshakespeare of Karpathy's char-rnn, digest checked",
        "public domain",
        fetch(_SHAKESPEARE_FILE).decode("ascii"),
        window,
    )


def pydoc_text(window: Window = WINDOW) -> Dataset:
    """Python's language reference, as `help("assignment")` shows it, each paragraph once.

    Real prose and code that every Python carries; which there is depends on the version of Python.
    Drawn tables are left out.
    Topics hold one another, so a paragraph that comes again is left out: what tests must not stand
    in what trains. Raises `DataUnavailable`.
    """
    text = "\n\n".join(dict.fromkeys(_paragraphs()))
    if len(text) < _LEAST_CHARACTERS:
        raise DataUnavailable(
            "this Python lacks its own documentation, which the embedded text is taken from",
            got=f"{len(text)} characters of pydoc_data",
            fix="use --data full, or a Python with its whole standard library",
        )
    return text_dataset(
        "pydoc-text",
        "Python's own documentation as installed: pydoc_data.topics in ASCII",
        "PSF License 2.0 (Python Software Foundation)",
        text,
        window,
    )


def text_dataset(name: str, source: str, licence: str, text: str, window: int) -> Dataset:
    """Contiguous pieces of one text as splits: input `tokens`, target `next`, [rows, window] int64.

    `next` is `tokens` moved by one, and 0 where a split's last row has ended. Row i + 1 goes on
    where row i ends. Raises `BadInput` for what is not in the alphabet.
    """
    ids = Characters(name=TOKENS, alphabet=ALPHABET).encode(text)
    ends = np.cumsum([round(share * len(ids)) for share in _SHARES.values()])[:-1]
    pieces = (_windows(piece, window) for piece in np.split(ids, ends))
    splits: dict[str, Any] = dict(zip(_SHARES, pieces, strict=True))
    return Dataset(name=name, source=source, licence=licence, vocabulary=ALPHABET, **splits)


def read_back(split: Split) -> np.ndarray:
    """The ids of a split's whole text [length], as it stood before it was cut into windows."""
    following = split.targets[NEXT].ravel()
    return np.concatenate([split.inputs[TOKENS][0, :1], following[following != PADDING]])


def _windows(ids: np.ndarray, window: int) -> Split:
    rows = -(-(len(ids) - 1) // window)

    def cut(piece: np.ndarray) -> np.ndarray:
        return np.pad(piece, (0, rows * window - len(piece))).reshape(rows, window)

    return Split({TOKENS: cut(ids[:-1])}, {NEXT: cut(ids[1:])})


def _paragraphs() -> Iterator[str]:
    with suppress(ImportError):  # a distribution may leave it out
        from pydoc_data.topics import topics

        for name in sorted(topics):
            plain = topics[name].translate(_TO_ASCII).encode("ascii", "ignore").decode()
            for part in plain.split("\n\n"):
                if part.strip() and not any(rule in part for rule in _RULES):
                    yield part.strip("\n")
