"""The report of a finished run, with latencies measured here and now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.latency import measure
from flows.stages import read_candidates, read_refusals, read_run
from models.zoo import find
from pipeline.artifacts import load, replacing
from pipeline.bundle import open_bundle
from pipeline.report import write_report
from pipeline.values import (
    CERTIFICATE_VALUE,
    MODEL_VALUE,
    TRAINED_VALUE,
    Certificate,
    OnnxModel,
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
    refusals = read_refusals(folder)
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
