"""Verify: an engine, opened as it will be served, is held against the original module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.errors import CertificateFailed
from models.signature import BATCH, Signature
from pipeline.artifacts import check_files, save
from pipeline.backends import Target, backend
from pipeline.backends import target as find_target
from pipeline.carrying import replay_sequences
from pipeline.cases import CARRIED, CASES_FILE, EDGE, HELD_OUT, Case, read_cases
from pipeline.compare import CEILING, MULTIPLE, SMALLEST, Run, derive_limits, replay
from pipeline.invariance import invariances
from pipeline.progress import Progress, silent
from pipeline.values import CERTIFICATE_VALUE, Certificate, Engine, Finding, OnnxModel
from pipeline.versions import libraries

# What DESIGN's certificate names and this version does not do; said in every certificate.
_NOT_RUN = (
    "task drift with a confidence interval",
    "error budget per edge up to the HTTP response, and bisection to the first diverging node",
    "inputs that hold NaN or infinity: the service refuses them",
)


def verify(
    engine: Engine, model: OnnxModel, out: Path, *, progress: Progress = silent
) -> Certificate:
    """Write the certificate of an engine into `out`; it is true when everything passed.

    Every recorded case is asked again and compared with the fp64 module, laws that need no
    reference are checked, and the engine's own declared axes and what ran on which device in which
    precision are compared with the signature and the target. Nothing compared is a failure.

    Raises `BundleError` when a file is not the recorded one, `CertificateFailed` when there is no
    case to derive a limit from.
    """
    check_files(model.folder, model.files)
    check_files(engine.folder, engine.files)
    wanted = find_target(engine.target)
    tools = backend(wanted)
    cases = read_cases(model.folder)
    limits = derive_limits(cases)
    if not limits:
        raise CertificateFailed(
            f"{model.folder} holds no recorded case of real samples, so there is no limit to hold "
            f"{engine.target!r} to",
            fix="export it again",
        )

    def reopen() -> Run:
        return tools.open(engine.folder, engine.files, engine.options).run

    run = reopen()
    progress(1, 3, f"asking {len(cases)} recorded cases")
    findings = replay(run, cases, limits)
    findings += replay_sequences(run, model.signature, cases, limits)
    progress(2, 3, "checking invariances")
    findings += invariances(run, reopen, model.signature, cases, limits)
    progress(3, 3, "reading what really ran")
    try:
        facts = tools.effective(engine.folder, engine.files, engine.options, cases[0].inputs)
    except Exception as error:  # whatever a backend raises, the engine did not run
        facts = {
            "declared": {},
            "nodes": [],
            "tf32": False,
            "error": str(error).strip().splitlines()[0][:300],
        }
    failures = [  # the most telling first: a person is shown that one
        *_broken_lineage(engine, model),
        *_other_than_declared(model.signature, facts),
        *_said(findings),
        *_uncovered(model, cases, findings),
        *_other_than_requested(wanted, facts),
    ]
    value = Certificate(
        folder=out,
        recipe=model.recipe,
        target=engine.target,
        passed=not failures,
        engine=engine.digest,
        model=model.digest,
        subject=engine.files,
        limits=limits,
        findings=tuple(findings),
        samples=_samples(model, cases),
        requested={
            "device": wanted.device,
            "precision": wanted.precision,
            "options": engine.options,
            "multiple_of_noise_floor": MULTIPLE,
            "smallest_limit": SMALLEST,
            "ceiling": CEILING,
        },
        effective=facts,
        failures=tuple(failures),
        not_run=_NOT_RUN,
        libraries=libraries("numpy") | engine.built_on,
    )
    save(value, out, CERTIFICATE_VALUE)
    return value


def require(certificate: Certificate) -> None:
    """Raise `CertificateFailed` with the first failure unless the certificate holds."""
    if not certificate:
        first, *more = certificate.failures or ("it records a comparison that failed",)
        raise CertificateFailed(
            f"{certificate.recipe} on {certificate.target} is not certified: {first}"
            + (f" (and {len(more)} more)" if more else ""),
            fix=f"see {certificate.folder / CERTIFICATE_VALUE}",
        )


def _broken_lineage(engine: Engine, model: OnnxModel) -> Iterator[str]:
    if engine.parent != model.digest:
        yield "lineage: the engine was built from another graph than this one"
    if engine.signature != model.signature:
        yield "lineage: the engine has another signature than its graph"


def _uncovered(model: OnnxModel, cases: list[Case], findings: list[Finding]) -> Iterator[str]:
    """What a certificate must speak of and these findings do not."""
    covered = [case.sizes for case in cases if case.origin == HELD_OUT]
    for sizes in model.signature.corners():
        if sizes not in covered:
            yield f"shapes: no recorded case at {sizes}"
    compared = {finding.output for finding in findings if finding.error is not None}
    for spec in model.signature.outputs:
        if spec.name not in compared:
            yield f"nothing was compared of output {spec.name!r}"
    if model.signature.recurrence and not any(finding.check == CARRIED for finding in findings):
        yield "carried: no recorded sequence, so nothing is known of state after many steps"


def _said(findings: list[Finding]) -> Iterator[str]:
    for finding in findings:
        if not finding.passed:
            got = finding.note or f"error {finding.error:.1e}"
            yield (
                f"{finding.check}: output {finding.output!r} at {finding.case}: got {got}, "
                f"expected {finding.limit:.1e} or less of its scale"
            )


def _other_than_declared(signature: Signature, facts: Mapping[str, Any]) -> Iterator[str]:
    declared = facts.get("declared", {})
    for spec in signature.inputs + signature.outputs:
        got = declared.get(spec.name, "no such tensor")
        if got != spec.declared():
            yield f"declared: tensor {spec.name!r}: got {got}, expected {spec.declared()}"


def _other_than_requested(wanted: Target, facts: Mapping[str, Any]) -> Iterator[str]:
    if not facts["nodes"]:
        yield "effective: no node was seen to run"
    for node in facts["nodes"]:
        where = f"effective: node {node['name']!r} ({node['operator']})"
        if node["device"] != wanted.device:
            yield f"{where} ran on {node['device']}, requested {wanted.device}"
        floats = {p for p in node["precision"].split("+") if p.startswith(("fp", "bf"))}
        if floats - {wanted.precision}:
            yield f"{where} ran in {node['precision']}, requested {wanted.precision}"
    if facts["tf32"] and wanted.precision == "fp32":
        yield "effective: TF32 is on, requested fp32"


def _samples(model: OnnxModel, cases: list[Case]) -> dict[str, Any]:
    held_out = [case for case in cases if case.origin == HELD_OUT]
    return {
        "held_out_cases": len(held_out),
        "held_out_rows": sum(case.sizes.get(BATCH, 1) for case in held_out),
        "edge_cases": [case.name for case in cases if case.origin == EDGE],
        "sha256": model.files[CASES_FILE],
    }
