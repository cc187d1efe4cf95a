"""Texts, by anybody and of any content, as the array of token ids that a model takes."""

from __future__ import annotations

import numpy as np

from models.codec import TextInput
from models.errors import BadInput

# Characters; a text of this length is read in about a millisecond.
LONGEST_TEXT = 100_000


def read_texts(text: str | list[str], wanted: TextInput, *, most: int) -> np.ndarray:
    """One text or a list of at most `most` as ids int64 [texts, length]. Raises `BadInput`."""
    texts = [text] if isinstance(text, str) else text
    if not 1 <= len(texts) <= most:
        what = "field 'text' is empty" if not texts else "field 'text' holds too many texts"
        raise BadInput(what, got=len(texts), expected=f"1 to {most} texts")
    for place, one in enumerate(texts):
        if not isinstance(one, str):
            raise BadInput(
                f"field 'text' is of a wrong type at place {place}",
                got=type(one).__name__,
                expected="a string",
            )
        if len(one) > LONGEST_TEXT:
            raise BadInput(
                f"field 'text' is too long at place {place}",
                got=f"{len(one)} characters",
                expected=f"at most {LONGEST_TEXT}",
            )
    return wanted.encode(texts)
