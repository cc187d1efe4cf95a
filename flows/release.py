"""The Prefect flow `release`: one recipe through every stage, a task a stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import stages
from flows.console import listener
from flows.logged import logged
from flows.stages import Job
from models.errors import BuildFailed, DataUnavailable
from pipeline.artifacts import load
from pipeline.backends import DEFAULT_TARGET
from pipeline.certificate_text import certificate_markdown
from pipeline.progress import Progress
from pipeline.values import (
    CERTIFICATE_VALUE,
    ENGINE_VALUE,
    MODEL_VALUE,
    REFUSAL_VALUE,
    TRAINED_VALUE,
    Certificate,
    Engine,
    OnnxModel,
    Refusal,
    TrainedModel,
)
from pipeline.verify import require

Record = dict[str, str]  # path, sha256, perhaps why it was refused: what goes from task to task
Plan = dict[str, Any]  # the fields of a `Job` but its reference, as JSON


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
    job = _job(reference, plan)
    return _record(stages.train(job, _progress(job, "train")))


@task(name="export", task_run_name="export {reference}", cache_policy=NO_CACHE, **_downloads)
def export(reference: str, plan: Plan, trained: Record) -> Record:
    job = _job(reference, plan)
    source = load(TrainedModel, Path(trained["path"]), TRAINED_VALUE)
    return _record(stages.export(job, source, _progress(job, "export")))


@task(name="optimize", task_run_name="optimize {reference} {target}", cache_policy=NO_CACHE)
def optimize(reference: str, plan: Plan, model: Record, target: str) -> Record:
    job = _job(reference, plan)
    source = load(OnnxModel, Path(model["path"]), MODEL_VALUE)
    made = stages.optimize(job, source, target, _progress(job, "optimize"))
    return _record(made) | ({"refused": made.why} if isinstance(made, Refusal) else {})


@task(name="verify", task_run_name="verify {reference} {target}", cache_policy=NO_CACHE)
def verify(reference: str, plan: Plan, model: Record, engine: Record, target: str) -> Record:
    job = _job(reference, plan)
    certificate = stages.verify(
        job,
        load(Engine, Path(engine["path"]), ENGINE_VALUE),
        load(OnnxModel, Path(model["path"]), MODEL_VALUE),
        _progress(job, "verify"),
    )
    create_markdown_artifact(
        markdown=certificate_markdown(certificate),
        key=_artifact_key(f"certificate-{certificate.recipe}-{target}"),
        description=f"Certificate of {certificate.recipe} on {target}",
    )
    require(certificate)
    return _record(certificate)


@task(name="package", task_run_name="package {reference}", cache_policy=NO_CACHE)
def package(
    reference: str,
    plan: Plan,
    trained: Record,
    model: Record,
    engines: list[Record],
    certificates: list[Record],
    refused: list[Record],
) -> Record:
    pairs = [
        (
            load(Engine, Path(engine["path"]), ENGINE_VALUE),
            load(Certificate, Path(certificate["path"]), CERTIFICATE_VALUE),
        )
        for engine, certificate in zip(engines, certificates, strict=True)
    ]
    job = _job(reference, plan)
    bundle = stages.package(
        job,
        load(TrainedModel, Path(trained["path"]), TRAINED_VALUE),
        load(OnnxModel, Path(model["path"]), MODEL_VALUE),
        pairs,
        _progress(job, "package"),
        [load(Refusal, Path(one["path"]), REFUSAL_VALUE) for one in refused],
    )
    return {"path": str(bundle.folder), "sha256": bundle.digest}


@flow(name="release", flow_run_name="release {reference}", result_serializer="json")
def release(
    reference: str,
    data: str = "embedded",
    targets: list[str] | None = None,
    changes: dict[str, Any] | None = None,
    out: str = "runs",
    device: str = "cpu",
) -> dict[str, Record]:
    """Take one recipe to a certified bundle; paths and digests of what each stage left.

    `changes` are settings by name. What is already in `out` with the same inputs is not done again.
    """
    names = targets or [DEFAULT_TARGET]
    plan: Plan = {"data": data, "changes": changes or {}, "out": out, "device": device}
    trained = train(reference, plan)
    model = export(reference, plan, trained)
    made = {name: optimize(reference, plan, model, name) for name in names}
    refused = [one for one in made.values() if "refused" in one]
    engines = {name: one for name, one in made.items() if "refused" not in one}
    if not engines:
        raise BuildFailed(refused[0]["refused"], fix=f"use --target {DEFAULT_TARGET}")
    certificates = [
        verify(reference, plan, model, engine, name) for name, engine in engines.items()
    ]
    bundle = package(reference, plan, trained, model, list(engines.values()), certificates, refused)
    return {"train": trained, "export": model, "package": bundle}


def _job(reference: str, plan: Plan) -> Job:
    return Job(reference, **{**plan, "out": Path(plan["out"])})


def _record(value: TrainedModel | OnnxModel | Engine | Refusal | Certificate) -> Record:
    return {"path": str(value.folder), "sha256": value.digest}


def _progress(job: Job, stage: str) -> Progress:
    return logged(listener.get())(job.recipe.name, stage)


def _artifact_key(text: str) -> str:
    """Prefect's artifact keys hold lower-case letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())
