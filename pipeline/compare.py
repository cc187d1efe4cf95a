"""How far is too far: limits derived from the module's own rounding, and what they decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from models.signature import Arrays
from pipeline.cases import EDGE, HELD_OUT, Case
from pipeline.values import Finding, Limit

# An engine may differ from the fp64 module by this multiple of what the fp32 module itself does:
# kernels add in another order, which moves the last bits as often as torch's own order does.
MULTIPLE = 16.0
# Bounds of the limit, as a share of the output's scale. Sound fp32 engines measured 4e-7 or less;
# with 2 % of one weight tensor scaled by 1.5 published nets measured 5e-5 or more, ours 1e-2.
SMALLEST = 1e-6
CEILING = 1e-5

Run = Callable[[Mapping[str, Any]], Arrays]


def derive_limits(cases: list[Case]) -> dict[str, Limit]:
    """Per output: its scale and the module's fp32-to-fp64 error on held-out samples, and the limit.

    scale = max |y64|, noise floor = max |y32 - y64| / scale,
    limit = min(max(MULTIPLE * noise floor, SMALLEST), CEILING).
    """
    held_out = [case for case in cases if case.origin == HELD_OUT]
    limits = {}
    for name in held_out[0].reference if held_out else ():
        scale = max(_scale(case.reference[name]) for case in held_out)
        floors = [relative_error(c.eager[name], c.reference[name], scale) for c in held_out]
        floor = max((f for f in floors if f is not None), default=0.0)
        limits[name] = _limit(scale, floor)
    return limits


def limit_of(eager: np.ndarray, reference: np.ndarray, scale: float | None = None) -> Limit:
    """The limit of one recorded answer by itself, with what the fp32 module did there."""
    scale = _scale(reference) if scale is None else scale
    return _limit(scale, relative_error(eager, reference, scale) or 0.0)


def _limit(scale: float, floor: float) -> Limit:
    allowed = min(max(MULTIPLE * floor, SMALLEST), CEILING)
    return Limit(scale=scale, noise_floor=floor, limit=allowed)


def relative_error(actual: np.ndarray, expected: np.ndarray, scale: float) -> float | None:
    """max |actual - expected| / scale; None when shapes differ or it is not a number.

    `scale` grows to the case's own largest value. Integers and booleans are equal (0) or not (1).
    Infinities must be where they are expected.
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
    wide = np.abs(actual[finite].astype(np.float64) - expected[finite])
    scale = max(scale, _scale(expected))
    return float(wide.max() / scale) if scale > 0 else float(wide.max() > 0)


def compare(
    check: str, case: Case, actual: Arrays, expected: Arrays, limits: Mapping[str, Limit]
) -> list[Finding]:
    """One finding for each output that has a limit; a missing output is a failure."""
    findings = []
    for name, limit in limits.items():
        allowed = limit.limit
        error, note = None, ""
        if name not in actual:
            note = "the engine has no such output"
        else:
            error = relative_error(actual[name], expected[name], limit.scale)
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
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return [
        Finding(
            check=check, case=case.name, sizes=case.sizes, output=name,
            error=None, limit=limit.limit, passed=False, note=lines[0][:300],
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


def _scale(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max()) if finite.size else 0.0


def _why_incomparable(actual: np.ndarray, expected: np.ndarray) -> str:
    if actual.shape != expected.shape:
        return f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.size == 0:
        return "nothing to compare"
    bad = int(actual.size - np.isfinite(actual).sum())
    return f"{bad} of {actual.size} values are NaN or infinite"
