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
    run: Run, reopen: Callable[[], Run], signature: Signature, cases: list[Case],
    limits: Mapping[str, Limit],
) -> Iterator[Finding]:  # fmt: skip
    """Findings of every law on held-out rows.

    With a batch axis: equal rows get equal answers wherever they stand (duplicate), order does not
    matter (permute), nor do the other rows (neighbour), nor how rows are cut into batches (split).
    A sequence that is cut into calls which carry its state is answered as in one (cut).
    Always, to the bit: a second call (twice) and a second session (reload) answer the same.
    """
    exact = {name: Limit(scale=1.0, noise_floor=0.0, limit=0.0) for name in limits}
    case = _largest(cases)
    for name, law in _LAWS.items() if signature.batch and case.sizes[BATCH] > 1 else ():
        yield from _hold(
            name, case, limits, lambda law=law: law(run, case.inputs, case.sizes[BATCH])
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
    yield from _hold("reload", case, exact, lambda: (reopen()(case.inputs), run(case.inputs)))


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


def _largest(cases: list[Case]) -> Case:
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


_LAWS: dict[str, Transform] = {
    "duplicate": _duplicate,
    "permute": _permute,
    "neighbour": _neighbour,
    "split": _split,
}


def _rows(arrays: Arrays, rows: object) -> Arrays:
    index = np.asarray(rows)
    return {name: np.ascontiguousarray(array[index]) for name, array in arrays.items()}
