"""Package: everything a server needs, in one folder whose manifest vouches for each file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from models.errors import CertificateFailed
from models.recipe import Recipe
from pipeline.artifacts import (
    check_files,
    digest_files,
    digest_json,
    save,
)
from pipeline.bundle import (
    CASES,
    ENGINES,
    MANIFEST,
    Bundle,
    Manifest,
    open_bundle,
)
from pipeline.card import write_card
from pipeline.cases import CASES_FILE
from pipeline.parts import part
from pipeline.progress import Progress, silent
from pipeline.report import write_report
from pipeline.values import (
    CERTIFICATE_VALUE,
    CODEC,
    ENGINE_VALUE,
    MODEL,
    MODEL_VALUE,
    PARTS,
    WEIGHTS,
    Certificate,
    Engine,
    OnnxModel,
    TrainedModel,
)
from pipeline.verify import require

CARD = "card.md"
REPORT = "report.html"


def package(
    recipe: Recipe,
    trained: TrainedModel,
    model: OnnxModel,
    engines: Sequence[tuple[Engine, Certificate]],
    out: Path,
    *,
    progress: Progress = silent,
) -> Bundle:
    """Write a bundle into `out` and open it. The same parts give the same bundle, byte for byte.

    Raises `CertificateFailed` for an engine whose certificate did not pass or is of another engine.
    """
    if not engines:
        raise CertificateFailed(
            f"{recipe.name} has no certified engine to package", fix="run `fucina verify` first"
        )
    graphs = [(out, model, list(engines))]
    for name in model.parts:
        pairs = [(part(engine, name), part(certificate, name)) for engine, certificate in engines]
        graphs.append((out / PARTS / name, part(model, name), pairs))
    for _, graph, pairs in graphs:
        for engine, certificate in pairs:
            _check_certificate(engine, graph, certificate)
    progress(0, 2, "copying")
    for folder, graph, pairs in graphs:
        _copy_graph(graph, pairs, folder)
    check_files(trained.folder, trained.files)
    shutil.copy2(trained.folder / CODEC, out / CODEC)
    version = metadata.version("fucina")
    certificates = [c for _, c in engines]
    own = [part(c, name) for c in certificates for name in model.parts]
    write_card(recipe, trained, [*certificates, *own], out / CARD)
    progress(1, 2, "writing the report")
    write_report(recipe, trained, model, certificates, out / REPORT)
    names = [str(p.relative_to(out).as_posix()) for p in out.rglob("*") if p.is_file()]
    files = digest_files(out, names)
    manifest = Manifest(
        name=recipe.name,
        version=digest_json(files)[:12],
        kind=recipe.kind,
        title=recipe.title,
        paper=recipe.paper,
        signature=model.signature,
        lineage={
            "trained": trained.digest,
            "weights": trained.files[WEIGHTS],
            "data": trained.data["digest"],
            "onnx": model.digest,
        },
        data=trained.data,
        metrics=trained.metrics,
        intervals=trained.intervals,
        remarks=trained.remarks,
        libraries={"fucina": version} | trained.libraries | model.libraries,
        engines=tuple(engine.target for engine, _ in engines),
        files=files,
        parts={name: part(model, name).signature for name in model.parts},
    )
    save(manifest, out, MANIFEST)
    progress(2, 2, "opening")
    return open_bundle(out)


def _copy_graph(model: OnnxModel, engines: Sequence[tuple[Engine, Certificate]], out: Path) -> None:
    """The graph, its cases and its engines, of the whole or of a part."""
    check_files(model.folder, model.files)
    (out / CASES).mkdir(parents=True)
    shutil.copy2(model.folder / MODEL, out / MODEL)
    save(model, out, MODEL_VALUE)
    shutil.copy2(model.folder / CASES_FILE, out / CASES / CASES_FILE)
    for engine, certificate in engines:
        _copy_engine(engine, certificate, out / ENGINES / engine.target)


def _check_certificate(engine: Engine, model: OnnxModel, certificate: Certificate) -> None:
    require(certificate)
    if (certificate.engine, certificate.subject, certificate.model) != (
        engine.digest,
        engine.files,
        model.digest,
    ):
        raise CertificateFailed(
            f"the certificate does not speak of this engine {engine.target!r}",
            got=f"engine {certificate.engine[:12]}",
            expected=f"engine {engine.digest[:12]}",
            fix="run `fucina verify` again",
        )


def _copy_engine(engine: Engine, certificate: Certificate, folder: Path) -> None:
    folder.mkdir(parents=True)
    check_files(engine.folder, engine.files)
    for name in engine.files:
        shutil.copy2(engine.folder / name, folder / name)
    save(engine, folder, ENGINE_VALUE)
    save(certificate, folder, CERTIFICATE_VALUE)
