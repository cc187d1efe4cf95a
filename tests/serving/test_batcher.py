"""The batcher: answers equal direct calls, whatever arrives together, fails or is cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput, Overloaded
from models.signature import Arrays, Axis, Signature, TensorSpec
from serving.batcher import INLINE, Batcher, Bounds
from serving.pace import Pace, size_of

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


def paced(seconds: float) -> Pace:
    """An engine that is known to take so long for one row of two numbers."""
    pace = Pace()
    pace.learn(size_of(rows(1)), seconds)
    return pace


SHORT, LONG = paced(INLINE / 1000), paced(INLINE * 1000)


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
    ),
    seconds=st.sampled_from([INLINE / 1000, INLINE / 4, INLINE * 2]),
)
def test_answers_equal_direct_calls_whatever_the_interleaving(
    asked: list[tuple[int, int, int]], seconds: float
) -> None:
    async def ask(batcher: Batcher, number: int, count: int, length: int, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        inputs = rows(count, length, start=100 * number)
        answer = await batcher.predict(inputs)
        np.testing.assert_array_equal(answer["y"], double(inputs)["y"])

    def bounded(inputs: Arrays) -> Arrays:
        assert len(inputs["x"]) <= BATCH.max
        return double(inputs)

    async def main() -> None:
        batcher = Batcher(bounded, MATRIX, pace=paced(seconds))
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
        batcher = Batcher(gate, MATRIX, Bounds(requests=2))
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


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_who_is_cancelled_while_waiting_is_not_run_and_the_others_are(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    gate = Gate()
    seen: list[float] = []

    def run(inputs: Arrays) -> Arrays:
        seen.extend(inputs["x"][:, 0].tolist())
        return gate(inputs)

    async def main() -> Sequence[object]:
        batcher = Batcher(run, MATRIX)
        first = await gate.hold(batcher)
        tasks = [asyncio.create_task(batcher.predict(rows(1, start=n + 1))) for n in range(count)]
        await asyncio.sleep(0)
        for number in gone:
            tasks[number].cancel()
        await asyncio.sleep(0)
        gate.open.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        await batcher.close()
        return results[1:]

    results = asyncio.run(main())
    assert seen == [0, *(n + 1 for n in range(count) if n not in gone)]
    assert [isinstance(r, asyncio.CancelledError) for r in results] == [
        n in gone for n in range(count)
    ]


@pytest.mark.parametrize(("pace", "inline"), [(SHORT, True), (LONG, False), (Pace(), False)])
def test_a_short_batch_is_run_in_the_loop_and_any_other_in_the_thread(
    pace: Pace, inline: bool
) -> None:
    seen: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        seen.append(threading.get_ident())
        return double(inputs)

    async def main() -> None:
        batcher = Batcher(run, MATRIX, pace=pace)
        await batcher.predict(rows(1))
        await batcher.close()

    asyncio.run(main())
    assert (seen == [threading.get_ident()]) == inline


def test_what_arrives_in_one_turn_of_the_loop_shares_a_short_batch() -> None:
    calls: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        calls.append(len(inputs["x"]))
        return double(inputs)

    async def main() -> None:
        batcher = Batcher(run, MATRIX, pace=SHORT)
        await asyncio.gather(*(batcher.predict(rows(1)) for _ in range(11)))
        await batcher.close()

    asyncio.run(main())
    assert calls == [8, 3]


def test_no_more_rows_are_put_together_than_pay() -> None:
    calls: list[int] = []

    def run(inputs: Arrays) -> Arrays:
        calls.append(len(inputs["x"]))
        return double(inputs)

    async def main() -> None:
        batcher = Batcher(run, MATRIX, most=3, pace=SHORT)
        await asyncio.gather(*(batcher.predict(rows(n)) for n in (1, 1, 1, 1, 7, 2)))
        await batcher.close()

    asyncio.run(main())
    assert calls == [3, 3, 7]  # who asks for more alone gets them: 1 + 2 behind the first three


def test_others_get_their_turn_between_short_batches() -> None:
    events: list[str] = []

    def run(inputs: Arrays) -> Arrays:
        events.append("batch")
        return double(inputs)

    async def tick(turns: int) -> None:
        for _ in range(turns):
            events.append("turn")
            await asyncio.sleep(0)

    async def main() -> None:
        batcher = Batcher(run, MATRIX, most=1, pace=SHORT)
        asked = [asyncio.create_task(batcher.predict(rows(1))) for _ in range(5)]
        await tick(10)
        await asyncio.gather(*asked)
        await batcher.close()

    asyncio.run(main())
    assert events.count("batch") == 5
    assert "batch batch" not in " ".join(events)


def test_a_lone_request_is_passed_through_and_answers_are_views() -> None:
    given: list[np.ndarray] = []
    answered: list[np.ndarray] = []

    def run(inputs: Arrays) -> Arrays:
        given.append(inputs["x"])
        answered.append(inputs["x"] * 2)
        return {"y": answered[-1]}

    async def main() -> list[Arrays]:
        batcher = Batcher(run, MATRIX, pace=SHORT)
        alone = rows(2)
        answers = [await batcher.predict(alone)]
        assert given[0] is alone["x"]
        answers += await asyncio.gather(*(batcher.predict(rows(2)) for _ in range(3)))
        await batcher.close()
        return answers

    first, *others = asyncio.run(main())
    assert first["y"] is answered[0]
    assert len(answered) == 2
    assert all(np.shares_memory(answer["y"], answered[1]) for answer in others)
