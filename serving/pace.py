"""The pace of an engine: how long it takes for a batch, and from how many rows on more do not pay.

Both are measured on recorded rows before the first request, which is then not slow, and the first
goes on being learnt from every batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from models.signature import BATCH, Arrays, Signature
from pipeline.cases import HELD_OUT, Case

BUDGET = 0.5  # seconds of measuring, once every size has been asked
ROUNDS = 5
# What a batch costs a server beside the engine: turns of the event loop, writes, wake-ups. Measured
# with the smallest classifier, of which 32 clients had 4 to 32 rows put together.
TURN = 1e-4  # seconds
# A larger batch has to be faster per row by this much: it keeps everybody in it waiting longer.
WORTH = 0.05
# Of waiting for company, measured with the smallest classifier over gRPC.
WINDOW = 0.05  # seconds over which is measured whether a process is idle
FULL = 0.9  # of a core's time, used in it
LINGER = 0.001  # seconds, the least that the event loop's timers tell apart
PAUSE = 0.5  # seconds
COMPANY = 5.0  # requests, hoped for at first
MUCH = 6.0  # requests, from which on twice the wait brings still more
_LATEST = 0.1  # of the latest batch in their moving average
_WEIGHT = 0.1  # of the latest batch in the moving average
_SUDDEN = 2.0  # times the average; of a batch that took longer, the rest is not learnt


class Pace:
    """Seconds that an engine takes for a batch: moving averages, by the size of its inputs."""

    def __init__(self) -> None:
        self._rates: dict[int, float] = {}  # seconds a byte, by the binary digits of the bytes

    def seconds(self, size: int) -> float:
        """What a batch of `size` bytes is expected to take; infinity before anything is known."""
        if not self._rates:
            return math.inf
        kind = size.bit_length()
        if kind not in self._rates:
            kind = min([*self._rates], key=lambda known: abs(known - kind))
        return self._rates[kind] * size

    def learn(self, size: int, seconds: float) -> None:
        """A batch of `size` bytes has taken so long."""
        kind, rate = size.bit_length(), seconds / max(size, 1)
        before = self._rates.get(kind, rate)
        # What a neighbour on the machine costs now and then says little of the engine.
        self._rates[kind] = before + _WEIGHT * (min(rate, _SUDDEN * before) - before)


class Linger:
    """How long a batch of a small engine waits for company, in a process that is never idle.

    What a batch costs beside the engine, turns of the event loop and wake-ups, is then paid but
    once. Where hardly any comes it is not tried again for a while, and where much comes it waits
    for more. `used` is the process's own time, in seconds like the `clock`'s.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._spent = clock, used
        self._since, self._used = clock(), used()
        self._full = False
        self._company = COMPANY  # moving average of the requests in a batch that has waited
        self._again = 0.0  # when it may be tried

    @property
    def seconds(self) -> float:
        """How long to wait from now on; 0 where every request can be answered by itself."""
        now = self._clock()
        if now - self._since > WINDOW:
            used = self._spent()
            self._full = used - self._used > FULL * (now - self._since)
            self._since, self._used = now, used
        if not self._full or now < self._again:
            return 0.0
        return LINGER if self._company < MUCH else 2 * LINGER

    def learn(self, company: int) -> None:
        """A batch that has waited came to so many requests."""
        self._company += _LATEST * (company - self._company)
        if self._company < 2:
            self._company, self._again = COMPANY, self._clock() + PAUSE


def size_of(arrays: Arrays) -> int:
    """Bytes of all arrays together."""
    return sum(array.nbytes for array in arrays.values())


def find_pace(
    run: Callable[[Arrays], Arrays],
    signature: Signature,
    cases: Sequence[Case],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Pace, int]:
    """Ask recorded rows in batches of every power of two; the pace, and the rows of a full batch.

    That is the smallest batch whose rows are served as fast as of any other, but for `WORTH`. Every
    size is asked twice, and again while there is time; the best time of each counts.
    """
    pace = Pace()
    held_out = [case for case in cases if case.origin == HELD_OUT]
    most = signature.batch.max if signature.batch else 1
    if not held_out:
        return pace, most
    inputs = max(held_out, key=lambda case: case.sizes.get(BATCH, 0)).inputs
    batches = {1: inputs}
    if signature.batch:
        low, high = signature.batch.min, len(next(iter(inputs.values())))
        counts = {low, high, *(2**power for power in range(high.bit_length()))}
        batches = {
            count: {name: array[:count] for name, array in inputs.items()}
            for count in sorted(counts)
            if low <= count <= high
        }
    best = dict.fromkeys(batches, math.inf)
    begun = clock()
    for done in range(ROUNDS):
        for count, batch in batches.items():
            before = clock()
            run(batch)
            best[count] = min(best[count], clock() - before)
        if done and clock() - begun > BUDGET:
            break
    for count, batch in batches.items():
        pace.learn(size_of(batch), best[count])
    served = {count: (seconds + TURN) / count for count, seconds in best.items()}
    full = min(n for n, seconds in served.items() if seconds <= min(served.values()) * (1 + WORTH))
    return pace, full
