"""The error budget: what each step from the fp64 module to a served answer adds to the error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

from models.signature import Arrays, Signature
from pipeline.cases import HELD_OUT, Case
from pipeline.compare import Run, deviation
from pipeline.intermediates import unoptimised
from pipeline.invariance import largest
from pipeline.values import MODEL, Edge, Limit, OnnxModel

Station = Callable[[Case], Arrays]  # a place on the way, and what it answers to a case


def spend(run: Run, model: OnnxModel, cases: list[Case], limits: Mapping[str, Limit]) -> list[Edge]:
    """Edges from the fp64 module over fp32 eager and the unoptimised graph to the engine.

    A model trained elsewhere has no graph but the engine, so its module leads to the engine at
    once.
    """
    stations: dict[str, Station] = {
        "fp64 module": lambda case: case.reference,
        "fp32 module": lambda case: case.eager,
    }
    if MODEL in model.files:
        graph = _graph(model)
        stations["graph"] = lambda case: _answer(graph, case)
    stations["engine"] = lambda case: _answer(run, case)
    return steps(stations, model.signature, cases, limits)


def steps(
    stations: Mapping[str, Station],
    signature: Signature,
    cases: list[Case],
    limits: Mapping[str, Limit],
) -> list[Edge]:
    """Edges from each station to the next, and what has come together at its end.

    Asked are the held-out case of usual sizes and the largest; of each edge the worst. What fails
    to answer has no error, and the certificate says elsewhere that it failed.
    """
    usual = {name: axis.opt for name, axis in signature.axes.items()}
    asked = [c for c in cases if c.origin == HELD_OUT and c.sizes == usual]
    asked += [c for c in [largest(cases)] if c not in asked]
    spent: dict[tuple[str, str, str], Edge] = {}
    for case in asked:
        answers = {name: station(case) for name, station in stations.items()}
        for (start, before), (end, after) in pairwise(answers.items()):
            for name, limit in limits.items():
                edge = Edge(
                    start=start, end=end, output=name, limit=limit.limit,
                    error=_error(after, before, name, limit, case),
                    total=_error(after, case.reference, name, limit, case),
                )  # fmt: skip
                key = (start, end, name)
                spent[key] = _worse(spent[key], edge) if key in spent else edge
    return list(spent.values())


def _graph(model: OnnxModel) -> Run | None:
    try:
        return unoptimised(model.folder / MODEL)
    except Exception:  # whatever the runtime raises, there is no answer
        return None


def _answer(run: Run | None, case: Case) -> Arrays:
    try:
        return run(case.inputs) if run else {}
    except Exception:  # the same
        return {}


def _error(actual: Arrays, expected: Arrays, name: str, limit: Limit, case: Case) -> float | None:
    if name not in actual or name not in expected:
        return None
    return deviation(actual[name], expected[name], limit, case.sizes)


def _worse(one: Edge, other: Edge) -> Edge:
    """The larger of two errors; none at all is the worst."""

    def larger(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else max(a, b)

    return one.model_copy(
        update={"error": larger(one.error, other.error), "total": larger(one.total, other.total)}
    )
