"""The Prefect flow `release`: one recipe through every stage, a task a stage."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from flows import shown
from flows.children import ask, children
from flows.console import listener
from flows.logged import logged
from models.errors import BadSetting, BuildFailed, DataUnavailable
from pipeline.artifacts import load
from pipeline.backends import DEFAULT_TARGET
from pipeline.progress import Progress
from pipeline.values import CERTIFICATE_VALUE, Certificate
from pipeline.verify import require

Record = dict[str, Any]  # path, sha256, and what else a stage says: what goes from task to task
Plan = dict[str, Any]  # `job`: the fields of a `Job` but its reference; `limits`: seconds by stage

# Seconds after which a stage is ended, with all that it has started.
LIMITS = {
    name: timedelta(hours=hours).total_seconds()
    for name, hours in {
        "train": 24, "export": 2, "optimize": 4, "verify": 4, "package": 1,
        "look": 1, "judge": 4, "recheck": 4,
        "grid": 1, "variant": 24, "rank": 1,
    }.items()
}  # fmt: skip


def _unreachable(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Only a download that failed on its way can go better the next time."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, DataUnavailable) and isinstance(error.__cause__, OSError)


_downloads = {
    "retries": 2,
    "retry_delay_seconds": [1, 4],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _unreachable,
}


@task(name="train", task_run_name="train {reference}", cache_policy=NO_CACHE, **_downloads)
def train(reference: str, plan: Plan) -> Record:
    return finished(stage("train", reference, plan))


@task(name="export", task_run_name="export {reference}", cache_policy=NO_CACHE, **_downloads)
def export(reference: str, plan: Plan, trained: Record) -> Record:
    return finished(stage("export", reference, plan, trained=trained))


@task(name="optimize", task_run_name="optimize {reference} {target}", cache_policy=NO_CACHE)
def optimize(reference: str, plan: Plan, model: Record, target: str) -> Record:
    return finished(stage("optimize", reference, plan, model=model, target=target))


@task(name="verify", task_run_name="verify {reference} {target}", cache_policy=NO_CACHE)
def verify(reference: str, plan: Plan, model: Record, engine: Record, target: str) -> Record:
    record = stage("verify", reference, plan, model=model, engine=engine)
    certificate = load(Certificate, Path(record["path"]), CERTIFICATE_VALUE)
    shown.certificate(certificate)
    require(certificate)
    return finished(record)


@task(name="package", task_run_name="package {reference}", cache_policy=NO_CACHE)
def package(reference: str, plan: Plan, parts: dict[str, Any]) -> Record:
    return finished(stage("package", reference, plan, **parts))


@flow(name="release", flow_run_name="release {reference}", result_serializer="json")
def release(
    reference: str,
    data: str = "embedded",
    targets: list[str] | None = None,
    changes: dict[str, Any] | None = None,
    out: str = "runs",
    device: str = "cpu",
    limits: dict[str, float] | None = None,
) -> dict[str, Record]:
    """Take one recipe to a certified bundle; paths and digests of what each stage left.

    `changes` are settings by name, `limits` seconds by stage. What is already in `out` with the
    same inputs is not done again: its task then ends as `Cached`.
    """
    names = targets or [DEFAULT_TARGET]
    job = {"data": data, "changes": changes or {}, "out": out, "device": device}
    plan = planned(job, limits)
    with children():
        trained = made_by(train(reference, plan))
        model = made_by(export(reference, plan, trained))
        made = {name: made_by(optimize(reference, plan, model, name)) for name in names}
        refused = [one for one in made.values() if "refused" in one]
        engines = {name: one for name, one in made.items() if "refused" not in one}
        if not engines:
            raise BuildFailed(refused[0]["refused"], fix=f"use --target {DEFAULT_TARGET}")
        certificates = {
            name: made_by(verify(reference, plan, model, engine, name))
            for name, engine in engines.items()
        }
        parts = {
            "trained": trained, "model": model, "engines": list(engines.values()),
            "certificates": list(certificates.values()), "refused": refused,
        }  # fmt: skip
        bundle = made_by(package(reference, plan, parts))
    done = {"train": trained, "export": model}
    done |= {f"optimize {name}": one for name, one in made.items()}
    done |= {f"verify {name}": one for name, one in certificates.items()}
    shown.released(bundle["name"], done | {"package": bundle})
    return {"train": trained, "export": model, "package": bundle}


def planned(job: dict[str, Any], limits: dict[str, float] | None) -> Plan:
    """A plan with these limits in the place of the usual ones; raises `BadSetting` for no limit."""
    for name, seconds in (limits or {}).items():
        if name not in LIMITS or not seconds > 0:
            raise BadSetting(
                "a limit is refused", got=f"{name}={seconds:g}",
                expected=f"seconds, of one of {', '.join(LIMITS)}",
            )  # fmt: skip
    return {"job": job, "limits": LIMITS | (limits or {})}


def stage(name: str, reference: str, plan: Plan, **inputs: Any) -> Record:
    """What a child made of a stage; its progress goes to who listens, the log and an artifact."""
    logger = get_run_logger()
    listeners: list[Progress] = []

    def told(recipe: str, done: int, total: int, text: str) -> None:
        if not listeners:
            listeners.append(logged(listener.get())(recipe, name))
            listeners.append(shown.progress(f"{name} {recipe}"))
        for one in listeners:
            one(done, total, text)

    return ask(
        name,
        {"reference": reference, "plan": plan["job"], **inputs},
        limit=plan["limits"][name],
        told=told,
        printed=logger.info,
    )


def finished(record: Record) -> Any:
    """A stage whose result lay in the run folder, whole and of these very inputs, is `Cached`."""
    if not record["cached"]:
        return record
    get_run_logger().info("cached: %s is whole and has the same key", record["path"])
    return Completed(name="Cached", message=f"found whole in {record['path']}", data=record)


def made_by(answer: Any) -> Any:
    """What a task or flow came to: one that returns a state of its own name is given as that."""
    return answer.result() if isinstance(answer, State) else answer
