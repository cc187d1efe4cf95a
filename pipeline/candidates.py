"""Candidates: ways to build and open an engine, measured beside one another in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.signature import BATCH, Arrays, Signature
from pipeline.cases import HELD_OUT, Case
from pipeline.compare import Run
from pipeline.values import Candidate

# How much faster than the usual way another has to be at every number of rows, and how many
# milliseconds it has to spare at the most of them. Less than this is what one run measures
# otherwise than the next, beside other work even more, and then equal parts would give other
# bundles.
_WORTH = 1.25
_SPARED = 5.0
_SECONDS = 0.1  # for each number of rows
_TOO_LONG = 2.0  # after which one round is enough
_MOST_ROUNDS = 100


@dataclass(frozen=True)
class Way:
    """One way to open an engine, and what it answers when it is open; the first is the usual."""

    name: str
    precision: str
    options: dict[str, Any]
    run: Run
    opened: Mapping[str, Any] = field(default_factory=dict)


def calls(signature: Signature, cases: Iterable[Case]) -> dict[int, Arrays]:
    """Recorded inputs of 1 row, the usual number and the most, other axes as usual."""
    usual = {name: axis.opt for name, axis in signature.axes.items()}
    batch = signature.batch
    rows = {1, batch.opt, batch.max} if batch else {1}
    wanted = [usual | ({BATCH: n} if batch else {}) for n in sorted(rows)]
    found = [case for case in cases if case.origin == HELD_OUT and case.sizes in wanted]
    return {case.sizes.get(BATCH, 1): case.inputs for case in found}


def measure(ways: list[Way], calls: Mapping[int, Arrays]) -> list[dict[int, float]]:
    """Milliseconds of each way by number of rows: the least of alternating rounds, one to warm.

    What else a machine does makes a call longer, never shorter.
    """
    least: list[dict[int, float]] = [{} for _ in ways]
    for rows, inputs in calls.items():
        times: list[list[float]] = [[] for _ in ways]
        start = time.perf_counter()
        for _ in range(_MOST_ROUNDS):
            for way, taken in zip(ways, times, strict=True):
                before = time.perf_counter()
                way.run(inputs)
                taken.append(time.perf_counter() - before)
            spent = time.perf_counter() - start
            if spent > _TOO_LONG or (spent > _SECONDS and len(times[0]) > 4):
                break
        for found, taken in zip(least, times, strict=True):
            found[rows] = 1e3 * min(taken[1:] or taken)
    return least


def mean(milliseconds: Mapping[int, float]) -> float:
    """Geometric mean over the numbers of rows."""
    return statistics.geometric_mean(milliseconds.values())


def settle(
    ways: list[Way],
    milliseconds: list[dict[int, float]],
    why_not: Callable[[Way], str],
) -> list[Candidate]:
    """The fastest way that is certified is kept: the usual one unless another is much faster.

    `why_not` says why a way has no certificate, or nothing where it has. The usual way is not
    asked: what it is worth `verify` will say. In the order of `ways`.
    """
    usual = milliseconds[0]
    outcomes: dict[str, str] = {}
    kept = ways[0]
    by_mean = sorted(zip(ways, milliseconds, strict=True), key=lambda pair: mean(pair[1]))
    for way, own in by_mean:
        worth = all(usual[rows] >= _WORTH * own[rows] for rows in usual)
        worth = worth and usual[max(usual)] - own[max(own)] >= _SPARED
        if way is ways[0] or not worth:
            continue
        reason = why_not(way)
        if not reason:
            kept = way
            break
        outcomes[way.name] = f"not certified: {reason}"
    best = mean(milliseconds[ways.index(kept)])
    found = []
    for way, own in zip(ways, milliseconds, strict=True):
        times = mean(own) / best
        outcome = outcomes.get(way.name) or (
            "kept" if way is kept
            else f"takes {times:.2f} times as long" if times >= 1
            else f"takes {times:.2f} times as long, not enough to leave the usual way"
        )  # fmt: skip
        found.append(
            Candidate(
                name=way.name, precision=way.precision, options=way.options, milliseconds=own,
                outcome=outcome, kept=way is kept, opened=dict(way.opened),
            )
        )  # fmt: skip
    return found
