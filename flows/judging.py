"""Judging: is a candidate not worse than what is served, on the same held-out rows?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from models.errors import first_line
from pipeline.blessed import fold, read_record
from pipeline.bundle import Bundle, open_bundle
from pipeline.drift.tasks import Pair, tasks_of
from pipeline.samples import Samples

# What is a model's worth, of all that is measured of pairs of models, and which way.
_WORTH = {
    "accuracy": 1, "mean IoU": 1, "RMSE": -1, "perplexity": -1, "reconstruction MSE": -1,
}  # fmt: skip


class Measured(BaseModel):
    """One measure of both models, and the 95 % interval of the candidate's less the blessed's.

    `allowed` is how much worse the interval may reach, in the measure's unit.
    """

    model_config = ConfigDict(frozen=True)

    measure: str
    better: int  # 1 where more is better, else -1
    blessed: float
    candidate: float
    low: float
    high: float
    allowed: float
    how: str

    @property
    def worst(self) -> float:
        """By how much the candidate may be worse, at the interval's bad end."""
        return -self.low if self.better > 0 else self.high

    @property
    def passed(self) -> bool:
        return self.worst <= self.allowed

    def __str__(self) -> str:
        said = (
            "is not worse" if self.passed
            else "is worse" if (self.high if self.better > 0 else -self.low) < 0
            else "may be worse"
        )  # fmt: skip
        return (
            f"{self.measure} {said}: {self.candidate:.4g}, blessed {self.blessed:.4g}, difference "
            f"{self.low:+.3g} to {self.high:+.3g} ({self.how}), may be {self.allowed:.3g} worse"
        )


class Verdict(BaseModel):
    """Whether a candidate may be served in the place of what is, and why."""

    model_config = ConfigDict(frozen=True)

    promote: bool
    reason: str
    measures: tuple[Measured, ...] = ()


def blessed_bundle(run: Path) -> Bundle | None:
    """What is blessed of a run now; raises `BundleError` where it is not what was blessed."""
    history, _ = fold(read_record(run))
    return open_bundle(run / history[-1].bundle) if history else None


def judge(
    blessed: Bundle,
    candidate: Bundle,
    rows: Samples,
    margin: float,
    metric: str,
    better: int,
) -> Verdict:
    """Ask both models the same rows; the candidate must not be worse by more than `margin`.

    That is the worse end of the paired 95 % interval, for shares absolute and for other measures as
    a share of the blessed one's. Where no measure is of rows, `metric` decides, by the intervals
    that training gave both. What cannot be measured is no reason to promote.
    """
    if blessed.manifest.signature != candidate.manifest.signature:
        return Verdict(promote=False, reason="the signature is another, which clients would notice")
    try:
        measures = tuple(_paired(blessed, candidate, rows, margin))
    except Exception as error:  # whatever an engine raises, nothing speaks for the candidate
        return Verdict(promote=False, reason=f"it cannot be compared: {first_line(error)}")
    if not measures:
        measures = tuple(_trained(blessed, candidate, metric, better, margin))
    if not measures:
        return Verdict(promote=False, reason=f"nothing says whether its {metric} is worse")
    bad = [one for one in measures if not one.passed]
    return Verdict(promote=not bad, reason="; ".join(map(str, bad or measures)), measures=measures)


def _paired(blessed: Bundle, candidate: Bundle, rows: Samples, margin: float) -> Iterator[Measured]:
    names = candidate.manifest.engines
    name = next((one for one in names if one in blessed.manifest.engines), None)
    if name is None:
        raise ValueError(f"the blessed bundle has no engine for {' or '.join(names)}")
    signature = candidate.manifest.signature
    ours, theirs = (
        rows.ask(bundle.open_engine(name).run, signature) for bundle in (blessed, candidate)
    )
    for _, output, task in tasks_of(candidate.codec):
        one, other = (said[output].astype(np.float64) for said in (ours, theirs))
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            raise ValueError(f"{output!r} has values that are no numbers")
        change = task(Pair(one, other, rows, 0.0, 1.0, False))
        for measure in change.measures.keys() & _WORTH.keys():
            before, now, *interval = change.measures[measure]
            # The same answers are as good on any rows.
            low, high = (0.0, 0.0) if np.array_equal(one, other) else interval
            yield _measured(
                measure, _WORTH[measure], before, now, low, high, margin, f"{len(rows)} rows"
            )


def _trained(
    blessed: Bundle, candidate: Bundle, metric: str, better: int, margin: float
) -> Iterator[Measured]:
    """The test metric of both trainings, as of independent samples (Newcombe 1998, method 10)."""
    sides = [bundle.manifest for bundle in (blessed, candidate)]
    same = sides[0].data.get("digest") == sides[1].data.get("digest")
    if not same or any(metric not in side.intervals for side in sides):
        return
    (before, (b_low, b_high)), (now, (c_low, c_high)) = (
        (side.metrics[metric], side.intervals[metric]) for side in sides
    )
    low = now - before - math.hypot(now - c_low, b_high - before)
    high = now - before + math.hypot(c_high - now, before - b_low)
    yield _measured(metric, better, before, now, low, high, margin, "of both trainings, unpaired")


def _measured(
    measure: str, better: int, before: float, now: float, low: float, high: float, margin: float,
    how: str,
) -> Measured:  # fmt: skip
    share = "accuracy" in measure or "IoU" in measure
    return Measured(
        measure=measure, better=better, blessed=before, candidate=now, low=low, high=high,
        allowed=margin if share else margin * abs(before), how=how,
    )  # fmt: skip


def describe(verdict: Verdict) -> list[dict[str, Any]]:
    """The measures as rows of a table."""
    return [
        one.model_dump(exclude={"better"}) | {"not worse": one.passed} for one in verdict.measures
    ]
