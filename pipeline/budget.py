"""The error budget: what each step from the fp64 module to a served answer adds to the error."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from models.signature import Arrays
from pipeline.cases import HELD_OUT, Case
from pipeline.compare import Run, deviation
from pipeline.intermediates import unoptimised
from pipeline.invariance import largest
from pipeline.values import MODEL, Edge, Limit, OnnxModel


def spend(run: Run, model: OnnxModel, cases: list[Case], limits: Mapping[str, Limit]) -> list[Edge]:
    """Edges from the fp64 module over fp32 eager and the unoptimised graph to the engine.

    Asked are the held-out case of usual sizes and the largest; of each edge the worst. What fails
    to answer has no error, and the certificate says elsewhere that it failed. A model trained
    elsewhere has no graph but the engine, so its module leads to the engine at once.
    """
    usual = {name: axis.opt for name, axis in model.signature.axes.items()}
    asked = [c for c in cases if c.origin == HELD_OUT and c.sizes == usual]
    asked += [c for c in [largest(cases)] if c not in asked]
    graph = _graph(model) if MODEL in model.files else None
    spent: dict[tuple[str, str, str], Edge] = {}
    for case in asked:
        stations = {"fp64 module": case.reference, "fp32 module": case.eager}
        if MODEL in model.files:
            stations["graph"] = _answer(graph, case)
        stations["engine"] = _answer(run, case)
        for (start, before), (end, after) in pairwise(stations.items()):
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
