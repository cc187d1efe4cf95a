"""Verify: an engine, opened as it will be served, is held against the original module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.codec import Codec
from models.errors import CertificateFailed
from models.signature import BATCH, Signature
from pipeline.backends import Target, backend
from pipeline.backends import target as find_target
from pipeline.carrying import replay_sequences
from pipeline.cases import CARRIED, CASES_FILE, EDGE, HELD_OUT, Case, read_cases
from pipeline.compare import CEILING, MULTIPLE, SMALLEST, Run, derive_limits, replay
from pipeline.decisions import check_decisions
from pipeline.invariance import composition, invariances
from pipeline.parts import check, new_part, part, save_value
from pipeline.progress import Progress, silent
from pipeline.values import CERTIFICATE_VALUE, CODEC, Certificate, Engine, Finding, OnnxModel
from pipeline.versions import libraries

# What DESIGN's certificate names and this version does not do; said in every certificate.
_DRIFT = "task drift with a confidence interval"
_NOT_RUN = (
    "error budget per edge up to the HTTP response, and bisection to the first diverging node",
    "inputs that hold NaN or infinity: the service refuses them",
)


def verify(
    engine: Engine, model: OnnxModel, out: Path, *, name: str = "", progress: Progress = silent
) -> Certificate:
    """Write the certificate of an engine, and of its parts, into `out`; true when all passed.

    `name` says which part of a model this engine is of.

    Every recorded case is asked again and compared with the fp64 module, laws that need no
    reference are checked, and the engine's own declared axes and what ran on which device in which
    precision are compared with the signature and the target. Nothing compared is a failure.

    Raises `BundleError` when a file is not the recorded one, `CertificateFailed` when there is no
    case to derive a limit from.
    """
    check(model)
    check(engine)
    codec = Codec.model_validate_json((model.folder / CODEC).read_bytes())
    parts = {  # those that the engine lacks are a failure of its lineage
        n: verify(part(engine, n), part(model, n), new_part(out, n), name=n)
        for n in sorted(model.parts.keys() & engine.parts.keys())
    }
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
    findings += invariances(run, reopen, model.signature, cases, limits, codec.block)
    if codec.actions:
        findings += check_decisions(run, cases, codec.actions, limits)
    if parts:
        opened = {n: _open_part(engine, model, n) for n in parts}
        findings += composition(run, opened, cases, limits)
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
        *(f"part {n!r}: {f}" for n, value in parts.items() for f in value.failures),
        *_other_than_requested(wanted, facts),
    ]
    value = Certificate(
        folder=out,
        recipe=model.recipe,
        target=engine.target,
        part=name,
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
        not_run=_NOT_RUN if codec.actions else (_DRIFT, *_NOT_RUN),
        libraries=libraries("numpy") | engine.built_on,
        parts={n: value.digest for n, value in parts.items()},
    )
    save_value(value)
    return value


def _open_part(engine: Engine, model: OnnxModel, name: str) -> tuple[Run, Signature]:
    own = part(engine, name)
    tools = backend(find_target(own.target))
    return tools.open(own.folder, own.files, own.options).run, part(model, name).signature


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
    if engine.parts.keys() != model.parts.keys():
        yield "lineage: the engine has other parts than its graph"
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
