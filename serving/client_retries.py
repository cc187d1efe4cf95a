"""Asking again: what had no answer is asked again after a pause, until there is no time left."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST, LONGEST = 0.05, 2.0  # seconds, the bounds of the first pause and of any


class Unanswered(Exception):
    """There was no answer, and asking again is safe; `error` is raised when nobody does."""

    def __init__(self, error: Exception, after: float = 0.0) -> None:
        super().__init__(error)
        self.error = error
        self.after = after  # seconds that the server asked to be left alone


def asking(attempt: Callable[[float], T], timeout: float, retries: int) -> T:
    """What `attempt` answers within so many seconds, told how many are left.

    After `Unanswered` it is asked again, up to `retries` times. Pauses double and are random
    below that, so that clients which failed together do not come back together. Raises the
    last `error`.
    """
    deadline = time.monotonic() + timeout
    number = 0
    while True:
        try:
            return attempt(max(deadline - time.monotonic(), 0.001))
        except Unanswered as unanswered:
            bound = min(LONGEST, FIRST * 2**number)
            pause = unanswered.after + random.uniform(0, bound)  # noqa: S311  # no secret
            number += 1
            if number > retries or time.monotonic() + pause >= deadline:
                raise unanswered.error from unanswered.error.__cause__
        time.sleep(pause)
