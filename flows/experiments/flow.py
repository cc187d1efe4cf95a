"""The Prefect flow `experiment`: run one, write its page and its result."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from flows.console import listener
from flows.experiments import Experiment, Setup, find
from flows.experiments.page import Page, write_page
from flows.logged import logged
from models.errors import BadSetting
from pipeline.artifacts import write_json

REPORT = "report.html"
RESULT = "result.json"


def check(experiment: Experiment, changes: Mapping[str, Any]) -> None:
    """Raise `BadSetting` for a setting that the experiment itself varies."""
    for name in changes:
        if name in (*experiment.varied, "floor"):
            raise BadSetting(
                f"experiment {experiment.name!r} decides setting {name!r} itself",
                fix="leave it out",
            )


@flow(name="experiment", flow_run_name="experiment {name}", result_serializer="json")
def experiment(
    name: str,
    data: str = "embedded",
    changes: dict[str, Any] | None = None,
    out: str = "runs",
    device: str = "cpu",
    command: str = "",
) -> dict[str, Any]:
    """Run one experiment in its own folder, or go on with it; its result as one document."""
    chosen = find(name)
    settings = changes or {}
    check(chosen, settings)
    folder = Path(out) / "experiments" / name
    token = listener.set(logged(listener.get()))
    start = time.perf_counter()
    try:
        outcome = chosen.run(Setup(folder, data, device, settings))
    finally:
        listener.reset(token)
    facts = {"data": data, "device": device, **settings, **outcome.settings}
    page = Page(
        title=chosen.title,
        command=command,
        claim=chosen.claim,
        paper=chosen.paper,
        verdict=outcome.verdict,
        holds=outcome.holds,
        rows=outcome.rows,
        figures=outcome.figures,
        settings=facts,
    )
    write_page(page, folder / REPORT)
    document = plain(
        {
            "name": name,
            "title": chosen.title,
            "claim": chosen.claim,
            "paper": chosen.paper,
            "settings": facts,
            "verdict": outcome.verdict,
            "holds": outcome.holds,
            "rows": outcome.rows,
            "report": str(folder / REPORT),
            "result": str(folder / RESULT),
        }
    )
    write_json(folder / RESULT, document)
    return document | {"seconds": round(time.perf_counter() - start, 2)}


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numpy's scalars as Python's, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
