"""Control: would the engine act as the fp64 module, and what does it lose where it would not?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from models.codec import Actions
from models.signature import BATCH
from pipeline.cases import HELD_OUT, Case
from pipeline.compare import Run
from pipeline.evaluation import wilson
from pipeline.values import Finding, Limit

AGREEMENT = "agreement"
REGRET = "regret"


def check_decisions(
    run: Run, cases: Iterable[Case], actions: Actions, limits: Mapping[str, Limit]
) -> list[Finding]:
    """Greedy actions of an engine against the fp64 module's, over all held-out rows.

    Regret is what the module gives up by the engine's action, max_a Q64(s, a) - Q64(s, engine's).
    Two values that are each off by the output's limit may change places, so an action with no more
    regret than twice the limit is excused. "agreement": the share of rows whose action is another
    one and not excused, of which none is allowed. "regret": the worst of all rows, over the scale.
    Whatever keeps a row from being compared fails both.
    """
    held_out = [case for case in cases if case.origin == HELD_OUT]
    allowed = limits[actions.values]
    where = f"{len(held_out)} held-out cases"
    try:
        worth, chosen = _ask(run, held_out, actions)
    except Exception as error:  # whatever a backend raises is a failed comparison
        note = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        return [
            Finding(
                check=check, case=where, sizes={}, output=actions.values,
                error=None, limit=limit, passed=False, note=note,
            )
            for check, limit in ((AGREEMENT, 0.0), (REGRET, 2 * allowed.limit))
        ]  # fmt: skip
    rows = len(worth)
    regret = worth.max(1) - worth[np.arange(rows), chosen]
    other = chosen != worth.argmax(1)
    lost = regret > 2 * allowed.limit * allowed.scale
    same = rows - int(other.sum())
    low, high = wilson(same, rows)
    share = float(lost.sum()) / rows
    worst = float(regret.max()) / allowed.scale if allowed.scale else float(regret.max() > 0)
    return [
        Finding(
            check=AGREEMENT, case=where, sizes={BATCH: rows}, output=actions.values,
            error=share, limit=0.0, passed=share == 0,
            note=f"{same} of {rows} actions are the fp64 module's (95 % interval {low:.2%} to "
            f"{high:.2%}), {int((other & ~lost).sum())} more are of equal worth within the limit",
        ),
        Finding(
            check=REGRET, case=where, sizes={BATCH: rows}, output=actions.values,
            error=worst, limit=2 * allowed.limit, passed=share == 0,
            note=f"mean {regret.mean():.1e} and worst {regret.max():.1e} in the unit of the values",
        ),
    ]  # fmt: skip


def _ask(run: Run, cases: list[Case], actions: Actions) -> tuple[np.ndarray, np.ndarray]:
    """What each action is worth to the module [rows, actions], and the engine's action [rows]."""
    worth, chosen = [], []
    for case in cases:
        wanted, values = case.reference[actions.values], run(case.inputs)[actions.values]
        if values.shape != wanted.shape:
            raise ValueError(f"{case.name}: shape {list(values.shape)} of {list(wanted.shape)}")
        if not (np.isfinite(values).all() and np.isfinite(wanted).all()):
            raise ValueError(f"{case.name}: not a number")
        worth.append(wanted)
        chosen.append(values.argmax(1))
    if not sum(map(len, worth)):
        raise ValueError("no held-out row was recorded")
    return np.concatenate(worth), np.concatenate(chosen)
