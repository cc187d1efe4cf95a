"""Input that is not a number: what an engine answers to it, and that other rows do not see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from models.signature import BATCH
from pipeline.cases import NONFINITE, Case
from pipeline.compare import Run, compare, crashed
from pipeline.values import Finding, Limit, Swallowed


def check_nonfinite(
    run: Run, cases: Iterable[Case], limits: Mapping[str, Limit]
) -> tuple[list[Finding], list[Swallowed]]:
    """Rows beside one that holds NaN or infinity are answered as the fp64 module answers them.

    Of the row itself the certificate says which share of its answer is finite, by the module and by
    the engine: an engine that answers with numbers what its module does not has swallowed it.
    """
    findings: list[Finding] = []
    swallowed: list[Swallowed] = []
    for case in cases:
        if case.origin != NONFINITE:
            continue
        try:
            answers = run(case.inputs)
        except Exception as error:  # whatever a backend raises is a failed comparison
            findings += crashed(NONFINITE, case, limits, error)
            continue
        if case.sizes.get(BATCH, 1) > 1:
            others = {name: array[1:] for name, array in answers.items()}
            expected = {name: array[1:] for name, array in case.reference.items()}
            findings += compare(NONFINITE, case, others, expected, limits)
        for name in limits:
            if name in answers and answers[name].dtype.kind == "f":
                swallowed.append(
                    Swallowed(
                        case=case.name, output=name,
                        module=_finite(case, case.reference[name]),
                        engine=_finite(case, answers[name]),
                    )
                )  # fmt: skip
    return findings, swallowed


def _finite(case: Case, array: np.ndarray) -> float:
    row = array[:1] if BATCH in case.sizes else array
    return float(np.isfinite(row).mean()) if row.size else 0.0
