"""What a report shows of speed: latencies beside PyTorch, and the candidates for an engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline import plots
from pipeline.values import Candidate


def latency_plot(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Milliseconds per call over the batch: PyTorch eager once, then each target.

    None when a batch was measured at several sizes of other axes, which one line cannot show.
    """
    if not rows or len({(row["target"], row["batch"]) for row in rows}) < len(rows):
        return None
    eager = {row["batch"]: row["eager_ms"] for row in rows}
    series = {"PyTorch eager": (sorted(eager), [eager[batch] for batch in sorted(eager)])}
    for target in dict.fromkeys(row["target"] for row in rows):
        own = sorted((row["batch"], row["engine_ms"]) for row in rows if row["target"] == target)
        series[target] = ([batch for batch, _ in own], [ms for _, ms in own])
    return plots.lines(
        "latency",
        series,
        f"Milliseconds per call of PyTorch eager and {len(series) - 1} engines over batch sizes",
        xlabel="batch (rows in one call)",
        ylabel="milliseconds per call (logarithmic)",
        log_x=True,
        log_y=True,
    )


def batches(candidates: Sequence[Candidate]) -> list[int]:
    """Every number of rows that any was measured with."""
    return sorted({batch for one in candidates for batch in one.milliseconds})


def candidates_plot(target: str, candidates: Sequence[Candidate]) -> Markup:
    """Milliseconds per call of each candidate at each number of rows; the one kept is marked."""
    return plots.bars(
        f"candidates {target}",
        [f"{'✓ ' if one.kept else ''}{one.name}" for one in candidates],
        {
            f"batch {batch}": [one.milliseconds.get(batch, math.nan) for one in candidates]
            for batch in batches(candidates)
        },
        f"Milliseconds per call of {len(candidates)} candidates for {target}",
        xlabel="milliseconds per call (logarithmic)",
    )
