"""Each stage from records to a record, as a child does it: paths and digests in, the same out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flows import comparing, stages
from flows.judging import judge
from flows.replaying import replay
from flows.stages import Job
from pipeline.artifacts import load, sweep
from pipeline.bundle import open_bundle
from pipeline.progress import Progress
from pipeline.samples import HELD_OUT_ROWS, read_samples
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

Record = dict[str, Any]  # path, sha256, whether it was there, and what else a stage has to say
Plan = dict[str, Any]  # the fields of a `Job` but its reference, as JSON
# told(recipe, done, total, text)
Told = Callable[[str, int, int, str], None]


def do(stage: str, told: Told, reference: str, plan: Plan, **inputs: Any) -> Record:
    """Do one stage, or take what lies in the run folder; its record says which it was."""
    job = Job(reference, **{**plan, "out": Path(plan["out"])})
    if job.device == "auto":
        job = replace(job, device="cuda" if torch.cuda.is_available() else "cpu")
    heard: list[int] = []

    def progress(done: int, total: int, text: str) -> None:
        heard.append(done)
        told(job.recipe.name, done, total, text)

    record = _STAGES[stage](job, progress, **inputs)
    # A stage that has something to do says so; one that finds its result has nothing to say.
    return {"name": job.recipe.name, "cached": not heard} | record


def _train(job: Job, progress: Progress) -> Record:
    sweep(job.folder)  # what a killed run left half-written
    value = stages.train(job, progress)
    return _record(value)


def _export(job: Job, progress: Progress, trained: Record) -> Record:
    source = load(TrainedModel, Path(trained["path"]), TRAINED_VALUE)
    return _record(stages.export(job, source, progress))


def _optimize(job: Job, progress: Progress, model: Record, target: str) -> Record:
    source = load(OnnxModel, Path(model["path"]), MODEL_VALUE)
    made = stages.optimize(job, source, target, progress)
    return _record(made) | ({"refused": made.why} if isinstance(made, Refusal) else {})


def _verify(job: Job, progress: Progress, model: Record, engine: Record) -> Record:
    return _record(
        stages.verify(
            job,
            load(Engine, Path(engine["path"]), ENGINE_VALUE),
            load(OnnxModel, Path(model["path"]), MODEL_VALUE),
            progress,
        )
    )


def _package(
    job: Job,
    progress: Progress,
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
    bundle = stages.package(
        job,
        load(TrainedModel, Path(trained["path"]), TRAINED_VALUE),
        load(OnnxModel, Path(model["path"]), MODEL_VALUE),
        pairs,
        progress,
        [load(Refusal, Path(one["path"]), REFUSAL_VALUE) for one in refused],
    )
    version = bundle.manifest.version
    return {"path": str(bundle.folder), "sha256": bundle.digest, "version": version}


def _look(job: Job, progress: Progress) -> Record:
    """What data there are now."""
    return {"path": "", "sha256": job.dataset.digest}


def _judge(
    job: Job, progress: Progress, model: Record, bundle: Record, blessed: str, margin: float
) -> Record:
    """The verdict on a candidate's bundle beside the blessed one, on the candidate's held-out rows.

    The certificate of every engine is asked for before.
    """
    progress(0, 1, "asking the blessed model and the candidate")
    candidate = open_bundle(Path(bundle["path"]))
    for target in candidate.manifest.engines:
        candidate.certificate(target)
    recipe = job.recipe
    verdict = judge(
        open_bundle(Path(blessed)),
        candidate,
        read_samples(Path(model["path"]) / HELD_OUT_ROWS),
        margin,
        recipe.metric,
        1 if recipe.direction == "max" else -1,
    )
    progress(1, 1, verdict.reason)
    return {"path": "", "sha256": candidate.digest, "verdict": verdict.model_dump(mode="json")}


def _recheck(job: Job, progress: Progress, bundle: str, serve: bool) -> Record:
    """A bundle's certificates, made again on this machine beside the run's stages."""
    progress(0, 1, "asking every case again")
    opened = open_bundle(Path(bundle))
    out = job.folder / f"recheck-{opened.manifest.version}"
    done = replay(opened, out, serve=serve)
    rows = [
        {
            "engine": one.here.label,
            "packaged": "passed" if one.packaged else "failed",
            "here": "passed" if one.here else "failed",
            "failures": list(one.here.failures),
            "not run": list(one.here.not_run),
        }
        for one in done
    ]
    progress(1, 1, "asked")
    return {"path": str(out), "sha256": opened.digest, "engines": rows}


def _grid(job: Job, progress: Progress, vary: dict[str, list[str]]) -> Record:
    """Every combination of some settings."""
    sweep(job.folder)
    return {"variants": comparing.grid(job, vary)}


def _variant(job: Job, progress: Progress, settings: dict[str, Any]) -> Record:
    """One combination, trained."""
    made = comparing.variant(job, settings, progress)
    row = {"settings": settings} | made
    return {"path": made["path"], "sha256": made["digest"], "row": row}


def _rank(
    job: Job, progress: Progress, variants: list[dict[str, Any]], rows: list[dict[str, Any]],
    command: str,
) -> Record:  # fmt: skip
    """What all combinations came to; as a table for people as well."""
    document = comparing.concluded(job, variants, rows, command)
    return {
        "path": document["page"], "document": document, "table": comparing.table(document),
        "said": [comparing.verdict(document), *comparing.failures(document)],
    }  # fmt: skip


_STAGES: dict[str, Callable[..., Record]] = {
    "train": _train,
    "export": _export,
    "optimize": _optimize,
    "verify": _verify,
    "package": _package,
    "look": _look,
    "judge": _judge,
    "recheck": _recheck,
    "grid": _grid,
    "variant": _variant,
    "rank": _rank,
}


def _record(value: TrainedModel | OnnxModel | Engine | Refusal | Certificate) -> Record:
    return {"path": str(value.folder), "sha256": value.digest}
