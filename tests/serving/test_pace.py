"""The pace of an engine: the batch that pays is found, and what is learnt follows the engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.signature import Arrays, Axis, Signature, TensorSpec
from pipeline.cases import EDGE, HELD_OUT, Case
from serving.pace import COMPANY, LINGER, MUCH, PAUSE, TURN, WINDOW, Linger, Pace, find_pace

BATCH = Axis("batch", 1, 8, 48)
ROWS = Signature((TensorSpec("x", "float32", (BATCH, 4)),), (TensorSpec("y", "float32", (BATCH,)),))
FIXED = Signature((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (1,)),))
ROW = 16  # bytes


class Engine:
    """An engine whose clock goes on by what each batch takes, and by nothing else."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        self._seconds = seconds

    def run(self, inputs: Arrays) -> Arrays:
        self.asked.append(len(inputs["x"]))
        self.now += self._seconds(len(inputs["x"]))
        return {"y": inputs["x"][:, 0]}

    def clock(self) -> float:
        return self.now


def recorded(*sizes: int, origin: str = HELD_OUT) -> list[Case]:
    return [
        Case(f"batch={n}", origin, {"batch": n}, {"x": np.zeros((n, 4), np.float32)}) for n in sizes
    ]


@pytest.mark.parametrize(
    ("seconds", "full"),
    [
        (lambda rows: 0.05 * rows, 1),  # rows gain nothing from each other
        (lambda rows: 0.05, 48),  # and here all there is
        (lambda rows: 0.008 * -(-rows // 8), 8),  # blocks of eight
        (lambda rows: 2e-5 * rows, 32),  # short, so that what a batch costs its server counts
        (lambda rows: 0.05 + 0.01 * rows**2, 2),  # slower per row from there on
    ],
)
def test_the_smallest_batch_is_taken_that_is_as_fast_per_row_as_any(
    seconds: Callable[[int], float], full: int
) -> None:
    engine = Engine(seconds)
    pace, found = find_pace(engine.run, ROWS, recorded(1, 2, 48), engine.clock)
    assert found == full
    assert set(engine.asked) == {1, 2, 4, 8, 16, 32, 48}
    assert pace.seconds(ROW) == pytest.approx(seconds(1))
    assert pace.seconds(16 * ROW) == pytest.approx(seconds(16))


def test_every_size_is_asked_twice_of_an_engine_however_slow() -> None:
    engine = Engine(lambda rows: 10.0 * rows)
    find_pace(engine.run, ROWS, recorded(4), engine.clock)
    assert engine.asked == [1, 2, 4] * 2


def test_without_a_batch_axis_or_a_recorded_row_there_is_nothing_to_choose() -> None:
    engine = Engine(lambda rows: TURN)
    case = Case("fixed", HELD_OUT, {}, {"x": np.zeros(4, np.float32)})
    assert (
        find_pace(lambda inputs: engine.run(inputs | {"x": inputs["x"][None]}), FIXED, [case])[1]
        == 1
    )
    pace, full = find_pace(engine.run, ROWS, recorded(2, origin=EDGE))
    assert full == BATCH.max
    assert pace.seconds(ROW) == math.inf


@given(
    seconds=st.floats(1e-6, 10), before=st.floats(1e-6, 10), size=st.integers(1, 2**30),
    count=st.integers(1, 200),
)  # fmt: skip
def test_what_is_learnt_goes_to_what_is_measured(
    seconds: float, before: float, size: int, count: int
) -> None:
    pace = Pace()
    pace.learn(size, before)
    assert pace.seconds(size) == pytest.approx(before)
    # A pace that is more than doubled is first followed by a tenth of itself at a time.
    sudden = max(0, math.ceil(math.log(seconds / before / 2, 1.1)))
    gap = min(abs(seconds - before), max(seconds / 2, before))
    for _ in range(sudden + count):
        pace.learn(size, seconds)
    assert abs(pace.seconds(size) - seconds) <= gap * 0.9**count + 1e-9 * max(seconds, before)


@given(seconds=st.floats(1e-6, 10), size=st.integers(1, 2**30))
def test_a_neighbour_that_holds_one_batch_up_moves_the_pace_by_a_tenth(
    seconds: float, size: int
) -> None:
    pace = Pace()
    pace.learn(size, seconds)
    pace.learn(size, 1000 * seconds)
    assert pace.seconds(size) == pytest.approx(1.1 * seconds)


def test_a_size_that_was_never_seen_is_judged_by_the_nearest() -> None:
    pace = Pace()
    pace.learn(1024, 1.0)
    pace.learn(2**20, 64.0)
    assert pace.seconds(2048) == 2.0
    assert pace.seconds(2**21) == 128.0


class Process:
    """A clock, and a process that is busy for a share of the time."""

    def __init__(self, share: float) -> None:
        self.now = 0.0
        self.share = share
        self.linger = Linger(lambda: self.now, lambda: self.now * self.share)

    def after(self, seconds: float) -> float:
        self.now += seconds
        return self.linger.seconds


def test_only_who_is_never_idle_waits_for_company() -> None:
    assert Process(share=0.5).after(2 * WINDOW) == 0
    busy = Process(share=1.0)
    assert busy.after(WINDOW / 2) == 0  # nothing is known yet
    assert busy.after(WINDOW) == LINGER
    busy.share = 0.0
    assert busy.after(2 * WINDOW) == 0


def test_where_nobody_comes_it_is_not_tried_for_a_while() -> None:
    alone = Process(share=1.0)
    assert alone.after(2 * WINDOW) == LINGER
    tries = 0
    while alone.after(LINGER):
        alone.linger.learn(1)
        tries += 1
    assert 1 < tries < 50
    assert alone.after(PAUSE / 2) == 0
    assert alone.after(PAUSE) == LINGER


def test_where_many_come_it_waits_for_more_and_for_few_no_longer() -> None:
    crowded = Process(share=1.0)
    crowded.after(2 * WINDOW)
    for _ in range(50):
        crowded.linger.learn(math.ceil(2 * MUCH))
    assert crowded.after(LINGER) == 2 * LINGER
    for _ in range(50):
        crowded.linger.learn(math.floor(COMPANY))
    assert crowded.after(LINGER) == LINGER
