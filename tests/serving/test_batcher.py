"""The batcher: answers equal direct calls, whatever arrives together, fails or is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput, Overloaded
from models.signature import Arrays, Axis, Signature, TensorSpec
from serving.batcher import Batcher

BATCH = Axis("batch", 1, 4, 8)
LENGTH = Axis("length", 1, 2, 3)
MATRIX = Signature(
    (TensorSpec("x", "float32", (BATCH, LENGTH)),), (TensorSpec("y", "float32", (BATCH, LENGTH)),)
)
SINGLE = Signature((TensorSpec("x", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),))


def double(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"] * 2}


def rows(count: int, length: int = 2, start: float = 0) -> Arrays:
    values = np.arange(count * length, dtype=np.float32) + np.float32(start)
    return {"x": values.reshape(count, length)}


class Gate:
    """An engine that waits inside its first call, so that a test can fill the queue behind it."""

    def __init__(self, run: Callable[[Arrays], Arrays] = double) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.calls: list[tuple[int, ...]] = []
        self._run = run

    def __call__(self, inputs: Arrays) -> Arrays:
        self.calls.append(inputs["x"].shape)
        self.entered.set()
        assert self.open.wait(30)
        return self._run(inputs)

    async def hold(self, batcher: Batcher) -> asyncio.Task[Arrays]:
        task = asyncio.create_task(batcher.predict(rows(1)))
        await asyncio.to_thread(self.entered.wait, 30)
        return task


@settings(max_examples=30, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 3), st.integers(0, 3)), min_size=1, max_size=20
    )
)
def test_answers_equal_direct_calls_whatever_the_interleaving(
    asked: list[tuple[int, int, int]],
) -> None:
    async def ask(batcher: Batcher, number: int, count: int, length: int, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        inputs = rows(count, length, start=100 * number)
        answer = await batcher.predict(inputs)
        np.testing.assert_array_equal(answer["y"], double(inputs)["y"])

    async def main() -> None:
        batcher = Batcher(double, MATRIX)
        await asyncio.gather(*(ask(batcher, i, *facts) for i, facts in enumerate(asked)))
        await batcher.close()

    asyncio.run(main())


def test_what_queues_behind_a_call_is_answered_together_up_to_the_maximum() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = Batcher(gate, MATRIX)
        first = await gate.hold(batcher)
        others = [asyncio.create_task(batcher.predict(rows(n))) for n in (3, 3, 3, 2)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(main())
    assert gate.calls == [(1, 2), (8, 2), (3, 2)]  # 3 + 3 + 2 rows, then the 3 that did not fit


def test_only_equal_other_sizes_are_put_together() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = Batcher(gate, MATRIX)
        first = await gate.hold(batcher)
        others = [asyncio.create_task(batcher.predict(rows(1, n))) for n in (3, 1, 3)]
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(main())
    assert gate.calls == [(1, 2), (2, 3), (1, 1)]


def test_a_bad_request_fails_before_it_joins_others() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = Batcher(gate, MATRIX)
        first = await gate.hold(batcher)
        good = asyncio.create_task(batcher.predict(rows(2)))
        with pytest.raises(BadInput, match="axis 'batch' is out of range: got 9"):
            await batcher.predict(rows(9))
        gate.open.set()
        await asyncio.gather(first, good)
        await batcher.close()

    asyncio.run(main())


def test_a_request_that_breaks_the_engine_fails_alone() -> None:
    def picky(inputs: Arrays) -> Arrays:
        if (inputs["x"] == 13).any():
            raise RuntimeError("unlucky")
        return double(inputs)

    gate = Gate(picky)

    async def main() -> list[object]:
        batcher = Batcher(gate, MATRIX)
        first = await gate.hold(batcher)
        others = [asyncio.create_task(batcher.predict(rows(1, 1, s))) for s in (12, 13, 14)]
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.close()
        return [type(result) for result in results]

    assert asyncio.run(main()) == [dict, dict, RuntimeError, dict]


def test_a_full_queue_refuses_and_a_cancelled_request_leaves_it() -> None:
    gate = Gate()

    async def main() -> None:
        batcher = Batcher(gate, MATRIX, queue=2)
        first = await gate.hold(batcher)
        waiting = [asyncio.create_task(batcher.predict(rows(1))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.predict(rows(1))
        waiting[0].cancel()
        await asyncio.sleep(0)
        late = asyncio.create_task(batcher.predict(rows(3)))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, waiting[1], late)
        await batcher.close()

    asyncio.run(main())
    assert gate.calls == [(1, 2), (4, 2)]


def test_without_a_batch_axis_requests_run_one_by_one() -> None:
    gate = Gate()

    async def main() -> list[Arrays]:
        batcher = Batcher(gate, SINGLE)
        asked = [{"x": np.full(2, n, np.float32)} for n in range(3)]
        gate.open.set()
        answers = await asyncio.gather(*(batcher.predict(inputs) for inputs in asked))
        await batcher.close()
        return answers

    answers = asyncio.run(main())
    assert [answer["y"].tolist() for answer in answers] == [[0, 0], [2, 2], [4, 4]]
    assert gate.calls == [(2,)] * 3
