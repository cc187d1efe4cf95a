"""The report of a finished run, with latencies measured here and now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from flows.latency import measure
from flows.stages import read_run
from models.zoo import find
from pipeline.artifacts import load, replacing
from pipeline.bundle import open_bundle
from pipeline.report import write_report
from pipeline.values import (
    CANDIDATES,
    CERTIFICATE_VALUE,
    MODEL_VALUE,
    REFUSAL_VALUE,
    TRAINED_VALUE,
    Candidate,
    Certificate,
    OnnxModel,
    Refusal,
    TrainedModel,
)

REPORT = "report.html"


def write(folder: Path, latency: bool) -> tuple[Path, dict[str, Any] | None]:
    """Write report.html into a run's folder; its path, and the latencies if measured.

    Raises `MissingArtifact` when the folder holds no finished run.
    """
    run = read_run(folder)
    recipe = find(run["reference"]).override(run["changes"]).on(run["data"])
    trained = load(TrainedModel, folder / run["train"], TRAINED_VALUE)
    model = load(OnnxModel, folder / run["export"], MODEL_VALUE)
    certificates = [load(Certificate, folder / path, CERTIFICATE_VALUE) for path in run["verify"]]
    measured = measure(recipe, trained, open_bundle(folder / run["package"])) if latency else None
    refusals = [load(Refusal, folder / place, REFUSAL_VALUE) for place in run["refused"]]
    pairs = zip(certificates, run["optimize"], strict=True)
    built = [(value.target, folder / place) for value, place in pairs]
    built += [(value.target, value.folder) for value in refusals]
    path = folder / REPORT
    with replacing(path) as temporary:
        write_report(
            recipe, trained, model, certificates, temporary,
            latency=measured,
            candidates={target: read_candidates(place) for target, place in built},
            refusals=refusals,
        )  # fmt: skip
    return path, measured


def read_candidates(folder: Path) -> list[Candidate]:
    """What was measured when an engine was chosen or refused; nothing where nothing was."""
    path = folder / CANDIDATES
    return TypeAdapter(list[Candidate]).validate_json(path.read_bytes()) if path.is_file() else []
