"""Each stage on a run folder: what is already there with the same key is not done again.

runs/lenet5/train/KEY/     TrainedModel
runs/lenet5/export/KEY/    OnnxModel
runs/lenet5/optimize/KEY/  Engine
runs/lenet5/verify/KEY/    Certificate
runs/lenet5/package/KEY/   the bundle
runs/lenet5/build-only/T/  what was compiled for a target and never opened
runs/lenet5/bundle         a link to the last one
runs/lenet5/run.json       where the last run's parts lie

A key is the digest of all that the result depends on: the parents' digests, the settings, the
source code of the stage and of the recipe, the library versions. Folders are renamed into place
when whole, so a process killed at any moment leaves nothing that looks finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from flows import RUN_FILE
from flows.launching import Placement, launch
from models.datasets import Dataset
from models.errors import BuildFailed, BundleError, MissingArtifact
from models.recipe import Recipe
from models.zoo import find
from pipeline.artifacts import digest_json, load, new_folder, point, write_json
from pipeline.backends import DEFAULT_TARGET, backend, backend_module
from pipeline.backends import target as find_target
from pipeline.blessed import LAST
from pipeline.bundle import Bundle, open_bundle
from pipeline.parts import check
from pipeline.progress import Progress, silent
from pipeline.values import (
    CANDIDATES,
    CERTIFICATE_VALUE,
    ENGINE_VALUE,
    MODEL_VALUE,
    REFUSAL_VALUE,
    TRAINED_VALUE,
    Candidate,
    Certificate,
    Engine,
    OnnxModel,
    Refusal,
    TrainedModel,
)
from pipeline.versions import folder_digest, libraries, source_digest

Value = TypeVar("Value", bound=BaseModel)
Result = TypeVar("Result")

STAGES = ("train", "export", "optimize", "verify", "package")


@dataclass(frozen=True)
class Job:
    """One recipe to take through the stages, on which data, with which settings, to where."""

    reference: str
    data: str = "embedded"
    targets: tuple[str, ...] = (DEFAULT_TARGET,)
    changes: dict[str, Any] = field(default_factory=dict)
    out: Path = Path("runs")
    device: str = "cpu"
    placement: Placement = field(default_factory=Placement)

    @cached_property
    def recipe(self) -> Recipe:
        return find(self.reference).override(self.changes).on(self.data)

    @cached_property
    def dataset(self) -> Dataset:
        return self.recipe.load(self.data)

    @property
    def folder(self) -> Path:
        return self.out / self.recipe.name

    @property
    def modules(self) -> tuple[str, ...]:
        """Where the recipe's own code is: where it is written, and where what it names is."""
        fields = vars(self.recipe).values()
        named = [part for f in fields for part in (f.values() if isinstance(f, Mapping) else [f])]
        places = {part.__module__ for part in named if callable(part)}
        if ":" in self.reference:
            places.add(self.reference.partition(":")[0])
        return tuple(sorted(places))


@dataclass(frozen=True)
class Parts:
    """What a job's stages have made so far."""

    trained: TrainedModel | None = None
    model: OnnxModel | None = None
    engines: tuple[Engine, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    bundle: Bundle | None = None


def resumed(job: Job, stage: str) -> Parts:
    """What lies in the run folder of all stages before `stage`.

    Raises `MissingArtifact` naming the command that makes what is missing.
    """
    parts = Parts()
    for earlier in STAGES[: STAGES.index(stage)]:
        parts = advance(job, earlier, parts, only_resume=True)
    return parts


def advance(
    job: Job, stage: str, parts: Parts, progress: Progress = silent, only_resume: bool = False
) -> Parts:
    """Do one stage for every target of the job."""
    match stage, parts:
        case "train", _:
            return Parts(train(job, progress, only_resume))
        case "export", Parts(trained=TrainedModel() as trained):
            return replace(parts, model=export(job, trained, progress, only_resume))
        case "optimize", Parts(model=OnnxModel() as model):
            made = [optimize(job, model, t, progress, only_resume) for t in job.targets]
            engines, refusals = sort_out(made)
            return replace(parts, engines=engines, refusals=refusals)
        case "verify", Parts(model=OnnxModel() as model):
            found = [verify(job, e, model, progress, only_resume) for e in parts.engines]
            return replace(parts, certificates=tuple(found))
        case "package", Parts(trained=TrainedModel() as trained, model=OnnxModel() as model):
            pairs = list(zip(parts.engines, parts.certificates, strict=True))
            bundle = package(job, trained, model, pairs, progress, parts.refusals)
            return replace(parts, bundle=bundle)
    raise ValueError(f"{stage!r} is not the stage after {parts}")


def sort_out(
    made: Sequence[Engine | Refusal],
) -> tuple[tuple[Engine, ...], tuple[Refusal, ...]]:
    """Engines, and what is not worth having beside them.

    Raises `BuildFailed` when not one engine is left.
    """
    engines = tuple(one for one in made if isinstance(one, Engine))
    refusals = tuple(one for one in made if isinstance(one, Refusal))
    if not engines:
        raise BuildFailed(refusals[0].why, fix=f"use --target {DEFAULT_TARGET}")
    return engines, refusals


def train(job: Job, progress: Progress = silent, only_resume: bool = False) -> TrainedModel:
    """Train, or take what is there. With `only_resume`, raises `MissingArtifact` instead."""
    from pipeline.train import train as stage

    recipe = job.recipe
    key = _key(
        "train",
        source=source_digest("pipeline.train", *job.modules),
        data=job.dataset.digest,
        settings=recipe.all_settings(job.data) | {"floor": recipe.floor[job.data]},
        device=job.device,
        libraries=libraries("torch", "numpy"),
    )
    checkpoint = job.folder / "train" / f"{key}.checkpoint"

    def make(out: Path) -> object:
        if job.placement.world > 1:
            return launch(job, job.placement, out, checkpoint, progress)
        return stage(
            recipe, job.data, job.dataset, out,
            device=job.device, checkpoint=checkpoint, progress=progress,
        )  # fmt: skip

    value = _resume(job, "train", key, _reader(TrainedModel, TRAINED_VALUE), make, only_resume)
    checkpoint.unlink(missing_ok=True)
    return value


def export(
    job: Job, trained: TrainedModel, progress: Progress = silent, only_resume: bool = False
) -> OnnxModel:
    """Export, or take what is there."""
    from pipeline.export import export as stage

    key = _key(
        "export",
        source=source_digest("pipeline.export", *job.modules),
        trained=trained.digest,
        libraries=libraries("torch", "onnx", "onnxscript", "onnxruntime"),
    )

    def make(out: Path) -> object:
        return stage(job.recipe, job.dataset, trained, out, progress=progress)

    return _resume(job, "export", key, _reader(OnnxModel, MODEL_VALUE), make, only_resume)


def optimize(
    job: Job, model: OnnxModel, target: str, progress: Progress = silent, only_resume: bool = False
) -> Engine | Refusal:
    """Optimize for one target, or take what is there; a refusal is a result like any other."""
    from pipeline.optimize import optimize as stage

    wanted = find_target(target)
    key = _key(
        "optimize",
        source=source_digest("pipeline.optimize", backend_module(wanted)),
        model=model.digest,
        target=target,
        libraries=libraries("onnxruntime"),
        host=backend(wanted).host(wanted),
    )

    def make(out: Path) -> object:
        return stage(model, target, out, progress=progress)

    def read(folder: Path) -> Engine | Refusal:
        if (folder / REFUSAL_VALUE).is_file():
            return load(Refusal, folder, REFUSAL_VALUE)
        return _reader(Engine, ENGINE_VALUE)(folder)

    return _resume(job, "optimize", key, read, make, only_resume)


def build_only(job: Job, parts: Parts, progress: Progress = silent) -> dict[str, Any]:
    """Compile for every target of the job, open nothing; what was compiled, and where it lies.

    It is compiled anew each time and is no part of a run. Raises `BuildFailed`.
    """
    from pipeline.optimize import build_only as build

    assert parts.model is not None
    builds = []
    for number, target in enumerate(job.targets):
        progress(number, len(job.targets), target)
        final = job.folder / "build-only" / target
        with new_folder(final) as out:
            facts = build(parts.model, target, out)
            shutil.rmtree(final, ignore_errors=True)
        builds.append({"path": str(final), **facts})
    progress(len(builds), len(builds), "built")
    return {"name": job.recipe.name, "builds": builds}


def verify(
    job: Job, engine: Engine, model: OnnxModel, progress: Progress = silent,
    only_resume: bool = False,
) -> Certificate:  # fmt: skip
    """Certify one engine, or take the certificate that is there."""
    from pipeline.verify import verify as stage

    module = backend_module(find_target(engine.target))
    key = _key(
        "verify",
        source=source_digest("pipeline.verify", module),
        engine=engine.digest,
        model=model.digest,
        libraries=libraries("numpy", "onnxruntime"),
    )

    def make(out: Path) -> object:
        return stage(engine, model, out, progress=progress)

    return _resume(job, "verify", key, _reader(Certificate, CERTIFICATE_VALUE), make, only_resume)


def package(
    job: Job,
    trained: TrainedModel,
    model: OnnxModel,
    engines: list[tuple[Engine, Certificate]],
    progress: Progress = silent,
    refusals: Sequence[Refusal] = (),
) -> Bundle:
    """Package certified engines, or take the bundle that is there; `bundle` then links to it."""
    from pipeline.package import package as stage

    key = _key(
        "package",
        source=source_digest("pipeline.package", *job.modules),
        templates=folder_digest("pipeline", "templates"),
        trained=trained.digest,
        model=model.digest,
        engines=[engine.digest for engine, _ in engines],
        certificates=[certificate.digest for _, certificate in engines],
        libraries=libraries("fucina", "matplotlib", "jinja2"),
    )

    def make(out: Path) -> object:
        return stage(job.recipe, trained, model, engines, out, progress=progress)

    bundle = _resume(job, "package", key, open_bundle, make)
    point(job.folder / LAST, bundle.folder)
    _write_run(job, trained, model, engines, refusals, bundle)
    return bundle


def _write_run(
    job: Job,
    trained: TrainedModel,
    model: OnnxModel,
    engines: list[tuple[Engine, Certificate]],
    refusals: Sequence[Refusal],
    bundle: Bundle,
) -> None:
    def place(folder: Path) -> str:
        return str(folder.relative_to(job.folder))

    write_json(
        job.folder / RUN_FILE,
        {
            "reference": job.reference,
            "data": job.data,
            "changes": job.changes,
            "train": place(trained.folder),
            "export": place(model.folder),
            "optimize": [place(engine.folder) for engine, _ in engines],
            "refused": [place(refusal.folder) for refusal in refusals],
            "verify": [place(certificate.folder) for _, certificate in engines],
            "package": place(bundle.folder),
            "bundle_digest": bundle.digest,
        },
    )


def read_run(folder: Path) -> dict[str, Any]:
    """The last run's record in a run folder. Raises `MissingArtifact`."""
    try:
        return json.loads((folder / RUN_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise MissingArtifact(
            f"{folder} holds no finished run", got=f"no {RUN_FILE}", fix="use `fucina run` first"
        ) from error


def read_refusals(folder: Path) -> list[Refusal]:
    """The targets that the last run in a run folder built no engine for, and why."""
    return [load(Refusal, folder / place, REFUSAL_VALUE) for place in read_run(folder)["refused"]]


def read_candidates(folder: Path) -> list[Candidate]:
    """What was measured when an engine was chosen or refused; nothing where nothing was."""
    path = folder / CANDIDATES
    return TypeAdapter(list[Candidate]).validate_json(path.read_bytes()) if path.is_file() else []


def _key(stage: str, **parts: Any) -> str:
    return digest_json({"stage": stage, **parts})[:16]


def _resume(
    job: Job,
    stage: str,
    key: str,
    read: Callable[[Path], Result],
    make: Callable[[Path], object],
    only_resume: bool = False,
) -> Result:
    """What `read` finds whole in the stage's folder; else what `make` puts there."""
    final = job.folder / stage / key
    there = final.exists()
    try:
        return read(final)
    except (MissingArtifact, BundleError):
        if only_resume:
            raise MissingArtifact(
                f"{job.recipe.name} has no result of `{stage}` for these settings in {job.out}",
                fix=f"run `fucina {stage} {job.reference}` with the same settings first",
            ) from None
    if there:
        shutil.rmtree(final)  # not whole, so it is made again
    with new_folder(final) as out:
        make(out)
    return read(final)


def _reader(kind: type[Value], name: str) -> Callable[[Path], Value]:
    def read(folder: Path) -> Value:
        value = load(kind, folder, name)
        check(value)
        return value

    return read
