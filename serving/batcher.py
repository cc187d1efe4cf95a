"""One queue before one engine: what arrives while the engine works is answered together next.

An idle engine takes a lone request at once, so nobody waits for a batch to fill unless the process
has more to do than it can. A batch that is
shorter than a thread's hop is worth is run in the event loop itself, one between two of its turns.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from models.errors import Overloaded
from models.signature import BATCH, Arrays, Signature
from serving.calls import CALL, Call
from serving.pace import Linger, Pace, size_of

# Seconds: a longer batch keeps the event loop from others for longer than a hop costs.
INLINE = 0.001

_AGAIN = "ask again later"

# Rows, seconds that each request waited, seconds that the engine took.
Report = Callable[[int, Sequence[float], float], None]


@dataclass(frozen=True)
class Bounds:
    """What a queue holds at most, and how long a batch waits for more; times are in seconds."""

    requests: int = 512
    bytes: int = 256 * 2**20
    wait: float = math.inf  # expected until a request's turn, beyond which it is refused
    patience: float = 0.0  # that a batch waits for more while the engine is idle


@dataclass(frozen=True, eq=False)
class _Waiting:
    inputs: Arrays
    rows: int
    others: tuple[int, ...]  # sizes of the axes that are not the batch: equal ones concatenate
    answer: asyncio.Future[Arrays]
    size: int
    since: float = field(default_factory=time.perf_counter)
    call: Call | None = field(default_factory=CALL.get)  # whom to tell of its batch


class Batcher:
    """The queue of one model, for one event loop; `run` is called by one at a time.

    `most` rows are put together at most, or as many as the signature allows. Each batch that was
    answered is told to `report`.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        signature: Signature,
        bounds: Bounds | None = None,
        *,
        most: int | None = None,
        pace: Pace | None = None,
        linger: Linger | None = None,
        report: Report | None = None,
    ) -> None:
        self._run = run
        self._signature = signature
        # Without a batch axis each request is its own batch.
        largest = signature.batch.max if signature.batch else 1
        self._most = min(most or largest, largest)
        self._bounds = bounds or Bounds()
        self._pace = pace or Pace()
        self._linger = linger or Linger()
        self._report = report
        self._lock = threading.Lock()  # over what the loop and the engine's thread both change
        self._waiting: list[_Waiting] = []
        self._rows = self._size = 0  # of all that wait
        self._running: list[_Waiting] = []  # in the thread
        self._until = 0.0  # when what is running is expected to end
        self._next: asyncio.Handle | None = None  # the call that takes the next batch
        self._patient = False  # it waits for more
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fucina-engine")

    def check_room(self, size: int = 0) -> None:
        """Raise `Overloaded` unless a request of `size` bytes may wait now."""
        if len(self._waiting) >= self._bounds.requests:
            raise Overloaded("too many requests are waiting", got=len(self._waiting), fix=_AGAIN)
        if self._waiting and self._size + size > self._bounds.bytes:
            raise Overloaded("too many bytes are waiting", got=self._size, fix=_AGAIN)
        wait = max(0.0, self._until - time.perf_counter()) if self._running else 0.0
        if self._waiting:
            wait += self._pace.seconds(self._size)
        if self._bounds.wait < wait < math.inf:
            raise Overloaded(
                "the wait would be too long", got=f"{wait:.3g} seconds",
                expected=f"at most {self._bounds.wait:g}", fix=_AGAIN,
            )  # fmt: skip

    async def predict(self, inputs: Arrays) -> Arrays:
        """Named outputs for named inputs, views of what a batch was answered.

        Raises `BadInput` before the request joins others, and `Overloaded` when the queue is full
        or the wait would be too long. Cancelled while it waits, it is not run.
        """
        sizes = self._signature.check(inputs)
        size = size_of(inputs)
        self.check_room(size)
        others = tuple(size for name, size in sizes.items() if name != BATCH)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(inputs, sizes.get(BATCH, 1), others, loop.create_future(), size)
        with self._lock:
            self._waiting.append(waiting)
            self._count(waiting, 1)
        self._schedule()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            with self._lock:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
                    self._count(waiting, -1)
            raise

    async def close(self) -> None:
        """Answer what is waiting, then end the thread."""
        self._closing = True
        self._schedule()
        while left := [w.answer for w in (*self._running, *self._waiting)]:
            await asyncio.wait(left)
        self._thread.shutdown(wait=False)

    def _count(self, waiting: _Waiting, sign: int) -> None:
        self._rows += sign * waiting.rows
        self._size += sign * waiting.size

    def _schedule(self) -> None:
        """Have the next batch taken after what the event loop has at hand, which may join it."""
        if self._running or not self._waiting:
            return
        delay = self._delay()
        if self._next is not None:
            if delay > 0 or not self._patient:
                return
            self._next.cancel()
        loop = asyncio.get_running_loop()
        self._patient = delay > 0
        self._next = (
            loop.call_later(delay, self._dispatch) if delay > 0 else loop.call_soon(self._dispatch)
        )

    def _delay(self) -> float:
        """Seconds until the next batch is to be taken, for which others may still come."""
        if self._rows >= self._most or self._closing:
            return 0.0
        now, first = time.perf_counter(), self._waiting[0].since
        until = first + self._bounds.patience
        if self._pace.seconds(self._size) < INLINE:
            until = max(until, first + self._linger.seconds)
        return until - now

    def _dispatch(self) -> None:
        self._next = None
        batch = self._take()
        if not batch:
            return
        if self._patient:
            self._linger.learn(len(batch))
        if self._expected(batch) < INLINE:
            self._deliver(batch, [], *self._answer(batch))
            return
        self._running = batch
        self._until = time.perf_counter() + self._expected(batch)
        self._thread.submit(self._work, batch, asyncio.get_running_loop())

    def _work(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """Answer this batch and those after it, as long as they are no short ones; in the thread.

        It takes the next by itself, for the event loop may be busy.
        """
        while batch:
            answered = self._answer(batch)
            following = self._take(INLINE)
            self._until = time.perf_counter() + self._expected(following)
            loop.call_soon_threadsafe(self._deliver, batch, following, *answered)
            batch = following

    def _expected(self, batch: list[_Waiting]) -> float:
        return self._pace.seconds(sum(waiting.size for waiting in batch))

    def _take(self, least: float = 0.0) -> list[_Waiting]:
        """The oldest request and, in order, those that fit into one batch with it.

        None where that would take less than `least` seconds.
        """
        batch: list[_Waiting] = []
        left: list[_Waiting] = []
        rows = 0
        with self._lock:
            for waiting in self._waiting:
                alike = not batch or waiting.others == batch[0].others
                if alike and (not batch or rows + waiting.rows <= self._most):
                    batch.append(waiting)
                    rows += waiting.rows
                else:
                    left.append(waiting)
            if self._expected(batch) < least:
                return []
            self._waiting = left
            for waiting in batch:
                self._count(waiting, -1)
        return batch

    def _deliver(
        self, batch: list[_Waiting], following: list[_Waiting],
        answers: list[Arrays | Exception], begun: float, ended: float,
    ) -> None:  # fmt: skip
        """Hand out answers, and have the next batch taken unless one is; in the event loop."""
        self._running = following
        self._schedule()
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
        self._pace.learn(sum(waiting.size for waiting in batch), ended - begun)
        rows = sum(waiting.rows for waiting in batch)
        waited = [begun - waiting.since for waiting in batch]
        for waiting, queued in zip(batch, waited, strict=True):
            if (call := waiting.call) is not None:
                call.rows, call.queued, call.engine = rows, queued, ended - begun
        if self._report is not None:
            self._report(rows, waited, ended - begun)

    def _answer(self, batch: list[_Waiting]) -> tuple[list[Arrays | Exception], float, float]:
        """What each is answered, and when that began and ended; in the thread or the loop."""
        begun = time.perf_counter()
        answers: list[Arrays | Exception] = []
        if len(batch) > 1:
            # Where the engine fails, one request may be the cause: each is then asked alone.
            with suppress(Exception):
                answers = [*self._answer_together(batch)]
        answers = answers or [self._answer_one(waiting) for waiting in batch]
        return answers, begun, time.perf_counter()

    def _answer_together(self, batch: list[_Waiting]) -> list[Arrays]:
        names = batch[0].inputs
        whole = self._run({n: np.concatenate([w.inputs[n] for w in batch]) for n in names})
        answers = []
        end = 0
        for waiting in batch:
            start, end = end, end + waiting.rows
            answers.append({name: array[start:end] for name, array in whole.items()})
        return answers

    def _answer_one(self, waiting: _Waiting) -> Arrays | Exception:
        try:
            return self._run(waiting.inputs)
        except Exception as error:  # of any library: handed to the one who asked
            return error
