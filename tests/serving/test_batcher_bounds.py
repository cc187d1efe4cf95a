"""The bounds of the batcher: what waits, how long it may, and what is told of every batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from models.errors import Overloaded
from models.signature import Arrays
from serving.batcher import Batcher, Bounds
from serving.pace import WINDOW, Pace, size_of
from tests.serving.test_batcher import LONG, MATRIX, SHORT, Gate, double, paced, rows
from tests.serving.test_pace import Process


def test_a_queue_is_bounded_in_bytes() -> None:
    gate = Gate()
    room = size_of(rows(3))

    async def main() -> None:
        batcher = Batcher(gate, MATRIX, Bounds(bytes=room))
        first = await gate.hold(batcher)
        large = asyncio.create_task(batcher.predict(rows(8)))  # alone, it may wait
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="bytes"):
            await batcher.predict(rows(1))
        large.cancel()
        await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.predict(rows(n))) for n in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="bytes"):
            await batcher.predict(rows(1))
        gate.open.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(main())


def test_who_would_wait_too_long_is_refused_at_once_and_nobody_at_an_idle_engine() -> None:
    gate = Gate()

    async def main() -> None:
        # A batch of one row is expected to take 1 s: with one running, one more may wait.
        batcher = Batcher(gate, MATRIX, Bounds(wait=1.5), pace=paced(1.0))
        first = await gate.hold(batcher)
        second = asyncio.create_task(batcher.predict(rows(1)))
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(Overloaded, match="wait would be too long"):
                await batcher.predict(rows(1))
        with pytest.raises(Overloaded, match="wait would be too long"):
            batcher.check_room()
        gate.open.set()
        await asyncio.gather(first, second)
        batcher.check_room()  # recovered
        await batcher.predict(rows(8))  # which takes longer than any wait, and waits for nobody
        await batcher.close()

    asyncio.run(main())


def test_a_batch_waits_for_more_where_it_may_until_it_is_full() -> None:
    calls: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        calls.append(len(inputs["x"]))
        return double(inputs)

    async def main() -> None:
        batcher = Batcher(run, MATRIX, Bounds(patience=60), pace=SHORT)
        asked = []
        for count in (3, 3, 2):
            assert calls == []
            asked.append(asyncio.create_task(batcher.predict(rows(count))))
            for _ in range(5):
                await asyncio.sleep(0)
        await asyncio.gather(*asked)
        assert calls == [8]
        last = asyncio.create_task(batcher.predict(rows(1)))
        await asyncio.sleep(0)
        await batcher.close()  # which waits for nobody any more
        await last

    asyncio.run(main())
    assert calls == [8, 1]


def test_a_lone_request_is_answered_when_the_patience_is_over() -> None:
    async def main() -> Arrays:
        batcher = Batcher(double, MATRIX, Bounds(patience=0.001), pace=SHORT)
        answer = await asyncio.wait_for(batcher.predict(rows(1)), 30)
        await batcher.close()
        return answer

    np.testing.assert_array_equal(asyncio.run(main())["y"], double(rows(1))["y"])


@pytest.mark.parametrize(("share", "batches"), [(1.0, [3]), (0.0, [1, 1, 1])])
def test_only_a_process_that_is_never_idle_waits_for_company(
    share: float, batches: list[int]
) -> None:
    calls: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        calls.append(len(inputs["x"]))
        return double(inputs)

    async def main() -> None:
        process = Process(share)
        process.after(2 * WINDOW)
        batcher = Batcher(run, MATRIX, pace=SHORT, linger=process.linger)
        asked = []
        for _ in range(3):
            asked.append(asyncio.create_task(batcher.predict(rows(1))))
            for _ in range(3):  # turns of the event loop, together less than it waits
                await asyncio.sleep(0)
        await asyncio.gather(*asked)
        await batcher.close()

    asyncio.run(main())
    assert calls == batches


@pytest.mark.parametrize("pace", [SHORT, LONG])
def test_every_batch_is_reported(pace: Pace) -> None:
    told: list[tuple[int, int]] = []

    def report(count: int, waited: Sequence[float], seconds: float) -> None:
        assert all(0 <= time < 30 for time in waited)
        assert 0 <= seconds < 30
        told.append((count, len(waited)))

    async def main() -> None:
        batcher = Batcher(double, MATRIX, pace=pace, report=report)
        await asyncio.gather(*(batcher.predict(rows(n)) for n in (1, 2, 4)))
        await batcher.close()

    asyncio.run(main())
    assert told == [(7, 3)]
