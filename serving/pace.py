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
_WEIGHT = 0.1  # of the latest batch in the moving average


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
        self._rates[kind] = before + _WEIGHT * (rate - before)


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
