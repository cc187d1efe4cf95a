"""The Prefect flow `release_zoo`: many recipes side by side, within the server's limit."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows import RELEASES, shown
from flows.children import children
from flows.release import Record, release
from models.errors import FucinaError


@task(name="one", task_run_name="{reference}", cache_policy=NO_CACHE)
def one(reference: str, parameters: dict[str, Any]) -> Any:
    """A release of its own, when it is its turn. Without the limit on the server it fails."""
    with concurrency(RELEASES, occupy=1, strict=True):
        return release(reference, **parameters)


_threads: Any = ThreadPoolTaskRunner(max_workers=32)  # typed as if of one result only


@flow(name="release_zoo", flow_run_name="release_zoo", result_serializer="json",
      task_runner=_threads)  # fmt: skip
def release_zoo(
    references: list[str],
    data: str = "embedded",
    targets: list[str] | None = None,
    out: str = "runs",
    device: str = "cpu",
    limits: dict[str, float] | None = None,
) -> dict[str, dict[str, Record]]:
    """Release recipes, each in a child of its own; one that fails does not stop the others.

    Raises `FucinaError` at the end that names those that failed, with the first one's reason.
    """
    parameters = {
        "data": data, "targets": targets, "out": out, "device": device, "limits": limits,
    }  # fmt: skip
    with children():  # which end with this run when it is cancelled, and then its threads do
        running = {name: one.submit(name, parameters) for name in dict.fromkeys(references)}
        wait(list(running.values()))
    made = {name: future.result(raise_on_failure=False) for name, future in running.items()}
    failed = {name: error for name, error in made.items() if isinstance(error, Exception)}
    shown.zoo(made)
    if failed:
        raise FucinaError(
            f"{len(failed)} of {len(made)} recipes were not released: {', '.join(failed)}",
            got=next(iter(failed.values())),
            fix="see their runs; what is finished is kept",
        )
    return made
