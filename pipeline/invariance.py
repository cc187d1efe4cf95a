"""Laws that hold for any engine whose rows are independent; they need no reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from models.signature import BATCH, Arrays, Signature
from pipeline.carrying import run_carried, uneven_cuts
from pipeline.cases import HELD_OUT, Case
from pipeline.compare import Run, compare, crashed
from pipeline.values import Finding, Limit

Transform = Callable[[Run, Arrays, int], tuple[Arrays, Arrays]]


def invariances(
    run: Run, threaded: Callable[[], Run] | None, signature: Signature, cases: list[Case],
    limits: Mapping[str, Limit], block: int | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """Findings of every law on held-out rows.

    With a batch axis: equal rows get equal answers wherever they stand (duplicate), order does not
    matter (permute), nor do the other rows (neighbour), nor how rows are cut into batches (split).
    A sequence that is cut into calls which carry its state is answered as in one (cut).
    In batches of `block` rows, to the bit: a row is answered alike wherever and with whatever it
    stands (position). To the bit, a second call answers the same (twice). `threaded` opens the
    engine with another number of threads, which does not matter either (threads).
    """
    exact = exactly(limits)
    case = largest(cases)
    for name, law in _LAWS.items() if signature.batch and case.sizes[BATCH] > 1 else ():
        yield from _hold(
            name, case, limits, lambda law=law: law(run, case.inputs, case.sizes[BATCH])
        )
    if block:
        yield from _hold(
            "position", case, exact, lambda: _position(run, case.inputs, case.sizes[BATCH], block)
        )
    if signature.recurrence:
        axis = signature.recurrence.axis
        held_out = (case for case in cases if case.origin == HELD_OUT)
        long = max(held_out, key=lambda case: case.sizes[axis])
        yield from _hold(
            "cut", long, limits,
            lambda: (
                run_carried(run, signature, long.inputs, uneven_cuts(long.sizes[axis])),
                run(long.inputs),
            ),
        )  # fmt: skip
    yield from _hold("twice", case, exact, lambda: (run(case.inputs), run(case.inputs)))
    if threaded:
        yield from _hold(
            "threads", case, limits, lambda: (threaded()(case.inputs), run(case.inputs))
        )


def reloaded(run: Run, case: Case, answers: Arrays, limits: Mapping[str, Limit]) -> list[Finding]:
    """What a second session answered is what this one answers, to the bit."""
    return _hold("reload", case, exactly(limits), lambda: (answers, run(case.inputs)))


def exactly(limits: Mapping[str, Limit]) -> dict[str, Limit]:
    """The limits of what has to be the same to the bit."""
    return {name: Limit(scale=1.0, noise_floor=0.0, limit=0.0) for name in limits}


def composition(
    run: Run, parts: Mapping[str, tuple[Run, Signature]], cases: list[Case],
    limits: Mapping[str, Limit],
) -> list[Finding]:  # fmt: skip
    """The parts, each given what those before it answered, together answer as the whole."""
    case = largest(cases)

    def chained() -> tuple[Arrays, Arrays]:
        known, left = dict(case.inputs), dict(parts)
        while left:
            wanted = {n: [spec.name for spec in left[n][1].inputs] for n in left}
            name = next(n for n in left if known.keys() >= set(wanted[n]))
            part, _ = left.pop(name)
            known |= part({n: known[n] for n in wanted[name]})
        whole = run(case.inputs)
        return {name: known[name] for name in shared}, {name: whole[name] for name in shared}

    answered = {spec.name for _, signature in parts.values() for spec in signature.outputs}
    shared = [name for name in limits if name in answered]
    return _hold("parts", case, {name: limits[name] for name in shared}, chained)


def _hold(
    name: str,
    case: Case,
    limits: Mapping[str, Limit],
    answers: Callable[[], tuple[Arrays, Arrays]],
) -> list[Finding]:
    try:
        actual, expected = answers()
    except Exception as error:  # whatever a backend raises breaks the law
        return crashed(name, case, limits, error)
    if not expected.keys() >= limits.keys():
        return crashed(name, case, limits, KeyError("the engine lacks an output"))
    return compare(name, case, actual, expected, limits)


def largest(cases: list[Case]) -> Case:
    """The held-out case of most rows."""
    held_out = [case for case in cases if case.origin == HELD_OUT]
    return max(held_out, key=lambda case: case.sizes.get(BATCH, 0))


def _duplicate(run: Run, inputs: Arrays, rows: int) -> tuple[Arrays, Arrays]:
    alone = run(_rows(inputs, [0]))
    return run(_rows(inputs, [0] * rows)), {n: a.repeat(rows, axis=0) for n, a in alone.items()}


def _permute(run: Run, inputs: Arrays, rows: int) -> tuple[Arrays, Arrays]:
    order = np.random.default_rng(0).permutation(rows)
    return run(_rows(inputs, order)), _rows(run(inputs), order)


def _neighbour(run: Run, inputs: Arrays, rows: int) -> tuple[Arrays, Arrays]:
    """Each half of the batch keeps its rows while the other half becomes zeros."""
    first = np.arange(rows) < rows // 2
    before = run(inputs)
    halves = []
    for kept in (first, ~first):
        changed = {name: array.copy() for name, array in inputs.items()}
        for array in changed.values():
            array[~kept] = 0
        halves.append(_rows(run(changed), np.flatnonzero(kept)))
    return {n: np.concatenate([half[n] for half in halves]) for n in before}, before


def _split(run: Run, inputs: Arrays, rows: int) -> tuple[Arrays, Arrays]:
    cut = max(1, rows // 3)
    parts = [run(_rows(inputs, range(cut))), run(_rows(inputs, range(cut, rows)))]
    whole = run(inputs)
    return {n: np.concatenate([part[n] for part in parts]) for n in whole}, whole


def _position(run: Run, inputs: Arrays, rows: int, block: int) -> tuple[Arrays, Arrays]:
    """Rows of one block, moved on place by place, while every other row becomes zeros."""
    few = _rows(inputs, np.arange(block) % rows)
    whole = run(few)
    kept = np.arange(0, block, 2)
    actual, expected = [], []
    for places in range(block):
        order = np.roll(np.arange(block), places)
        moved = _rows(few, order)
        for array in moved.values():
            array[1::2] = 0
        actual.append(_rows(run(moved), kept))
        expected.append(_rows(whole, order[kept]))
    return (
        {name: np.concatenate([part[name] for part in actual]) for name in whole},
        {name: np.concatenate([part[name] for part in expected]) for name in whole},
    )


_LAWS: dict[str, Transform] = {
    "duplicate": _duplicate,
    "permute": _permute,
    "neighbour": _neighbour,
    "split": _split,
}


def _rows(arrays: Arrays, rows: object) -> Arrays:
    index = np.asarray(rows)
    return {name: np.ascontiguousarray(array[index]) for name, array in arrays.items()}
