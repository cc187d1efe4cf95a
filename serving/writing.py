"""A text that is being written: what it continues, its pieces as they come, and why it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, NamedTuple

from serving.sampling import Sampling

Finish = Literal["stop", "length", "end"]


@dataclass(frozen=True)
class Prompt:
    """What to continue or to answer, how, and where to end: a number of tokens, stop strings."""

    text: str
    most: int
    sampling: Sampling
    stop: tuple[str, ...] = ()


class Piece(NamedTuple):
    """A piece of a text: `tokens` were chosen up to here, and the last piece says why it ends.

    `cuts` is how often the context was full and its older half forgotten.
    """

    text: str
    tokens: int
    cuts: int
    finish: Finish | None


Outcome = Piece | Exception


class Writing:
    """A text that is being written, for one reader in the event loop: its pieces, in order."""

    def __init__(self, prompt: str, prompt_tokens: int, seed: int) -> None:
        self.prompt = prompt
        self.prompt_tokens = prompt_tokens
        self.seed = seed
        self.cancelled = False
        self._pieces: list[Outcome] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    def cancel(self) -> None:
        """Nobody reads it any more: the text leaves before the engine's next step."""
        self.cancelled = True
        self._wake()

    def deliver(self, piece: Outcome) -> None:
        """Add a piece; called in the event loop."""
        self._pieces.append(piece)
        self._wake()

    def __aiter__(self) -> Writing:
        return self

    async def __anext__(self) -> Piece:
        """What was written since the last piece, as one; raises what stopped the engine."""
        if not (self._pieces or self._ended or self.cancelled):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        outcomes, self._pieces = self._pieces, []
        if self.cancelled or not outcomes:
            raise StopAsyncIteration
        pieces: list[Piece] = []
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                self._ended = True
                raise outcome
            pieces.append(outcome)
        last = pieces[-1]
        self._ended = last.finish is not None
        return last._replace(text="".join(piece.text for piece in pieces))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
