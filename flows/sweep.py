"""The Prefect flow `sweep`: every combination of some settings side by side, and the best one."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows import RELEASES, shown
from flows.children import children
from flows.release import Plan, Record, finished, planned, stage
from models.errors import TrainingFailed


@task(name="variant", task_run_name="variant {settings}", cache_policy=NO_CACHE)
def variant(reference: str, plan: Plan, settings: dict[str, Any]) -> Record:
    """One variant, when it is its turn. Without the limit on the server it fails."""
    with concurrency(RELEASES, occupy=1, strict=True):
        return finished(stage("variant", reference, plan, settings=settings))


_threads: Any = ThreadPoolTaskRunner(max_workers=32)  # typed as if of one result only


@flow(name="sweep", flow_run_name="sweep {reference}", result_serializer="json",
      task_runner=_threads)  # fmt: skip
def sweep(
    reference: str,
    vary: dict[str, list[str]],
    data: str = "embedded",
    changes: dict[str, Any] | None = None,
    out: str = "runs",
    device: str = "cpu",
    limits: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Train every combination of the values of `vary`, rank them on the validation split.

    The document of `fucina compare`; the test split is told of the best one only. A variant whose
    training fails is a row that says so; raises `TrainingFailed` when none could be trained.
    """
    job = {"data": data, "changes": changes or {}, "out": out, "device": device}
    plan = planned(job, limits)
    with children():
        variants = stage("grid", reference, plan, vary=vary)["variants"]
        running = [variant.submit(reference, plan, settings) for settings in variants]
        wait(running)
        made = [one.result(raise_on_failure=False) for one in running]
        rows = [_row(*pair) for pair in zip(variants, made, strict=True)]
        ranked = stage("rank", reference, plan, variants=variants, rows=rows, command="")
    document = ranked["document"]
    shown.swept(ranked["name"], ranked["table"], ranked["said"], ranked["path"])
    if not document["chosen"]:
        raise TrainingFailed(ranked["said"][0], got=ranked["said"][1])
    return document


def _row(settings: dict[str, Any], made: Any) -> Record:
    """A row of the comparison; what is wrong with more than a variant is raised."""
    if isinstance(made, TrainingFailed):
        return {"settings": settings, "error": str(made)}
    if isinstance(made, Exception):
        raise made
    return made["row"]
