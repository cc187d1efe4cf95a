"""One queue before one engine: what arrives while the engine works is answered together next.

An idle engine takes a lone request at once, so nobody waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from models.errors import Overloaded
from models.signature import BATCH, Arrays, Signature

QUEUE = 512


@dataclass(frozen=True, eq=False)
class _Waiting:
    inputs: Arrays
    rows: int
    others: tuple[int, ...]  # sizes of the axes that are not the batch: equal ones concatenate
    answer: asyncio.Future[Arrays]


class Batcher:
    """The queue of one model, for one event loop; `run` is called from one worker thread."""

    def __init__(
        self, run: Callable[[Arrays], Arrays], signature: Signature, queue: int = QUEUE
    ) -> None:
        self._run = run
        self._signature = signature
        # Without a batch axis each request is its own batch.
        self._most = signature.batch.max if signature.batch else 1
        self._queue = queue
        self._waiting: list[_Waiting] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fucina-engine")
        self._drain: asyncio.Task[None] | None = None

    async def predict(self, inputs: Arrays) -> Arrays:
        """Named outputs for named inputs.

        Raises `BadInput` before the request joins others, and `Overloaded` when the queue is full.
        """
        sizes = self._signature.check(inputs)
        if len(self._waiting) >= self._queue:
            raise Overloaded("too many requests are waiting", got=self._queue, fix="ask again")
        others = tuple(size for name, size in sizes.items() if name != BATCH)
        answer: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(inputs, sizes.get(BATCH, 1), others, answer)
        self._waiting.append(waiting)
        if self._drain is None:
            self._drain = asyncio.create_task(self._answer_all())
        try:
            return await answer
        finally:
            # Only a cancelled request is still there.
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    async def close(self) -> None:
        """Answer what is waiting, then end the thread."""
        if self._drain is not None:
            await self._drain
        self._thread.shutdown(wait=False)

    async def _answer_all(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            answers = await loop.run_in_executor(self._thread, self._answer, batch)
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)
        self._drain = None

    def _take(self) -> list[_Waiting]:
        """The oldest request and, in order, those that fit into one batch with it."""
        batch: list[_Waiting] = []
        left: list[_Waiting] = []
        rows = 0
        for waiting in self._waiting:
            alike = not batch or waiting.others == batch[0].others
            if alike and (not batch or rows + waiting.rows <= self._most):
                batch.append(waiting)
                rows += waiting.rows
            else:
                left.append(waiting)
        self._waiting = left
        return batch

    def _answer(self, batch: list[_Waiting]) -> list[Arrays | Exception]:
        if len(batch) > 1:
            # Where the engine fails, one request may be the cause: each is then asked alone.
            with suppress(Exception):
                return [*self._answer_together(batch)]
        return [self._answer_one(waiting) for waiting in batch]

    def _answer_together(self, batch: list[_Waiting]) -> list[Arrays]:
        names = batch[0].inputs
        whole = self._run({n: np.concatenate([w.inputs[n] for w in batch]) for n in names})
        ends = np.cumsum([waiting.rows for waiting in batch])
        return [
            {name: array[end - waiting.rows : end] for name, array in whole.items()}
            for waiting, end in zip(batch, ends, strict=True)
        ]

    def _answer_one(self, waiting: _Waiting) -> Arrays | Exception:
        try:
            return self._run(waiting.inputs)
        except Exception as error:  # of any library: handed to the one who asked
            return error
