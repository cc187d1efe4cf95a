"""What decides which text is written, over every transport: fields, their types and ranges."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from models.errors import BadInput
from serving.sampling import Sampling
from serving.writing import Prompt

TOKENS = 256
MOST_TOKENS = 4096
HOTTEST = 100.0
MOST_STOPS, LONGEST_STOP = 16, 100
LARGEST_SEED = 2**64 - 1

Fits = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _strings(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(one, str) for one in value)
    )


# What each field may hold, in words and as a test.
PROMPT_FIELDS: dict[str, tuple[str, Fits]] = {
    "prompt": ("a string", lambda value: isinstance(value, str)),
    "max_tokens": ("a whole number", _whole),
    "temperature": ("a number", _number),
    "top_k": ("a whole number", _whole),
    "top_p": ("a number", _number),
    "seed": ("a whole number", lambda value: value is None or _whole(value)),
    "stop": ("a string or a list of strings", _strings),
}


def read_prompt(fields: Mapping[str, Any]) -> Prompt:
    """A `Prompt` of fields that are of the right types. Raises `BadInput` for one out of range."""
    _check("max_tokens", most := fields.get("max_tokens", TOKENS), 1, MOST_TOKENS)
    _check("temperature", temperature := fields.get("temperature", 1.0), 0, HOTTEST)
    _check("top_k", top_k := fields.get("top_k", 0), 0, LARGEST_SEED)
    _check("top_p", top_p := fields.get("top_p", 1.0), 0, 1)
    if top_p == 0:
        raise BadInput("field 'top_p' is out of range", got=0, expected="more than 0, at most 1")
    seed = fields.get("seed")
    if seed is None:
        seed = secrets.randbits(53)  # so that every reader of JSON gets all of its digits
    _check("seed", seed, 0, LARGEST_SEED)
    stop = fields.get("stop", [])
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MOST_STOPS:
        raise BadInput("there are too many stop strings", got=len(stops), expected=MOST_STOPS)
    for one in stops:
        if not 1 <= len(one) <= LONGEST_STOP:
            raise BadInput(
                "a stop string is of a wrong length", got=len(one), expected=f"1 to {LONGEST_STOP}"
            )
    sampling = Sampling(float(temperature), top_k, float(top_p), seed)
    return Prompt(fields.get("prompt", ""), most, sampling, stops)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so is NaN
        raise BadInput(f"field {name!r} is out of range", got=value, expected=f"{low} to {high}")
