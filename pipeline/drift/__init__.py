"""Task drift: how far the answers to the task moved from the fp64 module's, over held-out rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.codec import Codec
from models.errors import first_line
from models.signature import Arrays, Signature
from pipeline.compare import Run, array_scale
from pipeline.drift.paired import changed_share
from pipeline.drift.tasks import Change, Pair, by_row, tasks_of
from pipeline.samples import Samples
from pipeline.values import Drift, Limit

_LEADS = 1000


def check_drift(
    run: Run,
    samples: Samples,
    signature: Signature,
    codec: Codec,
    limits: Mapping[str, Limit],
    precision: str,
    allowed: float,
) -> list[Drift]:
    """One value for each way in which the codec's task is measured; none where it has no task.

    In fp32 no answer may change but for ties, which the output's limit leaves open. Of lower
    precision, whose limit is wide, at most the share `allowed` may, and only equal values are ties.
    What cannot be compared has failed.
    """
    tasks = list(tasks_of(codec))
    outputs = {output for _, output, _ in tasks}
    exact = precision == "fp32"
    allowed = 0.0 if exact else allowed
    try:
        said = _ask(run, samples, signature, outputs) if tasks else {}
    except Exception as error:  # whatever a backend raises, there is nothing to compare
        return [_failed(measure, output, allowed, error) for measure, output, _ in tasks]
    found = []
    for measure, output, task in tasks:
        try:
            pair = _pair(output, said, samples, limits[output], exact)
            found.append(_judge(measure, output, pair, task(pair), allowed))
        except Exception as error:
            found.append(_failed(measure, output, allowed, error))
    return found


def _ask(run: Run, samples: Samples, signature: Signature, outputs: set[str]) -> Arrays:
    def some(inputs: Arrays) -> Arrays:
        return {name: array for name, array in run(inputs).items() if name in outputs}

    return samples.ask(some, signature)


def _pair(output: str, said: Arrays, samples: Samples, limit: Limit, exact: bool) -> Pair:
    """Both sides of an output. Raises `ValueError` where they cannot be compared."""
    if output not in said:
        raise ValueError("the engine has no such output")
    module, engine = samples.reference[output], said[output]
    if engine.shape != module.shape:
        raise ValueError(f"shape {list(engine.shape)}, expected {list(module.shape)}")
    for side, values in (("module", module), ("engine", engine)):
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise ValueError(f"{bad} of {values.size} values of the {side} are NaN or infinite")
    scale = max(limit.scale, array_scale(module))
    module, engine = module.astype(np.float64), engine.astype(np.float64)
    return Pair(module, engine, samples, limit.limit * scale, scale, exact)


def _judge(measure: str, output: str, pair: Pair, change: Change, allowed: float) -> Drift:
    counted = np.ones_like(change.other) if change.counted is None else change.counted
    answers = by_row(counted)
    if not answers.any():
        raise ValueError("nothing to compare")
    other = lost = change.other & counted
    leads, tie = np.empty(0), 0.0
    if change.leads is not None:
        tie = change.reach * pair.limit if pair.exact else 0.0
        leads = np.sort(change.leads[other])
        lost = other & (change.leads > tie)
    share, interval = changed_share(by_row(lost), answers)
    scale = pair.scale or 1.0
    return Drift(
        measure=measure,
        output=output,
        answers=int(answers.sum()),
        changed=share,
        interval=interval,
        allowed=allowed,
        passed=share <= allowed,
        note=change.note,
        measures=change.measures,
        ties=int(other.sum() - lost.sum()),
        tie=tie / scale,
        leads=tuple((_some(leads) / scale).tolist()),
    )


def _failed(measure: str, output: str, allowed: float, error: Exception) -> Drift:
    return Drift(
        measure=measure, output=output, answers=0, changed=1.0, interval=(0.0, 1.0),
        allowed=allowed, passed=False, note=first_line(error),
    )  # fmt: skip


def _some(values: np.ndarray) -> np.ndarray:
    """At most 1000 of sorted values, evenly among them, the ends included."""
    count = min(_LEADS, len(values))
    return values[np.linspace(0, len(values) - 1, count).round().astype(int)] if count else values
