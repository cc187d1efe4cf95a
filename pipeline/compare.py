"""How far is too far: limits derived from the module's own rounding, and what they decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from models.errors import first_line
from models.signature import BATCH, Arrays
from pipeline.cases import CARRIED, EDGE, HELD_OUT, Case
from pipeline.values import Finding, Limit


@dataclass(frozen=True)
class Bounds:
    """The multiple of the noise floor that is allowed, and where the limit ends either way.

    `smallest` and `ceiling` are shares of the output's scale. An error is the largest difference,
    or `by_row` the largest root mean square of a row's differences.
    """

    multiple: float
    smallest: float
    ceiling: float
    by_row: bool = False


# By precision, for every model the same; `fucina mutate` measures and draws what they tell apart.
# fp32: kernels add in another order, which moves the last bits as often as torch's own order does.
# Of the whole zoo and five seeds, 260 sound engines end at 4.9 floors and 0.56 of the ceiling; the
# smallest faults at the usual sizes begin at 8 (a batch leak, which its own law sees) and 10 (a
# wrong epsilon).
# int8: kernels round the sums of a layer otherwise than the module does, and what is near a step's
# middle falls either way. What is smaller than a step, as a weight in fp16 or a weak batch leak,
# cannot be seen: it is for the fp32 engine to show.
# tf32, fp16, bf16 and fp8: no GPU has measured them yet. They are from a simulation on the CPU, of
# graphs that `pipeline.backends.mixed` and `qdq` write, rounded where their values are, with sums
# in fp32. Of 18 recipes of the zoo sound ones end at 2.2 floors in tf32 (attention's own products,
# which its floor leaves exact; else 1.1), 2.0 in fp16, 2.1 in bf16 and 1.7 in fp8. A dropped bias
# begins at 7, 4, 1.2 and 1.0, swapped channels at 38, 17, 1.7 and 1.0, a dropped activation at 170,
# 140, 20 and 1.9: what is finer than the precision's own steps is for the fp32 engine to show.
BOUNDS = {
    "fp32": Bounds(multiple=10.0, smallest=1e-6, ceiling=1e-5),
    "tf32": Bounds(multiple=4.0, smallest=1e-5, ceiling=0.02, by_row=True),
    "fp16": Bounds(multiple=4.0, smallest=1e-4, ceiling=0.02, by_row=True),
    "bf16": Bounds(multiple=4.0, smallest=1e-3, ceiling=0.1, by_row=True),
    "int8": Bounds(multiple=3.0, smallest=1e-3, ceiling=0.25, by_row=True),
    "fp8": Bounds(multiple=3.0, smallest=1e-3, ceiling=0.25, by_row=True),
}

Run = Callable[[Mapping[str, Any]], Arrays]


def derive_limits(
    cases: list[Case],
    precision: str = "fp32",
    floors: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    origin: str = HELD_OUT,
) -> dict[str, Limit]:
    """Per output: its scale, the module's own error on held-out samples, and the limit.

    scale = max |y64|, noise floor = max |y' - y64| / scale, where y' is what the module says in
    this precision: in fp32 recorded with the cases, below it `floors` by output and origin; errors
    there are measured by row.
    limit = min(max(multiple * noise floor, smallest), ceiling) of the precision's `BOUNDS`. On edge
    cases, where these take the module farther off, it is that multiple of its worst error there.
    With another `origin` of rows than held-out ones it is that multiple of the worse of both.
    Of sequences that carry their state it is the limit that their own error leads to; in fp32
    each says its own, see `limit_of`.
    """
    held_out = [case for case in cases if case.origin == HELD_OUT]
    limits = {}
    for name in held_out[0].reference if held_out else ():
        scale = max(array_scale(case.reference[name]) for case in held_out)
        errors = [relative_error(c.eager[name], c.reference[name], scale) for c in held_out]
        floor = max((e for e in errors if e is not None), default=0.0)
        if precision == "fp32":
            limits[name] = _limit(scale, floor)
            continue
        own = floors.get(name, {})
        floor = max(floor, own.get(HELD_OUT, 0.0), own.get(origin, 0.0))
        limit = _limit(scale, floor, precision)
        edges = BOUNDS[precision].multiple * own.get(EDGE, 0.0)
        carried = _limit(scale, own[CARRIED], precision).limit if CARRIED in own else None
        limits[name] = limit.model_copy(
            update={"edges": edges if edges > limit.limit else None, "carried": carried}
        )
    return limits


def limit_of(eager: np.ndarray, reference: np.ndarray, scale: float | None = None) -> Limit:
    """The limit of one recorded answer by itself, with what the fp32 module did there."""
    scale = array_scale(reference) if scale is None else scale
    return _limit(scale, relative_error(eager, reference, scale) or 0.0)


def _limit(scale: float, floor: float, precision: str = "fp32") -> Limit:
    bounds = BOUNDS[precision]
    allowed = min(max(bounds.multiple * floor, bounds.smallest), bounds.ceiling)
    return Limit(scale=scale, noise_floor=floor, limit=allowed, by_row=bounds.by_row)


def deviation(
    actual: np.ndarray, expected: np.ndarray, limit: Limit, sizes: Mapping[str, int]
) -> float | None:
    """The error of an answer at these sizes as its limit measures it; see `relative_error`."""
    rows = None if not limit.by_row else len(expected) if BATCH in sizes else 1
    return relative_error(actual, expected, limit.scale, rows)


def relative_error(
    actual: np.ndarray, expected: np.ndarray, scale: float, rows: int | None = None
) -> float | None:
    """max |actual - expected| / scale; None when shapes differ or it is not a number.

    With `rows`, the largest root mean square over one of so many rows. `scale` grows to the case's
    own largest value. Integers and booleans are equal (0) or not (1). Infinities must be where they
    are expected.
    """
    if actual.shape != expected.shape or actual.size == 0:
        return None
    if not np.issubdtype(expected.dtype, np.floating):
        return float(not np.array_equal(actual, expected))
    finite = np.isfinite(expected)
    if (
        not np.array_equal(actual[~finite], expected[~finite])
        or not np.isfinite(actual[finite]).all()
    ):
        return None
    if not finite.any():
        return 0.0
    wide = np.zeros(expected.shape)
    wide[finite] = np.abs(actual[finite].astype(np.float64) - expected[finite])
    if rows:
        wide = np.sqrt(np.square(wide.reshape(rows, -1)).mean(axis=1))
    scale = max(scale, array_scale(expected))
    return float(wide.max() / scale) if scale > 0 else float(wide.max() > 0)


def compare(
    check: str, case: Case, actual: Arrays, expected: Arrays, limits: Mapping[str, Limit]
) -> list[Finding]:
    """One finding for each output that has a limit; a missing output is a failure."""
    findings = []
    for name, limit in limits.items():
        allowed = limit.edges if limit.edges and case.origin == EDGE else limit.limit
        error, note = None, ""
        if name not in actual:
            note = "the engine has no such output"
        else:
            error = deviation(actual[name], expected[name], limit, case.sizes)
            if error is None:
                note = _why_incomparable(actual[name], expected[name])
        passed = error is not None and error <= allowed
        findings.append(
            Finding(
                check=check, case=case.name, sizes=case.sizes, output=name,
                error=error, limit=allowed, passed=passed, note=note,
            )
        )  # fmt: skip
    return findings


def crashed(check: str, case: Case, limits: Mapping[str, Limit], error: Exception) -> list[Finding]:
    """The findings of a call that raised: every output failed, for the reason's first line."""
    return [
        Finding(
            check=check, case=case.name, sizes=case.sizes, output=name,
            error=None, limit=limit.limit, passed=False, note=first_line(error),
        )
        for name, limit in limits.items()
    ]  # fmt: skip


def replay(run: Run, cases: list[Case], limits: Mapping[str, Limit]) -> list[Finding]:
    """Ask every recorded call again and compare with the fp64 module's answers."""
    findings = []
    for case in cases:
        if case.origin not in (HELD_OUT, EDGE):
            continue
        check = "samples" if case.origin == HELD_OUT else "edges"
        try:
            answers = run(case.inputs)
        except Exception as error:  # whatever a backend raises is a failed comparison
            findings += crashed(check, case, limits, error)
            continue
        findings += compare(check, case, answers, case.reference, limits)
    return findings


def ratio(finding: Finding) -> float | None:
    """Error over limit; None where nothing could be compared. No error is 0 even of limit 0."""
    if finding.error is None or math.isnan(finding.error):
        return None
    if finding.error == 0:
        return 0.0
    return finding.error / finding.limit if finding.limit else math.inf


def worst_ratio(findings: Iterable[Finding]) -> float | None:
    """The largest error over limit; None when any could not be compared, or there is none."""
    ratios = [ratio(finding) for finding in findings]
    known = [r for r in ratios if r is not None]
    return max(known) if known and len(known) == len(ratios) else None


def array_scale(array: np.ndarray) -> float:
    """The largest magnitude of an array's finite values; 0 of none."""
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


def _why_incomparable(actual: np.ndarray, expected: np.ndarray) -> str:
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.size == 0:
        return "nothing to compare"
    bad = int(actual.size - np.isfinite(actual).sum())
    return f"{bad} of {actual.size} values are NaN or infinite"
