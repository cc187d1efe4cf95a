"""The error budget: what each step from the fp64 module to a served answer adds to the error."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.cases import Case
from pipeline.compare import Run
from pipeline.values import Edge, Limit, OnnxModel


def spend(run: Run, model: OnnxModel, cases: list[Case], limits: Mapping[str, Limit]) -> list[Edge]:
    """Edges from the fp64 module over fp32 eager and the unoptimised graph to the engine."""
    return []
